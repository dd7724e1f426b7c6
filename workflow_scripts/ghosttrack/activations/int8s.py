"""Activations as standardised 8-bit integers: half the bytes of float16, for training data.

Per chunk, each channel is centred and scaled to unit deviation; then each row is scaled so that its largest
value is 127. A few channels carry most of a residual stream's size and a few rows are hundreds of times
larger than the rest: without the first step the small channels vanish in rounding, and rows far above the
median, which neither step can hold, are kept in float16 beside the integers.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.layout import HALF_MAX, MASSIVE_FACTOR
from ghosttrack.activations.shards import Half

LEVELS = 127
# Rows that stay in a core's cache over several passes.
_BLOCK_ROWS = 256
# No value is ever written as -128, so this byte in a chunk means that nothing was.
UNWRITTEN = -128


class Coded(NamedTuple):
    """One chunk: value = mean + deviation * row_scale * level, but for the outlier rows, which are kept as they are."""

    levels: npt.NDArray[np.int8]  # (rows, d_model), -127..127
    row_scale: npt.NDArray[np.float32]  # (rows,)
    mean: npt.NDArray[np.float32]  # (d_model,)
    deviation: npt.NDArray[np.float32]  # (d_model,)
    outlier_rows: npt.NDArray[np.int64]  # (outliers,), within the chunk
    outliers: Half  # (outliers, d_model)


def encode(values: Half) -> Coded:
    """Standardise and round one chunk, (rows, d_model), all finite."""
    import torch  # its casts and sums are several times as fast as numpy's; readers of other stores do without it

    x, norms = torch.empty(values.shape), torch.empty(len(values))
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, len(values), _BLOCK_ROWS)]
    for block in blocks:
        x[block] = torch.from_numpy(values[block])
        norms[block] = torch.linalg.vector_norm(x[block], dim=1)
    # numpy's median is the mean of the middle two, as elsewhere in a store; torch's is the lower one.
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
    deviation[deviation == 0] = 1.0  # a constant channel: its mean says it all
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


def decode(coded: Coded) -> Half:
    """The chunk that `encode` was given, up to rounding, (rows, d_model) float16."""
    import torch

    values: Half = np.empty(coded.levels.shape, dtype=np.float16)
    target, spare = (
        torch.from_numpy(values),
        np.empty((_BLOCK_ROWS, values.shape[1]), dtype=np.float32),
    )
    mean, deviation = torch.from_numpy(coded.mean), torch.from_numpy(coded.deviation)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        levels = coded.levels[block]  # perhaps a view of a mapped file, which torch does not take
        part = np.multiply(levels, coded.row_scale[block, None], out=spare[: len(levels)])
        x = torch.from_numpy(part).mul_(deviation).add_(mean)
        # Rounding may reach beyond what float16 holds where the value itself did not.
        target[block] = x.clamp_(-HALF_MAX, HALF_MAX)
    values[coded.outlier_rows] = coded.outliers
    return values
