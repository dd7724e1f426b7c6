"""What a training job leaves behind: a SAELens folder that says where its rows came from, and the loss curve."""

from dataclasses import replace
from pathlib import Path

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.sae import model
from ghosttrack.sae.training import Trained, write_history


def write(
    trained: Trained,
    store: ActivationStore,
    weights: Path,
    cfg: Path,
    history: Path,
    *,
    model_name: str,
    made_from: str,
) -> None:
    """Write one layer's three files, atomically each; `made_from` is what tells a stale autoencoder (see plan)."""
    metadata = {
        **trained.sae.metadata,
        "layer": store.layer,
        "site": store.site,
        "context_size": store.context,
        "storage": store.storage,
        "storage_error": store.storage_error,
        "made_from": made_from,
    }
    hook_name = f"blocks.{store.layer}.hook_{store.site}"
    model.save(
        replace(trained.sae, metadata=metadata),
        weights,
        cfg,
        hook_name=hook_name,
        model_name=model_name,
    )
    write_history(history, trained.history)
