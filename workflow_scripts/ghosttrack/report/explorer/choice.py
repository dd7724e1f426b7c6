"""Which texts the explorer shows when there are too many, and on which it opens: both by rule, failures included."""

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd

# Texts of each kind on which the page opens, each of another group.
PICKS = 3
# (name, label, highest score first): a hit and a failure for each label.
KINDS = (
    ("clearest hit", 1, True),
    ("clearest miss", 1, False),
    ("clearest false alarm", 0, True),
    ("clearest true text", 0, False),
)


class Pick(NamedTuple):
    """A text to start with: its row, and which kind of extreme it is."""

    row: int
    why: str


def choose(table: pd.DataFrame, limit: int) -> np.ndarray:
    """Rows to show, ascending: at most `limit`, whole groups, each set in proportion.

    Within a set, groups are taken in turns from three orders: clearest failures first, clearest hits first, and the
    order of a hash of the group's name, which knows nothing of the scores. A set without scores has the last alone.

    Args:
        table: columns dataset, group, label, score (probability of label 1, NaN if the set was not run).
    """
    if len(table) <= limit:
        return np.arange(len(table))
    kept: list[int] = []
    for _, part in table.assign(row=np.arange(len(table))).groupby("dataset", sort=False):
        share = limit * len(part) // len(table)
        rows = {str(name): list(found["row"]) for name, found in part.groupby("group", sort=False)}
        for name in _in_turns(part):
            if len(rows[name]) <= share:
                kept += rows[name]
                share -= len(rows[name])
    return np.array(sorted(kept), dtype=np.int64)


def _in_turns(part: pd.DataFrame) -> list[str]:
    """Names of a set's groups, in turns from the three orders."""
    wrong = (part["label"] - part["score"]).abs().groupby(part["group"].astype(str), sort=False)
    hashed = sorted(
        set(part["group"].astype(str)), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    failures = wrong.max().dropna().sort_values(ascending=False, kind="stable").index
    hits = wrong.min().dropna().sort_values(kind="stable").index
    longest = len(hashed)
    turns = [
        order[place]
        for place in range(longest)
        for order in (failures, hits, hashed)
        if place < len(order)
    ]
    return list(dict.fromkeys(str(name) for name in turns))


def picks(table: pd.DataFrame) -> list[Pick]:
    """The texts to start with: the extremes of the score for each label, no group twice, sets taken in turns."""
    found: list[Pick] = []
    taken: set[tuple[str, str]] = set()
    for why, label, highest in KINDS:
        rows = table.assign(row=np.arange(len(table)))
        rows = rows[(rows["label"] == label) & rows["score"].notna()]
        rows = rows.sort_values("score", ascending=not highest, kind="stable")
        rows = rows.drop_duplicates(["dataset", "group"])
        keys = zip(rows["dataset"], rows["group"].astype(str), strict=True)
        free = np.array([key not in taken for key in keys], dtype=bool)  # of no text at all, too
        # The best of every set come before the second best of any.
        rows = rows[free].assign(turn=lambda kept: kept.groupby("dataset", sort=False).cumcount())
        best = rows.sort_values("turn", kind="stable").head(PICKS)
        found += [Pick(int(row), why) for row in best["row"]]
        taken |= set(zip(best["dataset"], best["group"].astype(str), strict=True))
    return found


def twins(table: pd.DataFrame) -> np.ndarray:
    """Row of each text's twin, (rows,), -1 without one: same set and group, the other label, the same prompt if any has it.

    Args:
        table: columns dataset, group, label, prompt.
    """
    twin = np.full(len(table), -1, dtype=np.int64)
    for _, part in table.assign(row=np.arange(len(table))).groupby(
        ["dataset", "group"], sort=False
    ):
        members = part[["row", "label", "prompt"]].to_numpy(dtype=object)
        for row, label, prompt in members:
            others = [other for other in members if other[1] != label]
            same = [other for other in others if other[2] == prompt]
            if others:
                twin[row] = (same or others)[0][0]
    return twin
