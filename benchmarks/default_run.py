"""Scores, claims, SAE quality, cost and time of a finished run, from its own tables.

PYTHONPATH=workflow_scripts python benchmarks/default_run.py results/smollm2-135m
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from measure import show

SCORES = ("family", "score", "n", "auroc", "auroc_low", "auroc_high", "auprc", "f1", "ece")
CLAIMS = ("claim", "difference", "difference_low", "difference_high", "verdict")
QUALITY = {
    "l0": "L0",
    "fvu": "FVU",
    "pca_fvu": "FVU of k components",
    "random_fvu": "FVU of a random dictionary",
    "fvu_token_median": "median FVU of a token",
    "explained_variance": "explained variance",
    "dead_fraction": "dead",
    "dense_fraction": "dense",
    "ce_loss_score": "CE score",
}
COSTS = ("step", "jobs", "CPU s of its jobs", "wall s of its jobs", "peak MB")


def main(run: Path) -> None:
    """Print five tables."""
    metrics = pd.read_csv(run / "evaluation" / "metrics.csv")
    ledger = pd.read_csv(run / "evaluation" / "ledger.csv")
    for dataset in ("all_given", "generated"):
        title = f"{run}, {dataset}"
        found = metrics[(metrics["dataset"] == dataset) & metrics["auroc"].notna()]
        show(title, SCORES, cells(found, SCORES), "scores")
        show(title, CLAIMS, cells(ledger[ledger["dataset"] == dataset], CLAIMS), "claims")
    qualities = {
        folder.name: json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        for folder in sorted((run / "saes").glob("layer_*"))
    }
    rows = [[name, *(float(each[key]) for key in QUALITY)] for name, each in qualities.items()]
    show(str(run), ["SAE", *QUALITY.values()], rows, "saes")
    show_costs(run)
    show(str(run), ("minutes",), [[minutes(run)]], "time")


def minutes(run: Path) -> float:
    """Minutes from the start of the first job to the end of the last; pauses count."""
    ends = {path: path.stat().st_mtime for path in (run / "benchmarks").rglob("*.tsv")}
    starts = [end - float(pd.read_csv(path, sep="\t")["s"].max()) for path, end in ends.items()]
    return (max(ends.values()) - min(starts)) / 60


def show_costs(run: Path, table: str = "cost") -> None:
    """Print the cost of each step of a run, and of all."""
    costs = pd.read_csv(run / "benchmarks" / "costs.csv")
    summed = costs.groupby("step", sort=False).agg(
        {"jobs": "sum", "cpu_seconds": "sum", "wall_seconds": "sum", "peak_rss_mb": "max"}
    )
    steps: list[list[Any]] = [
        [str(step), int(row.iloc[0]), *map(float, row.iloc[1:])] for step, row in summed.iterrows()
    ]
    total = [
        "all",
        *(sum(row[at] for row in steps) for at in (1, 2, 3)),
        max(row[4] for row in steps),
    ]
    show(str(run), COSTS, [*steps, total], table)


def cells(found: pd.DataFrame, columns: tuple[str, ...]) -> list[list[object]]:
    """Rows of a table; missing numbers are empty."""
    kept = found[list(columns)].astype(object)
    return [
        [None if pd.isna(value) else value for value in row] for row in kept.to_numpy().tolist()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    main(parser.parse_args().run)
