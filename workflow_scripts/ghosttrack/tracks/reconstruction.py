"""Metrics of the reconstruction error over layers.

The values of a text are means over its answer tokens, so they do not grow with the answer's length.
e_l is the error of a token at layer l of L (see `token_errors`).

| name | formula |
|---|---|
| reconstruction_mean, _std, _max, _min, _final | of e_l over layers; e_L |
| reconstruction_growth | e_L - e_1 |
| reconstruction_argmax | position of the largest e_l: 0 = first layer, 1 = last layer |
| reconstruction_late_early | mean e_l of the second half of the layers / mean of the first half; without the middle layer |
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NAMES = (
    "reconstruction_mean",
    "reconstruction_std",
    "reconstruction_max",
    "reconstruction_min",
    "reconstruction_final",
    "reconstruction_growth",
    "reconstruction_argmax",
    "reconstruction_late_early",
)


def measure(errors: NDArray[np.float32]) -> Floats:
    """All metrics of every token, (rows, 8) in the order of NAMES; NaN where an error is NaN.

    Args:
        errors: (rows, layers).
    """
    e = errors.astype(np.float64)
    layers = e.shape[1]
    half = max(1, layers // 2)
    argmax = np.where(np.isnan(e), -np.inf, e).argmax(1) / max(layers - 1, 1)
    early = e[:, :half].mean(1)
    columns = [
        e.mean(1),
        e.std(1),
        e.max(1),
        e.min(1),
        e[:, -1],
        e[:, -1] - e[:, 0],
        argmax,
        e[:, -half:].mean(1) / np.where(early == 0, 1.0, early),
    ]
    values = np.stack(columns, axis=1)
    values[np.isnan(e).any(1)] = np.nan
    return values
