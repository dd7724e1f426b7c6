"""Train one dictionary on the activations of all layers.

Every layer gets an autoencoder with the same features.
"""

import shutil
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import fit
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae import outputs
from ghosttrack.sae.shared_rows import training_layers
from ghosttrack.sae.training import Dictionary, train, training_device
from ghosttrack.settings import SaeSettings, code_digest


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
    training_digest: str,
    resident_mb: int = 1536,  # half of the memory of the rule's first attempt
    cuda_graph: bool = False,
    events: Path | None = None,
) -> None:
    """Train, resuming from `state`; write a SAELens folder and the loss history of each layer.

    `weights`, `cfg` and `history` are in the order of `layers`. `stores` and `manifests` have the
    same number of shards for each layer, in the same order. `state` is removed at the end.
    `events`: folder of the event file, if the run writes event files.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_huge_pages()
    with files.lock(state):
        weights_sha256 = files.read_object(model_source)["weights_sha256"]
        shards = len(stores) // len(layers)
        opened = [
            ActivationStore.open(
                stores[start : start + shards],
                manifests[start : start + shards],
                {"layer": layer, "weights_sha256": weights_sha256},
            )
            for start, layer in zip(range(0, len(stores), shards), layers, strict=True)
        ]
        device = training_device()
        (trained,) = train(
            training_layers(
                opened,
                sae.batch,
                seed,
                fit(opened, resident_mb, device),
                device=device,
                epochs=sae.epochs,
            ),
            [Dictionary(sae, seed, state, events=events)],
            micro_batch=micro_batch,
            code=code_digest.source_digest("train_shared_sae"),
            label="SAE of all layers",
            cuda_graph=cuda_graph,
        )
        for layer_sae, store, *paths in zip(trained, opened, weights, cfg, history, strict=True):
            outputs.write(
                layer_sae, store, *paths, model_name=model, training_digest=training_digest
            )
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
