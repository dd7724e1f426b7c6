"""Which metrics carry nothing of their own on this data: constant ones, and those that repeat an earlier one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

# Correlations beyond this are one number told twice.
COLLINEAR = 0.999


def redundancy(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per metric, in order: `metric`, `family`, `constant`, `repeats`, `correlation`.

    `repeats` is the first earlier metric with which the correlation exceeds COLLINEAR in size, else ""; `correlation` is
    that with this metric, else with the one that comes closest (NaN: constant, or no earlier one that varies).
    """
    values = table[list(names)].to_numpy(np.float64)
    spread = values.std(0)
    # A mean over tokens of one constant differs from it by rounding only.
    constant = spread <= 1e-12 * np.maximum(np.abs(values).max(0, initial=0.0), 1e-300)
    standard = (values - values.mean(0)) / np.where(constant, 1.0, spread)
    correlation = standard.T @ standard / max(len(values), 1)
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
    """How many independent directions the metrics have together."""
    values = table[list(names)].to_numpy(np.float64)
    spread = values.std(0)
    kept = spread > 1e-12 * np.maximum(np.abs(values).max(0, initial=0.0), 1e-300)
    if not kept.any():
        return 0
    return int(np.linalg.matrix_rank((values - values.mean(0))[:, kept] / spread[kept]))
