"""Join the seed tables of all data sets, and summarise the variation of each AUROC."""

from pathlib import Path

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.evaluation import seed_variance
from ghosttrack.runtime import files, job, tables


def main(
    *,
    metrics: Path,
    seeds: list[Path],
    all_seeds: Path,
    variance: Path,
    datasets: list[str],
    controls: list[str],
) -> None:
    """Write the joined and the summarised table; `controls` names the positive controls."""
    table = pd.concat([tables.read_csv(path) for path in seeds], ignore_index=True)
    kinds = registry.kinds(registry.read(metrics, registry.METRICS), datasets, controls)
    averaged = [*kinds.text_controlled, *kinds.leaky]  # as in metrics.csv
    for path, content in ((all_seeds, table), (variance, seed_variance.summarise(table, averaged))):
        with files.atomic_write(path) as stream:
            tables.write_csv(content, stream)


if __name__ == "__main__":
    job.run(main, globals())
