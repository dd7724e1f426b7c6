"""In-memory stand-ins for the activation store and its sampler."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.sae.initialisation import WarmStart
from ghosttrack.sae.rows import Batches, Rows
from ghosttrack.sae.training import Dictionary, TrainedSae, TrainingLayer, train
from ghosttrack.settings import SaeSettings


class MemoryRows:
    """Rows in an array, some of them excluded."""

    def __init__(
        self, values: npt.NDArray[np.floating], excluded: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self.values = values.astype(np.float16)
        self.rows, self.d_model = values.shape
        self.excluded = np.zeros(self.rows, dtype=np.bool_) if excluded is None else excluded
        self.name = "memory"

    def read(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        return self.values[start:stop]

    def fingerprint(self) -> str:
        return self.name


class MemoryBatches:
    """Included rows in a new order each epoch; raises at step `fail_at`, like a killed process."""

    def __init__(self, store: MemoryRows, batch: int, fail_at: int | None = None) -> None:
        self.included = store.values[~store.excluded]
        self.batch, self.fail_at = batch, fail_at
        self.batches_per_epoch = len(self.included) // batch

    def batch_at(self, step: int) -> torch.Tensor:
        if step == self.fail_at:
            raise InterruptedError(f"killed at step {step}")
        epoch, number = divmod(step, self.batches_per_epoch)
        order = np.random.default_rng([0, epoch]).permutation(len(self.included))
        rows = order[number * self.batch : (number + 1) * self.batch]
        return torch.from_numpy(self.included[rows].astype(np.float32))


def planted(
    rows: int, d_model: int, features: int, active: float, seed: int
) -> tuple[MemoryRows, npt.NDArray[np.float64]]:
    """Sparse sums of unit directions, far from the origin.

    Returns also the directions, (features, d_model).
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((features, d_model))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    code = rng.uniform(1.0, 2.0, (rows, features)) * (
        rng.random((rows, features)) < active / features
    )
    offset = 3.0 * rng.standard_normal(d_model)
    return MemoryRows(
        code @ directions + offset + 0.01 * rng.standard_normal((rows, d_model))
    ), directions


SMALL = SaeSettings(d_sae=48, k=4, batch=64, epochs=3, learning_rate=3e-3)


def train_one(
    store: Rows,
    batches: Batches,
    settings: SaeSettings,
    *,
    seed: int,
    state: Path,
    warm_start: WarmStart | None = None,
    events: Path | None = None,
    **options: Any,
) -> TrainedSae:
    """Train one dictionary on one layer."""
    dictionary = Dictionary(settings, seed, state, warm_start, events=events)
    ((trained,),) = train([TrainingLayer(store, batches)], [dictionary], **options)
    return trained
