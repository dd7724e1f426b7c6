"""Models side by side: one long table, one page."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import ghosttrack
from ghosttrack import scores as registry
from ghosttrack.evaluation import paired
from ghosttrack.report import numbers, page, verdicts
from ghosttrack.runtime import files, tables
from ghosttrack.settings import EvaluationSettings

# A colour and a mark per model; a fifth model starts over.
KINDS = ("detector", "output", "probe", "control")
MARKERS = ("o", "s", "D", "^")


class Run(NamedTuple):
    """What a comparison reads of one model's run."""

    metrics: pd.DataFrame
    ledger: pd.DataFrame
    scored: paired.RunScores


def read(folder: Path) -> Run:
    """A finished run, results/MODEL.

    Raises:
        UserError: naming the file that is missing or lacks a column.
    """
    scores = tables.read_parquet(folder / "detection" / "scores.parquet")
    texts = [
        tables.read_parquet(
            folder / "datasets" / str(name) / "examples.parquet", columns=["id", "text"]
        ).assign(dataset=name)
        for name in scores["dataset"].unique()
    ]
    return Run(
        registry.read(folder / "evaluation" / "metrics.csv", registry.METRICS),
        registry.read(folder / "evaluation" / "ledger.csv", registry.LEDGER),
        paired.RunScores(scores, pd.concat(texts, ignore_index=True)),
    )


def write(
    runs: Mapping[str, Run],
    folder: Path,
    controls: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
) -> None:
    """Write metrics.csv, differences.csv and comparison.html of several runs into a folder."""
    differences = paired.differences(
        {name: run.scored for name, run in runs.items()}, controls, settings, seed
    )
    for name, found in (
        ("metrics.csv", table({name: run.metrics for name, run in runs.items()})),
        ("differences.csv", differences),
    ):
        with files.atomic_write(folder / name) as stream:
            tables.write_csv(found, stream)
    with files.atomic_write(folder / "comparison.html") as stream:
        stream.write(render(runs, differences, controls, ghosttrack.__version__))


def table(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """metrics.csv of every model with a column `model` before the others, models in the order given."""
    return pd.concat(
        [found.assign(model=name)[["model", *found.columns]] for name, found in metrics.items()]
    )


def render(
    runs: Mapping[str, Run], differences: pd.DataFrame, controls: Sequence[str], version: str
) -> str:
    """The page as HTML text: verdicts, paired differences, a forest plot of the detectors, the shown scores, the headline claim.

    Args:
        runs: by model; differences: of paired.differences; controls: data sets that are positive controls; version: GhostTrack's.
    """
    models, metrics = list(runs), {name: run.metrics for name, run in runs.items()}
    datasets = list(dict.fromkeys(name for found in metrics.values() for name in found["dataset"]))
    rows = {name: run.ledger.to_dict("records") for name, run in runs.items()}
    kinds = {
        name: registry.kinds(found, _single(found), list(controls))
        for name, found in metrics.items()
    }
    looks = [
        (KINDS[number % len(KINDS)], MARKERS[number % len(MARKERS)])
        for number in range(len(models))
    ]
    return page.page(
        "comparison.html",
        models=models,
        version=version,
        summaries={name: verdicts.summary(rows[name], kinds[name]) for name in models},
        series=[
            {"label": name, "kind": kind, "marker": marker}
            for name, (kind, marker) in zip(models, looks, strict=True)
        ],
        scale=page.scale_of(pd.concat(list(metrics.values()))),
        forest=[_lane(metrics, dataset, looks) for dataset in datasets],
        paired=[_paired(differences, *pair, datasets) for pair in combinations(models, 2)],
        columns=[_capital(registry.label(shown.name)) for shown in registry.SHOWN],
        scores=[
            {
                "title": _capital(registry.label(shown.name)),
                "rows": _rows(metrics, datasets, shown.name),
            }
            for shown in registry.SHOWN
        ],
        claims=[
            {
                "dataset": page.POOLS.get(dataset, dataset),
                "cells": [verdicts.find(rows[name], dataset, registry.HEADLINE) for name in models],
            }
            for dataset in datasets
        ],
    )


def _paired(
    differences: pd.DataFrame, reference: str, model: str, datasets: Sequence[str]
) -> dict[str, Any]:
    """Two models: a sentence on the detector's mean difference, and a row per data set that they share."""
    own = differences[(differences["reference"] == reference) & (differences["model"] == model)]
    cells = {(row["dataset"], row["score"]): row for row in own.to_dict("records")}
    named = sorted(
        set(own["dataset"]), key=lambda name: (name != registry.ALL_GIVEN, datasets.index(name))
    )
    rows = []
    for name in named:
        found = [cells.get((name, shown.name)) for shown in registry.SHOWN]
        any_row = next(row for row in found if row)
        rows.append(
            {
                "dataset": page.POOLS.get(name, name),
                "n": any_row["n"],
                "share": any_row["share"],
                "cells": found,
            }
        )
    return {
        "reference": reference,
        "model": model,
        "rows": rows,
        "sentence": _sentence(cells, reference, model),
    }


def _sentence(
    cells: Mapping[tuple[str, str], Mapping[str, Any]], reference: str, model: str
) -> str:
    row = cells.get((registry.ALL_GIVEN, registry.DETECTOR))
    if row is None or math.isnan(row["difference"]):
        return ""
    interval = (
        f"{numbers.signed(row['difference_low'])} to {numbers.signed(row['difference_high'])}"
    )
    text = f"On the {row['n']:,} texts that both have, the detector of {model} reaches a mean AUROC of {row['auroc_model']:.3f}, that of {reference} {row['auroc_reference']:.3f}"
    verdict = (
        row["verdict"]
        if row["verdict"] == registry.ESTABLISHED
        else f"{row['verdict']}: {row['reason']}"
    )
    return f"{text}: a difference of {numbers.signed(row['difference'])} ({interval}), {verdict}."


def _single(metrics: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(metrics["dataset"]) if name not in page.POOLS]


def _rows(
    metrics: Mapping[str, pd.DataFrame], datasets: Sequence[str], score_name: str
) -> list[dict[str, Any]]:
    return [
        {
            "dataset": page.POOLS.get(dataset, dataset),
            "cells": [registry.row_of(found, dataset, score_name) for found in metrics.values()],
        }
        for dataset in datasets
    ]


def _lane(
    metrics: Mapping[str, pd.DataFrame], dataset: str, looks: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    points = [
        page.point(row, name, kind, marker)
        for (name, found), (kind, marker) in zip(metrics.items(), looks, strict=True)
        if (row := registry.row_of(found, dataset, registry.DETECTOR))
    ]
    name = page.POOLS.get(dataset, dataset)
    spoken = ", ".join(f"{each.label} {numbers.score(each.value)}" for each in points)
    return {
        "name": name,
        "points": points,
        "note": "",
        "alt": f"AUROC of the detector on {name}: {spoken}",
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
