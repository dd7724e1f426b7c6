"""A sweep: dictionaries with different k or different seeds that train on the same batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Batches, Rows
from ghosttrack.sae.training import Dictionary, TrainingLayer, train
from ghosttrack.settings import SaeSettings


class SweepArm(NamedTuple):
    """The k and the seed of one dictionary of a sweep."""

    k: int
    seed: int  # of the initial weights

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"k_{self.k:03d}_seed_{self.seed}"


def sweep(
    store: Rows,
    batches: Batches,
    settings: SaeSettings,
    arms: Sequence[SweepArm],
    *,
    state: Path,
    label: str = "sweep",
    **options: Any,
) -> dict[SweepArm, Sae]:
    """Train all arms on one layer; see `training.train`.

    Args:
        store: training activations of the layer.
        batches: the same rows, shuffled; each batch is read once for all arms.
        settings: of every arm, except for k.
        arms: without duplicates.
        state: folder for checkpoints, with one folder per arm; the caller locks it and removes it
            on success.
        label: name in the progress line.
        options: keyword arguments of `training.train`.
    Raises:
        UserError: settings and data do not fit.
        SystemExit: a signal asked the process to stop; all checkpoints are saved.
    """
    if (largest := max(arm.k for arm in arms)) >= settings.d_sae:
        raise UserError(
            f"sweep.k: {largest} active of sae.d_sae: {settings.d_sae} features; "
            "every k must be smaller"
        )
    dictionaries = [
        Dictionary(settings.model_copy(update={"k": arm.k}), arm.seed, state / arm.name)
        for arm in arms
    ]
    trained = train([TrainingLayer(store, batches)], dictionaries, label=label, **options)
    return {arm: sae for arm, ((sae, _),) in zip(arms, trained, strict=True)}
