"""Output files of a training job: a SAELens folder with the origin of the rows, and the history."""

from dataclasses import replace
from pathlib import Path

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.sae import model
from ghosttrack.sae.training import TrainedSae, write_history


def write(
    trained: TrainedSae,
    store: ActivationStore,
    weights: Path,
    cfg: Path,
    history: Path,
    *,
    model_name: str,
    training_digest: str,
) -> None:
    """Write the three files of one layer, each atomically.

    `training_digest`, the digest of what the autoencoder was trained from, identifies a stale autoencoder
    (see `planning.plan`).
    """
    metadata = {
        **trained.sae.metadata,
        "layer": store.layer,
        "site": store.site,
        "context_size": store.context,
        "storage": store.storage,
        "storage_error": store.storage_error,
        "training_digest": training_digest,
    }
    model.save(
        replace(trained.sae, metadata=metadata),
        weights,
        cfg,
        hook_name=f"blocks.{store.layer}.hook_{store.site}",
        model_name=model_name,
    )
    write_history(history, trained.history)
