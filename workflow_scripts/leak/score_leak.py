"""Reproduce the leak: AUROC of noise and text under a random pair split and a grouped split."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack.evaluation import leak_reproduction
from ghosttrack.report import leak_figure
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import DetectionSettings

log = logging.getLogger("ghosttrack")


def main(
    *,
    examples: list[Path],
    table: Path,
    figures: list[Path],
    datasets: list[str],
    detection: DetectionSettings,
    seed: int,
) -> None:
    """Evaluate both splits of every data set; write the table and its figure, and log the means."""
    reproduced = pd.concat(
        [
            leak_reproduction.reproduce(tables.read_parquet(path), dataset, detection.folds, seed)
            for dataset, path in zip(datasets, examples, strict=True)
        ],
        ignore_index=True,
    )
    for line in leak_reproduction.summary(reproduced):
        log.info(line)
    with files.atomic_write(table) as stream:
        tables.write_csv(reproduced, stream)
    leak_figure.draw(reproduced, figures)


if __name__ == "__main__":
    job.run(main, globals())
