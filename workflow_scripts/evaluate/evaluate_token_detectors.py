"""Evaluate the detectors of tokens: measures, and claims against their controls."""

from pathlib import Path

import pandas as pd

from ghosttrack.evaluation import token_tables
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    scores: list[Path],
    choices: list[Path],
    metrics: Path,
    claims: Path,
    datasets: list[str],
    controls: list[str],
    evaluation: EvaluationSettings,
    seed: int,
) -> None:
    """Write token_metrics.csv and token_claims.csv.

    `scores` and `choices` are in the order of `datasets`, the data sets with spans; `controls`
    names the positive controls.
    """
    found = [
        token_tables.tables(
            tables.read_parquet(scored),
            tables.read_csv(chosen),
            evaluation,
            seed,
            control=name in controls,
        )
        for name, scored, chosen in zip(datasets, scores, choices, strict=True)
    ]
    for path, parts in zip((metrics, claims), zip(*found, strict=True), strict=True):
        with files.atomic_write(path) as stream:
            tables.write_csv(pd.concat(parts, ignore_index=True), stream)


if __name__ == "__main__":
    job.run(main, globals())
