"""Train autoencoders of other k and other seeds on one layer, in one reading of its activations, and compare them."""

import shutil
from itertools import product
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.sweep import Arm, sweep
from ghosttrack.sae.sweep_tables import tabulate
from ghosttrack.settings import SaeSettings, SweepSettings, code_digest

# As in train_sae: a larger layer is read window by window, in the same order of rows.
RESIDENT_BYTES = 3 * 2**29


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    model_source: Path,
    heldout: Path,
    heldout_manifest: Path,
    saes: Path,
    arms: Path,
    stability: Path,
    sae: SaeSettings,
    sweep_settings: SweepSettings,
    seed: int,
    layer: int,
    threads: int,
    micro_batch: int,
    state: Path,
    model: str,
) -> None:
    """Train with resume from `state`; write a SAELens folder an arm, and what they reach and share on held-out text."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    keys = [Arm(k, number) for k, number in product(sweep_settings.k, sweep_settings.seeds)]
    with files.lock(state):
        expected = {
            "layer": layer,
            "weights_sha256": files.read_json(model_source)["weights_sha256"],
        }
        store = ActivationStore.open(stores, manifests, expected)
        text = ActivationStore.open([heldout], [heldout_manifest], expected)
        resident = store.rows * store.d_model * 2 <= RESIDENT_BYTES
        trained = sweep(
            store,
            ChunkSampler(store, sae.batch, seed, resident=resident),
            sae,
            keys,
            state=state,
            micro_batch=micro_batch,
            order=seed,
            code=code_digest.source_digest("sweep_sae"),
            label=f"sweep of layer {layer}",
        )
        found = tabulate(trained, text, layer, seed)
        with files.atomic_directory(saes) as partial:
            for key, each in trained.items():
                place = partial / key.name
                sae_model.save(
                    each,
                    place / sae_model.WEIGHTS_NAME,
                    place / sae_model.CFG_NAME,
                    hook_name=f"blocks.{layer}.hook_{store.site}",
                    model_name=model,
                )
        for path, table in zip((arms, stability), found, strict=True):
            with files.atomic_write(path) as stream:
                tables.write_csv(table, stream)
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
