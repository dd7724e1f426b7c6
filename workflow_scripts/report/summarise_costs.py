"""Write the cost of a run as tables and a page: time and memory by rule, disk by kind of output."""

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
    """Read the benchmark tables in the folder of `page` and measure its parent, the run's folder.

    Args:
        page, jobs, disk: files to write.
        model: name of the model.
        planned_kb, budget_kb: planned and allowed peak of the activations in kilobytes.
    """
    folder = page.parent
    job_costs, disk_use = costs.of_jobs(folder), costs.of_disk(folder.parent)
    _write(jobs, costs.Cost._fields, job_costs)
    _write(disk, costs.DiskUse._fields, disk_use)
    budget = costs.Budget(1000 * planned_kb, 1000 * budget_kb)
    with files.atomic_write(page) as stream:
        stream.write(costs.render(model, job_costs, disk_use, budget, ghosttrack.__version__))


def _write(path: Path, columns: Sequence[str], rows: Sequence[NamedTuple]) -> None:
    with files.atomic_write(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerows([columns, *([_cell(value) for value in row] for row in rows)])


def _cell(value: object) -> object:
    """Floats with two digits, as in Snakemake's tables; empty for NaN."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else round(value, 2)


if __name__ == "__main__":
    job.run(main, globals())
