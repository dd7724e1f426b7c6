"""Redundant metrics of a data set: constant ones, and those that repeat an earlier one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Absolute correlation above which a metric repeats another.
COLLINEAR = 0.999
# Minimum number of examples for a correlation.
MIN_EXAMPLES = 3


def redundancy(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per metric, in order: `metric`, `family`, `constant`, `repeats`, `correlation`.

    `repeats` is the first earlier metric with an absolute correlation above COLLINEAR, else "".
    `correlation` is the correlation with that metric, or else the largest in absolute value with an
    earlier one. It is NaN for a constant metric and without an earlier metric that varies. Two
    metrics are compared on the examples where both are known.
    """
    constant = ~_varies(table, names)
    correlation = table[list(names)].corr(min_periods=MIN_EXAMPLES).fillna(0.0).to_numpy()
    rows = []
    for index, name in enumerate(names):
        earlier = np.flatnonzero(~constant[:index])
        closest, signed = "", float("nan")
        if len(earlier) and not constant[index]:
            size = np.abs(correlation[index, earlier])
            # argmax of a boolean array: its first true element.
            best = earlier[int(np.argmax(size > COLLINEAR if (size > COLLINEAR).any() else size))]
            signed = float(correlation[index, best])
            closest = names[best] if abs(signed) > COLLINEAR else ""
        rows.append((name, name.split("_")[0], bool(constant[index]), closest, signed))
    return pd.DataFrame(rows, columns=["metric", "family", "constant", "repeats", "correlation"])


def rank(table: pd.DataFrame, names: Sequence[str]) -> int:
    """Rank of the matrix of standardised metrics; an unknown value counts as its metric's mean."""
    varying = table[
        [name for name, varies in zip(names, _varies(table, names), strict=True) if varies]
    ]
    if varying.empty:
        return 0
    standard = (varying - varying.mean()) / varying.std(ddof=0)
    return int(np.linalg.matrix_rank(standard.fillna(0.0).to_numpy(np.float64)))


def _varies(table: pd.DataFrame, names: Sequence[str]) -> NDArray[np.bool_]:
    """(metrics,) whether any two examples differ."""
    values = table[list(names)]
    # The mean of a constant over tokens differs from it by rounding only.
    return np.asarray(values.std(ddof=0).fillna(0.0) > 1e-12 * values.abs().max().fillna(0.0))
