"""Activations as standardised 8-bit integers: half the bytes of float16, for training data.

Per chunk, each channel is centred and scaled to unit deviation; then each row is scaled so that its largest
value is 127. A few channels carry most of a residual stream's size and a few rows are hundreds of times
larger than the rest: without the first step the small channels vanish in rounding, and rows far above the
median, which neither step can hold, are kept in float16 beside the integers.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.shards import Half

LEVELS = 127
# No value is ever written as -128, so this byte in a chunk means that nothing was.
UNWRITTEN = -128
# ASSUME: rows ten times above the median norm of their chunk are attention sinks (store.MASSIVE_FACTOR).
OUTLIER_FACTOR = 10.0
HALF_MAX = float(np.finfo(np.float16).max)


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
    x = values.astype(np.float32)
    squared = np.einsum("ij,ij->i", x, x)
    outlier = squared > OUTLIER_FACTOR**2 * np.median(squared)
    normal = x[~outlier] if outlier.any() else x
    mean = normal.mean(axis=0)
    centred = normal - mean
    deviation = np.sqrt(np.einsum("ij,ij->j", centred, centred) / len(normal))
    deviation[deviation == 0] = 1.0  # a constant channel: its mean says it all
    x -= mean
    x /= deviation
    x[outlier] = 0.0
    row_scale = np.maximum(x.max(axis=1), -x.min(axis=1)) / np.float32(LEVELS)
    row_scale[row_scale == 0] = 1.0
    x /= row_scale[:, None]
    levels = np.rint(x, out=x).astype(np.int8)
    rows = np.flatnonzero(outlier)
    return Coded(levels, row_scale, mean, deviation, rows, values[rows])


def decode(coded: Coded) -> Half:
    """The chunk that `encode` was given, up to rounding, (rows, d_model) float16."""
    x = coded.levels.astype(np.float32)
    x *= coded.row_scale[:, None]
    x *= coded.deviation
    x += coded.mean
    # Rounding may reach beyond what float16 holds where the value itself did not.
    values: Half = np.clip(x, -HALF_MAX, HALF_MAX, out=x).astype(np.float16)
    values[coded.outlier_rows] = coded.outliers
    return values
