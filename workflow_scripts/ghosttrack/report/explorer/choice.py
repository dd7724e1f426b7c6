"""Selection of the texts that the explorer shows, and of those that it suggests to start with."""

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.report.misled import MISLED, NOT_MISLED

# Suggested texts of each kind, all from different groups.
PICKS = 3
# Name, label, whether the highest score comes first: a hit and a failure for each label.
KINDS = (
    ("clearest hit", 1, True),
    ("clearest miss", 1, False),
    ("clearest false alarm", 0, True),
    ("clearest true text", 0, False),
)


# Name, and what the output does after a false remark, as in report/misled.py.
SWAYED = (("misled", MISLED), ("not misled", NOT_MISLED))


class Pick(NamedTuple):
    """A suggested text: its row, and its kind of KINDS or SWAYED."""

    row: int
    why: str


def choose(table: pd.DataFrame, limit: int) -> np.ndarray:
    """Rows to show, ascending: at most `limit`, whole groups, data sets in proportion to their size.

    Within a data set, groups are taken in turns from three orders: clearest failures first,
    clearest hits first, and by a hash of the group's name, which is independent of the scores.
    A data set without scores has only the last order. If no group of a data set fits, a part of its
    first one is shown.

    Args:
        table: columns dataset, group, label, score (probability of label 1, NaN if not scored).
        limit: maximum number of rows.
    """
    if len(table) <= limit:
        return np.arange(len(table))
    kept: list[int] = []
    for _, part in table.assign(row=np.arange(len(table))).groupby("dataset", sort=False):
        share = limit * len(part) // len(table)
        rows = {str(name): list(group["row"]) for name, group in part.groupby("group", sort=False)}
        turns = _in_turns(part)
        if all(len(group) > share for group in rows.values()):
            kept += rows[turns[0]][:share]
            continue
        for name in turns:
            if len(rows[name]) <= share:
                kept += rows[name]
                share -= len(rows[name])
    return np.array(sorted(kept), dtype=np.int64)


def _in_turns(part: pd.DataFrame) -> list[str]:
    """Names of the groups of a data set, in turns from the three orders."""
    wrong = (part["label"] - part["score"]).abs().groupby(part["group"].astype(str), sort=False)
    hashed = sorted(
        set(part["group"].astype(str)), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    failures = wrong.max().dropna().sort_values(ascending=False, kind="stable").index
    hits = wrong.min().dropna().sort_values(kind="stable").index
    turns = [
        order[rank]
        for rank in range(len(hashed))
        for order in (failures, hits, hashed)
        if rank < len(order)
    ]
    return list(dict.fromkeys(str(name) for name in turns))


def picks(table: pd.DataFrame) -> list[Pick]:
    """Suggested texts: extremes of the score by label, from different groups, data sets in turns.

    If candidate answers are compared, also those after a false remark with the largest difference.

    Args:
        table: columns dataset, group, label, score; sway and margin if there are remarks.
    """
    chosen: list[Pick] = []
    taken: set[tuple[str, str]] = set()
    every = table.assign(row=np.arange(len(table)))
    orders = []
    for why, label, highest in KINDS:
        rows = every[(every["label"] == label) & every["score"].notna()]
        orders.append((why, rows.sort_values("score", ascending=not highest, kind="stable")))
    for why, sway in SWAYED if "sway" in table else ():
        rows = every[(every["sway"] == sway).fillna(False) & every["margin"].notna()]
        orders.append((why, rows.sort_values("margin", ascending=False, kind="stable")))
    for why, rows in orders:
        rows = rows.drop_duplicates(["dataset", "group"])
        keys = zip(rows["dataset"], rows["group"].astype(str), strict=True)
        free = np.array([key not in taken for key in keys], dtype=bool)  # also if empty
        # The best of every data set come before the second best of any.
        rows = rows[free].assign(turn=lambda kept: kept.groupby("dataset", sort=False).cumcount())
        best = rows.sort_values("turn", kind="stable").head(PICKS)
        chosen += [Pick(int(row), why) for row in best["row"]]
        taken |= set(zip(best["dataset"], best["group"].astype(str), strict=True))
    return chosen


def counterparts(table: pd.DataFrame) -> np.ndarray:
    """Row of the counterpart of each text, (rows,), or -1.

    The counterpart has the same data set and group and the other label, preferably the same prompt.

    Args:
        table: columns dataset, group, label, prompt.
    """
    counterpart = np.full(len(table), -1, dtype=np.int64)
    for _, part in table.assign(row=np.arange(len(table))).groupby(
        ["dataset", "group"], sort=False
    ):
        members = part[["row", "label", "prompt"]].to_numpy(dtype=object)
        for row, label, prompt in members:
            others = [other for other in members if other[1] != label]
            same = [other for other in others if other[2] == prompt]
            if others:
                counterpart[row] = (same or others)[0][0]
    return counterpart
