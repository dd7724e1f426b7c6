"""Train one sparse autoencoder on the activations of one layer."""

import logging
import shutil
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler, fits
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae import model as sae_model
from ghosttrack.sae import outputs
from ghosttrack.sae.initialisation import following, seed_of, unfold
from ghosttrack.sae.training import train
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
    made_from: str,
    checkpoint_seconds: float = 60.0,
    cuda_graph: bool = False,
) -> None:
    """Train with resume from `state`; write a SAELens folder and the loss curve, then remove `state`.

    `warm_start_layer`: weights and cfg of the autoencoder to start from; empty: random directions.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_huge_pages()
    with files.lock(state):
        expected = {
            "layer": layer,
            "weights_sha256": files.read_json(model_source)["weights_sha256"],
        }
        store = ActivationStore.open(stores, manifests, expected)
        resident = fits(store, resident_mb)
        log.info(
            "activations are %s (resident_mb %s), %s rows on their way at once (micro_batch): neither changes the result, on a GPU but for rounding",
            "kept in memory" if resident else "read window by window",
            f"{resident_mb:,}",
            f"{min(micro_batch, sae.batch):,}",
        )
        trained = train(
            store,
            ChunkSampler(store, sae.batch, seed, resident=resident),
            following(sae) if warm_start_layer else sae,
            seed=seed_of(seed, layer, sae.dictionaries),
            state=state,
            micro_batch=micro_batch,
            code=code_digest.source_digest("train_sae"),
            label=f"SAE of layer {layer}",
            checkpoint_seconds=checkpoint_seconds,
            cuda_graph=cuda_graph,
            start=unfold(sae_model.load_files(*warm_start_layer)) if warm_start_layer else None,
        )
        outputs.write(trained, store, weights, cfg, history, model_name=model, made_from=made_from)
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
