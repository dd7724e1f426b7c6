"""Show what noise and the text alone reach when pairs are split at random, and when groups stay whole."""

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
    """Score both splits of every data set; write the table and its figure, and say the means in the log."""
    found = pd.concat(
        [
            leak_reproduction.reproduce(tables.read_parquet(path), dataset, detection.folds, seed)
            for dataset, path in zip(datasets, examples, strict=True)
        ],
        ignore_index=True,
    )
    for line in leak_reproduction.summary(found):
        log.info(line)
    with files.atomic_write(table) as stream:
        tables.write_csv(found, stream)
    leak_figure.draw(found, figures)


if __name__ == "__main__":
    job.run(main, globals())
