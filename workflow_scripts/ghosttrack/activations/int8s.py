"""Activations as standardised 8-bit integers: half the bytes of float16, for training data.

In each chunk, every channel is standardised, then every row is scaled so that its largest value is
127. Without standardisation the small channels of a residual stream would be rounded to zero,
because a few channels carry most of its norm. Rows with a norm far above the median are stored as
float16 outliers.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.layout import HALF_MAX, MASSIVE_FACTOR
from ghosttrack.activations.shards import Half

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEVELS = 127
# Rows per step, so that they stay in the cache of a core.
_BLOCK_ROWS = 256
# Levels never take this value, so in a chunk it marks rows that were never written.
UNWRITTEN = -128


class Coding(NamedTuple):
    """What the levels of one chunk mean: the fields of `Coded` after its levels."""

    row_scale: npt.NDArray[np.float32]  # (rows,)
    mean: npt.NDArray[np.float32]  # (d_model,)
    deviation: npt.NDArray[np.float32]  # (d_model,)
    outlier_rows: npt.NDArray[np.int64]  # (outliers,), indices within the chunk, ascending
    outliers: Half  # (outliers, d_model)


class Coded(NamedTuple):
    """One chunk: value = mean + deviation * row_scale * level, except in the outlier rows."""

    levels: npt.NDArray[np.int8]  # (rows, d_model), -127..127
    row_scale: npt.NDArray[np.float32]  # (rows,)
    mean: npt.NDArray[np.float32]  # (d_model,)
    deviation: npt.NDArray[np.float32]  # (d_model,)
    outlier_rows: npt.NDArray[np.int64]  # (outliers,), indices within the chunk
    outliers: Half  # (outliers, d_model)


def encode(values: Half) -> Coded:
    """Standardise and round one chunk, (rows, d_model), all values finite."""
    import torch  # several times faster than numpy; readers of float16 stores do without it

    x, norms = torch.empty(values.shape), torch.empty(len(values))
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, len(values), _BLOCK_ROWS)]
    for block in blocks:
        x[block] = torch.from_numpy(values[block])
        norms[block] = torch.linalg.vector_norm(x[block], dim=1)
    # numpy averages the two middle values, as in the rest of a store; torch takes the lower one.
    rows = np.flatnonzero(norms.numpy() > MASSIVE_FACTOR * np.median(norms.numpy()))
    normal = len(x) - len(rows)
    x[rows] = 0.0
    mean = x.sum(dim=0) / normal
    squares = torch.zeros_like(mean)
    for block in blocks:
        x[block] -= mean
    x[rows] = 0.0
    for block in blocks:
        squares += x[block].square().sum(dim=0)
    deviation = (squares / normal).sqrt_()
    deviation[deviation == 0] = 1.0  # constant channels: the mean is exact
    row_scale, levels = torch.empty(len(x)), torch.empty(x.shape, dtype=torch.int8)
    for block in blocks:
        part = x[block].mul_(deviation.reciprocal())
        scale = torch.maximum(part.amax(dim=1), -part.amin(dim=1)) / LEVELS
        scale[scale == 0] = 1.0
        row_scale[block] = scale
        levels[block] = part.mul_(scale.reciprocal()[:, None]).round_()
    return Coded(
        levels.numpy(), row_scale.numpy(), mean.numpy(), deviation.numpy(), rows, values[rows]
    )


class CodedTensors(NamedTuple):
    """A chunk encoded on its device: as `Coded`, but outlier rows are flagged instead of listed."""

    levels: "torch.Tensor"  # (rows, d_model) int8
    row_scale: "torch.Tensor"  # (rows,) float32
    mean: "torch.Tensor"  # (d_model,) float32
    deviation: "torch.Tensor"  # (d_model,) float32
    outlier: "torch.Tensor"  # (rows,) bool


def encode_tensor(values: "torch.Tensor") -> CodedTensors:
    """`encode` of a full chunk, (CHUNK_ROWS, d_model) float16, on its device and without a wait.

    Sums take the order of `encode`, and every other operation is rounded as IEEE 754 demands, so a
    GPU gives the bytes of the CPU, with two exceptions. If d_model is no multiple of 64, torch sums
    the last columns in another order on the CPU. Norms are rounded in another order, so a row whose
    norm equals the limit of outliers up to rounding may be on its other side.
    """
    import torch

    x = values.float()
    norms = torch.linalg.vector_norm(x, dim=1)
    middle = norms.sort().values[(len(x) - 1) // 2 : len(x) // 2 + 1]
    outlier = norms > MASSIVE_FACTOR * middle.mean()
    # Divisors are tensors: torch multiplies by the reciprocal of a number on a GPU.
    normal, levels = (~outlier).sum().float(), torch.full_like(norms[0], LEVELS)
    mean = _column_sums(x.masked_fill_(outlier[:, None], 0)) / normal
    x.sub_(mean).masked_fill_(outlier[:, None], 0)
    deviation = (_column_sums(x.square()) / normal).sqrt_()
    deviation.masked_fill_(deviation == 0, 1)
    x.mul_(deviation.reciprocal())
    row_scale = torch.maximum(x.amax(dim=1), -x.amin(dim=1)) / levels
    row_scale.masked_fill_(row_scale == 0, 1)
    rounded = x.mul_(row_scale.reciprocal()[:, None]).round_().to(torch.int8)
    return CodedTensors(rounded, row_scale, mean, deviation, outlier)


def _column_sums(x: "torch.Tensor") -> "torch.Tensor":
    """Sums over the rows, whose number is a power of 16, in the order of torch's sum on a CPU.

    torch adds up groups of 16 rows, then groups of 16 sums, and so on, each from zero.
    """
    while len(x) > 1:
        groups = x.view(-1, 16, x.shape[1])
        x = groups.new_zeros((len(groups), groups.shape[2]))
        for row in range(16):
            x += groups[:, row]
    return x[0]


def decode(coded: Coded) -> Half:
    """The chunk given to `encode`, up to rounding, (rows, d_model) float16."""
    import torch

    values: Half = np.empty(coded.levels.shape, dtype=np.float16)
    target, row_scale = torch.from_numpy(values), torch.from_numpy(coded.row_scale)
    mean, deviation = torch.from_numpy(coded.mean), torch.from_numpy(coded.deviation)
    shape = (min(_BLOCK_ROWS, len(values)), values.shape[1])
    # torch refuses read-only memory maps, so the levels of a block are copied first.
    levels, x = np.empty(shape, dtype=np.int8), torch.empty(shape)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        rows = len(values[block])
        levels[:rows] = coded.levels[block]
        part = x[:rows].copy_(torch.from_numpy(levels[:rows]))
        target[block] = restore(part, row_scale[block, None], deviation, mean)
    values[coded.outlier_rows] = coded.outliers
    return values


def restore(levels: "Tensor", row_scale: "Tensor", deviation: "Tensor", mean: "Tensor") -> "Tensor":
    """Turn levels into values, in place: the caller rounds them to float16, as `decode` does.

    Each step is one operation with one rounding, so every device computes the same bits.

    Args:
        levels: (rows, d_model) float32.
        row_scale: (rows, 1) float32.
        deviation, mean: (d_model,) or (rows, d_model) float32.
    """
    levels.mul_(row_scale).mul_(deviation).add_(mean)
    # Rounding can exceed the float16 range where the value itself did not.
    return levels.clamp_(-HALF_MAX, HALF_MAX)
