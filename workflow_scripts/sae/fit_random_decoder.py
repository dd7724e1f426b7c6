"""Fit the null of one SAE: the same encoder fit and L0, with a random decoder."""

import shutil
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler, fit
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae import model as sae_model
from ghosttrack.sae import outputs
from ghosttrack.sae.initialisation import seed_of
from ghosttrack.sae.random_decoder import null_settings
from ghosttrack.sae.training import Dictionary, TrainingLayer, train
from ghosttrack.settings import SaeSettings, code_digest


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    trained: Path,
    trained_cfg: Path,
    quality: Path,
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
) -> None:
    """Fit encoder, biases and threshold to a random decoder, resuming from `state`.

    `trained`, `trained_cfg` and `quality` are the run's SAE of the layer, which gives size and L0.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    with files.lock(state):
        store = ActivationStore.open(stores, manifests, {"layer": layer})
        settings = null_settings(
            sae,
            sae_model.load_files(trained, trained_cfg),
            files.read_object(quality)["l0"],
            int((~store.excluded).sum()),
        )
        sampler = ChunkSampler(store, settings.batch, seed, resident=fit([store], resident_mb))
        ((fitted,),) = train(
            [TrainingLayer(store, sampler)],
            # Equal directions in all layers could be tracked without an error.
            [Dictionary(settings, seed_of(seed, layer, "independent"), state, frozen_decoder=True)],
            micro_batch=micro_batch,
            code=code_digest.source_digest("fit_random_decoder"),
            label=f"random decoder of layer {layer}",
        )
        outputs.write(fitted, store, weights, cfg, history, model_name=model, training_digest="")
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
