"""Comparison of several models: one table of all metrics, one of paired differences, one page."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import ghosttrack
from ghosttrack import scores as registry
from ghosttrack.evaluation import paired
from ghosttrack.facts.examples import as_read
from ghosttrack.report import page, verdicts
from ghosttrack.report.lanes import Point
from ghosttrack.runtime import files, records, tables
from ghosttrack.runtime.run_paths import RunPaths
from ghosttrack.settings import EvaluationSettings

# CSS class and marker of each model: 16 pairs, of which the first four differ in both.
KINDS = ("detector", "output", "probe", "control")
MARKERS = ("o", "s", "D", "^")


# Paired differences at the top of the page.
KEY_PAIRS = 3


class FinishedRun(NamedTuple):
    """Tables of one model's finished run."""

    metrics: pd.DataFrame
    ledger: pd.DataFrame
    scored: paired.RunScores


def read(folder: Path) -> FinishedRun:
    """Read the tables of the run in `folder`, results/MODEL.

    Raises:
        UserError: a file is missing, lacks a column, or is not what a job of the run wrote.
    """
    run = RunPaths(folder)
    metrics, ledger = run.evaluation / "metrics.csv", run.evaluation / "ledger.csv"
    records.check_run(folder, [run.detection / "scores.parquet", metrics, ledger])
    scores = tables.read_parquet(run.detection / "scores.parquet")
    examples = {str(name): run.examples(str(name)) for name in scores["dataset"].unique()}
    records.check_run(folder, examples.values())
    read_texts = {name: tables.read_parquet(path) for name, path in examples.items()}
    texts = [
        pd.DataFrame({"dataset": name, "id": table["id"], "text": as_read(table)})
        for name, table in read_texts.items()
    ]
    return FinishedRun(
        registry.read(metrics, registry.METRICS),
        registry.read(ledger, registry.LEDGER),
        paired.RunScores(scores, pd.concat(texts, ignore_index=True)),
    )


def write(
    runs: Mapping[str, FinishedRun],
    folder: Path,
    controls: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
) -> None:
    """Write metrics.csv, differences.csv and comparison.html of several runs to `folder`."""
    differences = paired.differences(
        {name: run.scored for name, run in runs.items()}, controls, settings, seed
    )
    for name, content in (
        ("metrics.csv", table({name: run.metrics for name, run in runs.items()})),
        ("differences.csv", differences),
    ):
        with files.atomic_write(folder / name) as stream:
            tables.write_csv(content, stream)
    with files.atomic_write(folder / "comparison.html") as stream:
        stream.write(render(runs, differences, ghosttrack.__version__))


