"""Train one sparse autoencoder on the activations of one layer."""

import logging
import shutil
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler, fit
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae import model as sae_model
from ghosttrack.sae import outputs
from ghosttrack.sae.initialisation import seed_of, unfold_normalisation, warm_start_settings
from ghosttrack.sae.training import Dictionary, TrainingLayer, train, training_device
from ghosttrack.settings import SaeSettings, code_digest

log = logging.getLogger("ghosttrack")


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    model_source: Path,
    warm_start_layer: list[Path],
    weights: Path,
    cfg: Path,
    history: Path,
    sae: SaeSettings,
    seed: int,
    layer: int,
    threads: int,
    micro_batch: int,
    resident_mb: int,
    state: Path,
    model: str,
    training_digest: str,
    checkpoint_seconds: float = 60.0,
    cuda_graph: bool = False,
    events: Path | None = None,
) -> None:
    """Train, resuming from `state`; write a SAELens folder and the loss history; remove `state`.

    `warm_start_layer`: weights and cfg of the autoencoder for a warm start; empty: random directions.
    `events`: folder of the event file, if the run writes event files.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_huge_pages()
    with files.lock(state):
        expected = {
            "layer": layer,
            "weights_sha256": files.read_object(model_source)["weights_sha256"],
        }
        store = ActivationStore.open(stores, manifests, expected)
        device = training_device()
        resident = fit([store], resident_mb, device)
        log.info(
            "activations are %s (resident_mb %s), micro-batches have %s rows (micro_batch): "
            "neither changes the result, except for rounding on a GPU",
            "kept in memory" if resident else "read window by window",
            f"{resident_mb:,}",
            f"{min(micro_batch, sae.batch):,}",
        )
        dictionary = Dictionary(
            warm_start_settings(sae) if warm_start_layer else sae,
            seed_of(seed, layer, sae.dictionaries),
            state,
            unfold_normalisation(sae_model.load_files(*warm_start_layer))
            if warm_start_layer
            else None,
            events=events,
        )
        batches = ChunkSampler(
            store, sae.batch, seed, resident, device=device, epochs=dictionary.settings.epochs
        )
        ((trained,),) = train(
            [TrainingLayer(store, batches)],
            [dictionary],
            micro_batch=micro_batch,
            code=code_digest.source_digest("train_sae"),
            label=f"SAE of layer {layer}",
            checkpoint_seconds=checkpoint_seconds,
            cuda_graph=cuda_graph,
        )
        outputs.write(
            trained, store, weights, cfg, history, model_name=model, training_digest=training_digest
        )
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
