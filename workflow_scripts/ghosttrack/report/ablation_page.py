"""Page and figure of the ablations or the tuning: every arm against the tracks of the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ghosttrack import scores as registry
from ghosttrack.report import page, pictures
from ghosttrack.report.figures import DETECTOR_COLOUR, MUTED, NULL_COLOUR

TITLES = {
    "ablations": (
        "Ablations",
        "AUROC of detectors on tracking metrics without some metrics, and with null links.",
    ),
    "tuning": (
        "Tuning",
        "AUROC with other tracker settings. Settings are chosen in the training folds and "
        "evaluated on the test folds.",
    ),
}
KINDS = {
    "baseline": "the tracks of the run",
    "choice": "settings chosen in the training folds",
    "tracking": "other tracks",
    "tuning": "one setting changed",
    "family": "without one metric family",
    "only": "one metric family alone",
    "cumulative": "metric families up to this one",
    "feature": "without one metric",
}
POOLS = {
    registry.ALL_GIVEN: "given texts, mean over data sets",
    registry.ALL_GENERATED: "the model's own answers",
    registry.ALL_MISLED: "given texts after remarks, mean over data sets",
}
CAPTION = (
    "AUROC of each arm minus that of the baseline, with its interval. Right of the line the arm is "
    "better. Filled: {first}; hollow: {others}."
)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC differences to the baseline, one row per arm.

    The scope is all given texts, else the model's own answers, else all given texts after remarks,
    else the first data set.

    Args:
        table: ablations/ablations.csv or ablations/tuning.csv.
    """
    part = _in_one_scope(table)
    arms = list(dict.fromkeys(part["arm"]))
    detectors = list(dict.fromkeys(part["detector"]))
    figure = Figure(figsize=(6.4, 0.8 + 0.17 * max(len(arms), 4)), layout="constrained")
    axes = figure.subplots()
    for number, detector in enumerate(detectors):
        rows = part[part["detector"] == detector].set_index("arm").reindex(arms)
        heights = [position + 0.22 * number for position in range(len(arms))]
        colour = DETECTOR_COLOUR if not number else NULL_COLOUR
        axes.hlines(heights, rows["difference_low"], rows["difference_high"], color=colour, lw=1)
        axes.plot(
            rows["difference"],
            heights,
            "o",
            ms=3.5,
            color=colour,
            mfc=None if not number else "none",
            label=detector,
        )
    axes.axvline(0, color=MUTED, ls="--", lw=0.8)
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set(xlabel="AUROC minus that of the baseline")
    if detectors:
        figure.legend(loc="outside upper left", ncols=4)
    return figure


def _in_one_scope(table: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with the baseline in the first of the scopes of POOLS that the table has."""
    scopes = [name for name in POOLS if (table["dataset"] == name).any()] or list(
        table["dataset"].unique()
    )[:1]
    return table[
        table["dataset"].isin(scopes[:1])
        & (table["against"] == "baseline")
        & (table["arm"] != "baseline")
    ]


def render(
    model: str,
    study: str,
    table: pd.DataFrame,
    choices: pd.DataFrame,
    figures: Sequence[Path],
    version: str,
) -> str:
    """The page as HTML text.

    Args:
        model: name of the model.
        study: a key of TITLES.
        table: ablations/STUDY.csv.
        choices: ablations/tuning_choices.csv; empty for the ablations.
        figures: the drawn figure in every format.
        version: of GhostTrack.
    """
    title, about = TITLES[study]
    detectors = list(dict.fromkeys(table["detector"]))
    caption = CAPTION.format(
        first=detectors[0] if detectors else "", others=", ".join(detectors[1:]) or "none"
    )
    return page.page(
        "ablations.html",
        model=model,
        version=version,
        title=title,
        about=about,
        picture=pictures.embed_one(figures, f"{title}: AUROC difference by arm", caption),
        scopes=[
            {"title": name, "detector": detector, "rows": _rows(part)}
            for scope, name in POOLS.items()
            for detector, part in table[table["dataset"] == scope].groupby("detector", sort=False)
        ],
        choices=_counts(choices),
        folds=len(choices),
    )


def _rows(part: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): value for key, value in row.items()} | {"about": KINDS[row["kind"]]}
        for row in part.to_dict("records")
    ]


def _counts(choices: pd.DataFrame) -> list[dict[str, Any]]:
    """Number of folds that chose each arm, over all data sets, most frequent first."""
    counts = (
        choices.groupby(["detector", "arm"]).size().reset_index(name="folds")
        if len(choices)
        else choices
    )
    if counts.empty:
        return []
    ordered = counts.sort_values(["detector", "folds", "arm"], ascending=[True, False, True])
    return [{str(key): value for key, value in row.items()} for row in ordered.to_dict("records")]
