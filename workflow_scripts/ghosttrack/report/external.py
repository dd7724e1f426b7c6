"""Verdicts on detectors from outside this project, in the report and on a page of `make judge`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.report import verdicts
from ghosttrack.report.numbers import MINUS, signed
from ghosttrack.report.verdicts import ClaimText

# End of the claim that decides on a score from outside.
_DECISIVE = " beats its best control"
OUTSIDE = (
    "The scores of a table were made outside the folds. If they were fitted on these texts, their "
    "AUROC is too high, and no test here can show it."
)


class JudgedRow(NamedTuple):
    """One score on one data set: its row of metrics.csv and its claim against the best control.

    control: label of the best control; row: the claim's row of the ledger.
    """

    score: str
    dataset: str
    metrics: dict[str, Any]
    control: str
    row: dict[str, Any]
    claim: ClaimText


class Judged(NamedTuple):
    """All that a page says of scores from outside; `rows` is empty without any.

    notes: sentences on scores below chance; tables: whether any score is of a table.
    """

    rows: list[JudgedRow]
    notes: list[str]
    tables: bool


def judged(
    metrics: pd.DataFrame, ledger: pd.DataFrame, pools: Mapping[str, str] = verdicts.POOLS
) -> Judged:
    """The scores from outside in the tables of a run, means over data sets first.

    `pools`: names of the means over data sets.
    """
    own = ledger[ledger["ours"].map(registry.is_external).astype(bool)]  # also of an empty table
    own = own[[str(claim).endswith(_DECISIVE) for claim in own["claim"]]]
    rows = []
    for line in own.to_dict("records"):
        found = {str(key): value for key, value in line.items()}
        score, dataset = str(found["ours"]), str(found["dataset"])
        measured = registry.row_of(metrics, dataset, score)
        if measured is None:  # a relation of a data set, which metrics.csv does not list
            continue
        rows.append(
            JudgedRow(
                registry.get(score).label,
                pools.get(dataset, dataset),
                measured,
                registry.label(str(found["control"])),
                found,
                verdicts.claim_of(found),
            )
        )
    scores = list(dict.fromkeys(row.row["ours"] for row in rows))
    rows.sort(
        key=lambda row: (scores.index(row.row["ours"]), row.row["dataset"] not in verdicts.POOLS)
    )
    return Judged(rows, opposite(metrics), any(name.startswith(registry.TABLE) for name in scores))


def pool_names(members: Mapping[str, int]) -> dict[str, str]:
    """Names of means over the judged data sets; `members`: the number of data sets of each."""
    return {
        pool: f"mean of the {count} judged data sets, {verdicts.POOLS[pool].partition(', ')[2]}"
        for pool, count in members.items()
    }


def opposite(metrics: pd.DataFrame) -> list[str]:
    """A sentence for each score from outside that is below chance on all its data sets."""
    notes = []
    own = metrics[metrics["score"].map(registry.is_external).astype(bool)]
    for name, part in own[~own["dataset"].isin(verdicts.POOLS)].groupby("score", sort=False):
        measured = part[part["auroc"].notna()]
        if len(measured) and (measured["auroc_high"] < 0.5).all():
            where = "every data set" if len(measured) > 1 else f"{measured['dataset'].iloc[0]}"
            remedy = (
                "judge it with --lower-is-hallucinated, or set lower_is_hallucinated: true"
                if str(name).startswith(registry.TABLE)
                else "let the class return the opposite sign"
            )
            notes.append(
                f"{registry.get(str(name)).label} is below chance on {where} (AUROC "
                f"{', '.join(f'{value:.3f}' for value in measured['auroc'])}). Nothing was "
                f"reversed. If a low value means hallucinated, {remedy}."
            )
    return notes


def summary(found: Judged) -> str:
    """On how many data sets each score beats its best control, in one sentence."""
    parts = []
    for score in dict.fromkeys(row.score for row in found.rows):
        single = [
            row
            for row in found.rows
            if row.score == score and row.row["dataset"] not in verdicts.POOLS
        ]
        won = sum(row.row["verdict"] == registry.ESTABLISHED for row in single)
        sets = "data set" if len(single) == 1 else "data sets"
        parts.append(f"{score} beats its best control on {won} of {len(single)} {sets}")
    return f"{'; '.join(parts)}."


def as_text(rows: Sequence[JudgedRow]) -> str:
    """The verdicts as a table of plain text."""
    cells = [("score", "data set", "texts", "AUROC", "best control", "difference", "verdict")]
    for row in rows:
        line, measured = row.row, row.metrics
        reason = line.get("reason")
        why = f": {reason}" if isinstance(reason, str) and reason else ""
        cells.append(
            (
                row.score,
                row.dataset,
                f"{int(line['n'])}",
                f"{_number(measured['auroc'])} ({_number(measured['auroc_low'])} to "
                f"{_number(measured['auroc_high'])})",
                f"{row.control.partition(':')[0]} {_number(line['auroc_control'])}",
                f"{_signed(line['difference'])} ({_signed(line['difference_low'])} to "
                f"{_signed(line['difference_high'])})",
                f"{line['verdict']}{why}",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "unknown" if math.isnan(value) else signed(value).replace(MINUS, "-")
