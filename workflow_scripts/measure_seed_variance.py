"""Put the seeds of all data sets into one table, and say how far each AUROC moves."""

from pathlib import Path

import pandas as pd

from ghosttrack import files, frames, job
from ghosttrack.evaluation import seed_variance
from ghosttrack.report import tables


def main(
    *, metrics: Path, seeds: list[Path], all_seeds: Path, variance: Path, datasets: list[str], controls: list[str]
) -> None:
    """Join the tables of `datasets` and summarise them; `controls` names the positive controls."""
    table = pd.concat([frames.read_csv(path) for path in seeds], ignore_index=True)
    kinds = tables.kinds(tables.read(metrics, tables.METRICS), datasets, controls)
    for path, content in ((all_seeds, table), (variance, seed_variance.summarise(table, kinds.strict))):
        with files.atomic_write(path) as stream:
            frames.write_csv(content, stream)


if __name__ == "__main__":
    job.run(main, globals())
