"""Train one dictionary on the activations of all layers; every layer gets an autoencoder with the same features."""

import shutil
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae import outputs, shared_rows
from ghosttrack.sae.training import train_shared
from ghosttrack.settings import SaeSettings, code_digest

# Half of what the rule asks for. More is read window by window instead of kept in memory; the order of the rows is the same.
RESIDENT_BYTES = 3 * 2**29


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    model_source: Path,
    weights: list[Path],
    cfg: list[Path],
    history: list[Path],
    layers: list[int],
    sae: SaeSettings,
    seed: int,
    threads: int,
    micro_batch: int,
    state: Path,
    model: str,
    made_from: str,
    cuda_graph: bool = False,
) -> None:
    """Train with resume from `state`; write a SAELens folder and the loss curve of each layer, then remove `state`.

    `weights`, `cfg` and `history` go with `layers`; `stores` and `manifests` have equally many of each layer, in this order.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    with files.lock(state):
        origin = files.read_json(model_source)["weights_sha256"]
        each = len(stores) // len(layers)
        opened = [
            ActivationStore.open(
                stores[start : start + each],
                manifests[start : start + each],
                {"layer": layer, "weights_sha256": origin},
            )
            for start, layer in zip(range(0, len(stores), each), layers, strict=True)
        ]
        resident = sum(store.rows * store.d_model * 2 for store in opened) <= RESIDENT_BYTES
        trained = train_shared(
            shared_rows.sources(opened, sae.batch, seed, resident),
            sae,
            seed=seed,
            state=state,
            micro_batch=micro_batch,
            code=code_digest.source_digest("train_shared_sae"),
            label="SAE of all layers",
            cuda_graph=cuda_graph,
        )
        for found, store, *paths in zip(trained, opened, weights, cfg, history, strict=True):
            outputs.write(found, store, *paths, model_name=model, made_from=made_from)
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
