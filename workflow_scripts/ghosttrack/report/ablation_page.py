"""The page and the figure of ablations or tuning: each arm beside the run's own tracks."""

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
        "What the metrics of tracks are worth without each of their parts, and with links that mean less.",
    ),
    "tuning": (
        "Tuning",
        "Other settings of the tracker: chosen inside the training folds, scored on the rows that no choice has seen.",
    ),
}
KINDS = {
    "baseline": "the run's own",
    "choice": "chosen inside training folds",
    "tracking": "other tracks",
    "tuning": "one setting changed",
    "family": "without one family",
    "only": "one family alone",
    "cumulative": "families up to this one",
    "feature": "without one metric",
}
POOLS = {
    registry.ALL_GIVEN: "given texts, mean over data sets",
    registry.ALL_GENERATED: "the model's own answers",
}
CAPTION = (
    "Change of the AUROC against the run's own tracks, with its interval; a dot right of the line means that the arm is better. "
    "Filled: {first}; hollow: {others}."
)


def draw(table: pd.DataFrame) -> Figure:
    """Differences to the baseline over all given texts (or, without any, generated ones), one line an arm.

    Args:
        table: as `ablations/ablations.csv`.
    """
    part = _shown(table)
    arms = list(dict.fromkeys(part["arm"]))
    detectors = list(dict.fromkeys(part["detector"]))
    figure = Figure(figsize=(6.4, 0.8 + 0.17 * max(len(arms), 4)), layout="constrained")
    axes = figure.subplots()
    for number, detector in enumerate(detectors):
        found = part[part["detector"] == detector].set_index("arm").reindex(arms)
        height = [place + 0.22 * number for place in range(len(arms))]
        colour = DETECTOR_COLOUR if not number else NULL_COLOUR
        axes.hlines(height, found["difference_low"], found["difference_high"], color=colour, lw=1)
        axes.plot(
            found["difference"],
            height,
            "o",
            ms=3.5,
            color=colour,
            mfc=None if not number else "none",
            label=detector,
        )
    axes.axvline(0, color=MUTED, ls="--", lw=0.8)
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set(xlabel="AUROC minus that of the run's own tracks")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Arms against the baseline, in the scope that the figure shows."""
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
        study: of TITLES; table: as `ablations/STUDY.csv`; choices: as `ablations/tuning_choices.csv`, empty for ablations.
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
        picture=pictures.embed_one(figures, f"{title}: change of the AUROC by arm", caption),
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
    """How many folds of all data sets chose each arm, most first."""
    counts = (
        choices.groupby(["detector", "arm"]).size().reset_index(name="folds")
        if len(choices)
        else choices
    )
    if counts.empty:
        return []
    ordered = counts.sort_values(["detector", "folds", "arm"], ascending=[True, False, True])
    return [{str(key): value for key, value in row.items()} for row in ordered.to_dict("records")]
