"""Sum up what a run took: time and memory by rule, disk by kind of output, as tables and a page."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ghosttrack
from ghosttrack.report import costs
from ghosttrack.runtime import files, job


def main(
    *, page: Path, jobs: Path, disk: Path, model: str, planned_kb: int = 0, budget_kb: int = 0
) -> None:
    """Read the benchmarks beside `page` and measure the run's folder, its parent."""
    folder = page.parent
    found, kept = costs.of_jobs(folder), costs.of_disk(folder.parent)
    _write(jobs, costs.Cost._fields, found)
    _write(disk, costs.Disk._fields, kept)
    budget = costs.Budget(1000 * planned_kb, 1000 * budget_kb)
    with files.atomic_write(page) as stream:
        stream.write(costs.render(model, found, kept, budget, ghosttrack.__version__))


def _write(path: Path, columns: Sequence[str], rows: Sequence[NamedTuple]) -> None:
    with files.atomic_write(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerows([columns, *([_cell(value) for value in row] for row in rows)])


def _cell(value: object) -> object:
    """Numbers to the hundredth, as Snakemake takes them; one that nobody took stays empty."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else round(value, 2)


if __name__ == "__main__":
    job.run(main, globals())
