"""Which metrics carry nothing of their own on this data: constant ones, and those that repeat an earlier one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Correlations beyond this are one number told twice.
COLLINEAR = 0.999
# On fewer examples than this nothing is said of a pair.
LEAST_EXAMPLES = 3


def redundancy(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per metric, in order: `metric`, `family`, `constant`, `repeats`, `correlation`.

    `repeats` is the first earlier metric with which the correlation exceeds COLLINEAR in size, else ""; `correlation` is
    that with this metric, else with the one that comes closest (NaN: constant, or no earlier one that varies). Two
    metrics are compared on the examples that have both.
    """
    constant = ~_varies(table, names)
    correlation = table[list(names)].corr(min_periods=LEAST_EXAMPLES).fillna(0.0).to_numpy()
    rows = []
    for place, name in enumerate(names):
        earlier = np.flatnonzero(~constant[:place])
        closest, found = "", float("nan")
        if len(earlier) and not constant[place]:
            size = np.abs(correlation[place, earlier])
            # argmax of flags: the first one that is set.
            best = earlier[int(np.argmax(size > COLLINEAR if (size > COLLINEAR).any() else size))]
            found = float(correlation[place, best])
            closest = names[best] if abs(found) > COLLINEAR else ""
        rows.append((name, name.split("_")[0], bool(constant[place]), closest, found))
    return pd.DataFrame(rows, columns=["metric", "family", "constant", "repeats", "correlation"])


def rank(table: pd.DataFrame, names: Sequence[str]) -> int:
    """How many independent directions the metrics have together; an unknown value counts as its metric's mean."""
    kept = table[
        [name for name, varies in zip(names, _varies(table, names), strict=True) if varies]
    ]
    if kept.empty:
        return 0
    standard = (kept - kept.mean()) / kept.std(ddof=0)
    return int(np.linalg.matrix_rank(standard.fillna(0.0).to_numpy(np.float64)))


def _varies(table: pd.DataFrame, names: Sequence[str]) -> NDArray[np.bool_]:
    """(metrics,) whether any two examples differ."""
    values = table[list(names)]
    # A mean over tokens of one constant differs from it by rounding only.
    return np.asarray(values.std(ddof=0).fillna(0.0) > 1e-12 * values.abs().max().fillna(0.0))
