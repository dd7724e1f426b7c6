"""Train autoencoders of other k and other seeds on one layer, in one reading of its activations, and compare them."""

import shutil
from itertools import combinations, product
from pathlib import Path

import pandas as pd
import torch

from ghosttrack import files, job, provenance
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.memory import keep_freed_memory
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.quality import pca_fvu, tally
from ghosttrack.sae.rows import mean_of
from ghosttrack.sae.stability import compare
from ghosttrack.sae.sweep import Arm, sweep
from ghosttrack.settings import SaeSettings, SweepSettings

# As in train_sae: a larger layer is read window by window, in the same order of rows.
RESIDENT_BYTES = 3 * 2**29


def main(
    *, stores: list[Path], manifests: list[Path], model_source: Path, heldout: Path, heldout_manifest: Path, saes: Path,
    arms: Path, stability: Path, sae: SaeSettings, sweep_settings: SweepSettings, seed: int, layer: int, threads: int,
    micro_batch: int, state: Path, model: str,
) -> None:  # fmt: skip
    """Train with resume from `state`; write a SAELens folder an arm, and what they reach and share on held-out text."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    keys = [Arm(k, number) for k, number in product(sweep_settings.k, sweep_settings.seeds)]
    with files.lock(state):
        expected = {"layer": layer, "weights_sha256": files.read_json(model_source)["weights_sha256"]}
        store = ActivationStore.open(stores, manifests, expected)
        text = ActivationStore.open([heldout], [heldout_manifest], expected)
        resident = store.rows * store.d_model * 2 <= RESIDENT_BYTES
        trained = sweep(
            store, ChunkSampler(store, sae.batch, seed, resident=resident), sae, keys, state=state, micro_batch=micro_batch,
            code=provenance.source_digest("sweep_sae"), label=f"sweep of layer {layer}",
        )  # fmt: skip
        mean = mean_of(text)
        baselines = {k: pca_fvu(text, mean, k) for k in sweep_settings.k}
        rows, alive = [], {}
        for key, each in trained.items():
            found = tally(each, text, mean)
            reconstruction, sparsity = found.result()
            rows.append({
                "layer": layer, **key._asdict(), **reconstruction._asdict(), **sparsity._asdict(), "pca_fvu": baselines[key.k],
                "rows": found.rows, "training_tokens": each.metadata["training_tokens"],
            })  # fmt: skip
            alive[key] = each.W_dec[found.fired > 0]
        pairs = [
            {
                "layer": layer, "k": k, "seed": one, "other_seed": other,
                **compare(alive[Arm(k, one)], alive[Arm(k, other)], seed)._asdict(),
            }
            for k in sweep_settings.k for one, other in combinations(sweep_settings.seeds, 2)
        ]  # fmt: skip
        with files.atomic_directory(saes) as partial:
            for key, each in trained.items():
                place = partial / key.name
                sae_model.save(
                    each, place / sae_model.WEIGHTS_NAME, place / sae_model.CFG_NAME,
                    hook_name=f"blocks.{layer}.hook_{store.site}", model_name=model,
                )  # fmt: skip
        columns = ["layer", "k", "seed", "other_seed"]
        for path, table in (
            (arms, pd.DataFrame(rows)),
            (stability, pd.DataFrame(pairs, columns=None if pairs else columns)),
        ):
            with files.atomic_write(path) as stream:
                table.to_csv(stream, index=False)
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