def table(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The metrics of all models, one below the other, with `model` as the first column."""
    return pd.concat(
        [part.assign(model=name)[["model", *part.columns]] for name, part in metrics.items()]
    )


def render(runs: Mapping[str, FinishedRun], differences: pd.DataFrame, version: str) -> str:
    """The page as HTML text.

    Args:
        runs: by model.
        differences: as returned by `paired.differences`.
        version: of GhostTrack.
    """
    models, metrics = list(runs), {name: run.metrics for name, run in runs.items()}
    # Pooled rows first.
    datasets = sorted(
        dict.fromkeys(name for part in metrics.values() for name in part["dataset"]),
        key=lambda name: name not in page.POOLS,
    )
    ledgers = {name: run.ledger.to_dict("records") for name, run in runs.items()}
    looks = looks_of(len(models))
    pairs = [_paired(differences, *pair, datasets) for pair in combinations(models, 2)]
    key_rows = [pair["detector"] for pair in pairs if pair["detector"]][:KEY_PAIRS]
    return page.page(
        "comparison.html",
        models=models,
        version=version,
        summary=summary(ledgers),
        key_claims=[_key_claim(row) for row in key_rows],
        difference_axis=verdicts.difference_axis(key_rows),
        summaries={name: verdicts.summary(ledgers[name]) for name in models},
        series=[
            {"label": name, "kind": kind, "marker": marker}
            for name, (kind, marker) in zip(models, looks, strict=True)
        ],
        axis=page.auroc_axis(pd.concat(list(metrics.values()))),
        forest=[_forest_row(metrics, dataset, looks) for dataset in datasets],
        paired=pairs,
        columns=[verdicts.capital(registry.label(shown.name)) for shown in registry.SHOWN],
        scores=[
            {
                "title": verdicts.capital(registry.label(shown.name)),
                "rows": _rows(metrics, datasets, shown.name),
            }
            for shown in registry.SHOWN
        ],
        claims=[
            {
                "dataset": page.POOLS.get(dataset, dataset),
                "cells": [
                    verdicts.find(rows, dataset, verdicts.headline(rows, dataset))
                    for rows in ledgers.values()
                ],
            }
            for dataset in datasets
        ],
    )


def summary(ledgers: Mapping[str, Sequence[verdicts.Row]]) -> str:
    """In how many models the headline claim is established, in one sentence."""
    parts = []
    for name, scope in verdicts.SCOPES.items():
        results = [
            verdicts.row_of(rows, name, verdicts.headline(rows, name)) for rows in ledgers.values()
        ]
        judged = [row["verdict"] for row in results if row]
        if judged:
            won = judged.count(registry.ESTABLISHED)
            models = "model" if len(judged) == 1 else "models"
            parts.append(f"on {scope} in {won} of {len(judged)} {models}")
    if not parts:
        return "No data set here supports a claim."
    return f"The detector beats its best control {' and '.join(parts)}."


def looks_of(count: int) -> list[tuple[str, str]]:
    """CSS class and marker of each of `count` models."""
    return [
        (KINDS[number % len(KINDS)], MARKERS[(number + number // len(KINDS)) % len(MARKERS)])
        for number in range(count)
    ]


def _key_claim(row: Mapping[str, Any]) -> verdicts.ClaimText:
    """The mean difference of two detectors over their shared given texts."""
    reason = (
        "" if row["verdict"] == registry.ESTABLISHED else f" {verdicts.capital(row['reason'])}."
    )
    return verdicts.ClaimText(
        f"{row['model']} against {row['reference']}",
        row["verdict"],
        f"Detector AUROC {row['auroc_model']:.3f} against {row['auroc_reference']:.3f} "
        f"on {row['n']:,} shared texts.{reason}",
        "",
        Point(
            "difference",
            str(row["verdict"]).replace(" ", "-"),
            "o",
            row["difference"],
            row["difference_low"],
            row["difference_high"],
        ),
    )


def _paired(
    differences: pd.DataFrame, reference: str, model: str, datasets: Sequence[str]
) -> dict[str, Any]:
    """Two models: a row per shared data set, and the mean difference of their detectors."""
    pair = differences[(differences["reference"] == reference) & (differences["model"] == model)]
    cells = {(row["dataset"], row["score"]): row for row in pair.to_dict("records")}
    # `datasets` are those of metrics.csv, which has no mean where no data set has folds.
    place = {name: number for number, name in enumerate([*page.POOLS, *datasets])}
    shared = sorted(set(pair["dataset"]), key=lambda name: place[name])
    rows = []
    for name in shared:
        by_score = [cells.get((name, shown.name)) for shown in registry.SHOWN]
        first = next(row for row in by_score if row)
        rows.append(
            {
                "dataset": page.POOLS.get(name, name),
                "n": first["n"],
                "share": first["share"],
                "cells": by_score,
            }
        )
    detector = cells.get((registry.ALL_GIVEN, registry.DETECTOR))
    known = detector is not None and not math.isnan(detector["difference"])
    return {
        "reference": reference,
        "model": model,
        "rows": rows,
        "detector": detector if known else None,
    }


def _rows(
    metrics: Mapping[str, pd.DataFrame], datasets: Sequence[str], score: str
) -> list[dict[str, Any]]:
    """A row per data set with the metrics of one score in every model."""
    return [
        {
            "dataset": page.POOLS.get(dataset, dataset),
            "cells": [registry.row_of(part, dataset, score) for part in metrics.values()],
        }
        for dataset in datasets
    ]


def _forest_row(
    metrics: Mapping[str, pd.DataFrame], dataset: str, looks: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The detectors of all models on one data set."""
    points = [
        page.point(row, name, kind, marker)
        for (name, part), (kind, marker) in zip(metrics.items(), looks, strict=True)
        if (row := registry.row_of(part, dataset, registry.DETECTOR))
    ]
    name = page.POOLS.get(dataset, dataset)
    return {"name": name, "points": points, "note": "", "alt": page.alt_text(name, points)}
