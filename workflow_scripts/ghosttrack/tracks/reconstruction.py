"""Dynamics of the reconstruction error over layers.

Values of a text are means over its answer tokens, so none grows with the answer's length. e_l: error of a token
at layer l of L (see `token_errors`), in the order of the layers.

| name | formula |
|---|---|
| reconstruction_mean, _std, _max, _min, _final | of e_l over layers; e_L |
| reconstruction_growth | e_L - e_1 |
| reconstruction_argmax | place of the largest e_l, 0 = first layer, 1 = last |
| reconstruction_late_early | mean e_l of the later half of the layers / that of the earlier half; the middle one is in neither |
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
    """All metrics of every token, (rows, 8) in the order of NAMES; NaN where the errors are.

    Args:
        errors: (rows, layers).
    """
    e = errors.astype(np.float64)
    layers = e.shape[1]
    half = max(1, layers // 2)
    place = np.where(np.isnan(e), -np.inf, e).argmax(1) / max(layers - 1, 1)
    early = e[:, :half].mean(1)
    columns = [
        e.mean(1),
        e.std(1),
        e.max(1),
        e.min(1),
        e[:, -1],
        e[:, -1] - e[:, 0],
        place,
        e[:, -half:].mean(1) / np.where(early == 0, 1.0, early),
    ]
    values = np.stack(columns, axis=1)
    values[np.isnan(e).any(1)] = np.nan
    return values
