"""The interface of an activation store for training and evaluation, and passes over its rows.

A row is included unless the store excludes it (position 0 and massive activations).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghosttrack.errors import UserError

# Whole storage chunks: reading a part of a chunk decodes all of it.
BLOCK_ROWS = 4096


class Rows(Protocol):
    """Activations of one layer by row; `ghosttrack.activations.reader.ActivationStore` is one."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def d_model(self) -> int:
        """Width of a row."""

    @property
    def excluded(self) -> npt.NDArray[np.bool_]:
        """(rows,) position 0 and massive activations: not informative, and dominant in any sum."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.floating[Any]]:
        """Rows start .. stop - 1, (stop - start, d_model)."""

    def fingerprint(self) -> str:
        """Digest of the content."""


class Batches(Protocol):
    """Shuffled batches whose order is a pure function of (seed, epoch)."""

    @property
    def batches_per_epoch(self) -> int:
        """Complete batches per epoch."""

    def batch_at(self, step: int) -> Tensor:
        """Batch number `step`, counted over all epochs: (batch, d_model) on any device."""


class Normaliser(NamedTuple):
    """x -> (x - mean) * scale, after which the mean of |x|^2 is d_model."""

    mean: Tensor  # (d_model,) float32
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """Centre and scale x (rows, d_model)."""
        return (x.to(torch.float32) - self.mean).mul_(self.scale)

    def to(self, device: torch.device) -> "Normaliser":
        """Copy to another device."""
        return Normaliser(self.mean.to(device), self.scale)


def blocks(store: Rows, at_most: int | None = None) -> Iterator[Tensor]:
    """Included rows as float32 tensors (up to 4,096, d_model), in order.

    With `at_most`, only evenly spread blocks with about that many rows in total.
    """
    starts = np.arange(0, store.rows, BLOCK_ROWS)
    if at_most is not None and at_most < store.rows:
        count = max(1, round(at_most / BLOCK_ROWS))
        starts = starts[
            np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(np.int64)
        ]
    for start in starts.tolist():
        stop = min(start + BLOCK_ROWS, store.rows)
        included = store.read(start, stop)[~store.excluded[start:stop]]
        if len(included):
            yield torch.from_numpy(included.astype(np.float32))


def mean_of(store: Rows) -> Tensor:
    """Mean of the included rows, (d_model,) float64. Raises UserError if all are excluded."""
    total, count = torch.zeros(store.d_model, dtype=torch.float64), 0
    for x in blocks(store):
        total += x.sum(0, dtype=torch.float64)
        count += len(x)
    if count == 0:
        raise UserError(
            f"all {store.rows} rows of the activation store are excluded (position 0 or massive "
            "activations): raise corpus.tokens or corpus.context"
        )
    return total / count


def fit_normaliser(store: Rows) -> Normaliser:
    """Mean and global scale of the included rows. Raises UserError if the rows do not vary."""
    mean = mean_of(store)
    total_ss, count = 0.0, 0
    for x in blocks(store):
        total_ss += float((x.to(torch.float64) - mean).pow_(2).sum())
        count += len(x)
    if not 0.0 < total_ss < float("inf"):
        raise UserError(
            f"the {count} included rows of the activation store have a total sum of squares of "
            f"{total_ss:g}, expected a positive number: the layer's activations are constant or "
            "damaged; delete them and run again"
        )
    return Normaliser(mean.to(torch.float32), float(np.sqrt(store.d_model * count / total_ss)))
