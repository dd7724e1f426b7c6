"""Models side by side: one long table, one page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrack.report import numbers, page, tables, verdicts, wording

# A colour and a mark per model; a fifth model starts over.
KINDS = ("detector", "output", "probe", "control")
MARKERS = ("o", "s", "D", "^")


def table(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """metrics.csv of every model with a column `model` before the others, models in the order given."""
    return pd.concat([found.assign(model=name)[["model", *found.columns]] for name, found in metrics.items()])


def render(
    metrics: Mapping[str, pd.DataFrame], ledgers: Mapping[str, pd.DataFrame], controls: Sequence[str], version: str
) -> str:
    """The page as HTML text: verdicts, a forest plot of the detectors, the shown signals, the headline claim.

    Args:
        metrics, ledgers: tables of evaluation/ by model, the same models in the same order.
        controls: data sets that are positive controls; version: GhostTrack's.
    """
    models = list(metrics)
    datasets = list(dict.fromkeys(name for found in metrics.values() for name in found["dataset"]))
    rows = {name: ledger.to_dict("records") for name, ledger in ledgers.items()}
    kinds = {name: tables.kinds(found, _single(found), list(controls)) for name, found in metrics.items()}
    looks = [(KINDS[number % len(KINDS)], MARKERS[number % len(MARKERS)]) for number in range(len(models))]
    return page.page(
        "comparison.html",
        models=models,
        version=version,
        summaries={name: verdicts.summary(rows[name], kinds[name]) for name in models},
        series=[{"label": name, "kind": kind, "marker": marker} for name, (kind, marker) in zip(models, looks, strict=True)],
        scale=page.scale_of(pd.concat(list(metrics.values()))),
        forest=[_lane(metrics, dataset, looks) for dataset in datasets],
        signals=[
            {"title": _capital(wording.label(shown.signal)), "rows": _rows(metrics, datasets, shown.signal)}
            for shown in tables.SHOWN
        ],
        claims=[
            {"dataset": page.POOLS.get(dataset, dataset), "cells": [verdicts.find(rows[name], dataset, tables.HEADLINE) for name in models]}
            for dataset in datasets
        ],
    )  # fmt: skip


def _single(metrics: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(metrics["dataset"]) if name not in page.POOLS]


def _rows(metrics: Mapping[str, pd.DataFrame], datasets: Sequence[str], signal: str) -> list[dict[str, Any]]:
    return [
        {
            "dataset": page.POOLS.get(dataset, dataset),
            "cells": [tables.row_of(found, dataset, signal) for found in metrics.values()],
        }
        for dataset in datasets
    ]


def _lane(metrics: Mapping[str, pd.DataFrame], dataset: str, looks: Sequence[tuple[str, str]]) -> dict[str, Any]:
    points = [
        page.point(row, name, kind, marker)
        for (name, found), (kind, marker) in zip(metrics.items(), looks, strict=True)
        if (row := tables.row_of(found, dataset, tables.DETECTOR))
    ]
    name = page.POOLS.get(dataset, dataset)
    spoken = ", ".join(f"{each.label} {numbers.score(each.value)}" for each in points)
    return {"name": name, "points": points, "note": "", "alt": f"AUROC of the detector on {name}: {spoken}"}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
