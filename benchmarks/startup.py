"""CPU seconds that a job spends before its own work, by rule, beside the CPU seconds of a finished run.

    PYTHONPATH=workflow_scripts python benchmarks/startup.py results/smollm2-135m

A new process starts Python, reads what Snakemake puts before a script, and imports the script. The
smallest of several starts counts. Libraries that a function imports later, such as transformers when
a model is loaded, are not part of it. Without a folder of results, every rule is listed without the
columns of a run. Snakemake samples the CPU time of a running job, so that of a short job is too low.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from measure import show

from ghosttrack.report import costs

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "pandas", "zarr")
# The imports of the lines that Snakemake puts before a script, then those of the script.
START = """
import json, resource, runpy, sys

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

python = cpu()
from snakemake.iocontainers import Snakemake
from snakemake.logging import logger
snakemake = cpu()
runpy.run_path(sys.argv[1], run_name="script")
loaded = [name for name in sys.argv[2:] if name in sys.modules]
print(json.dumps([python, snakemake - python, cpu() - snakemake, loaded]))
"""


class Start(NamedTuple):
    """CPU seconds of the parts of a start, and the libraries that it loads."""

    python: float
    snakemake: float
    script: float
    libraries: list[str]

    @property
    def total(self) -> float:
        """CPU seconds of the whole start."""
        return self.python + self.snakemake + self.script


def scripts() -> dict[str, Path]:
    """Script of each rule, by the name of its script, which is also that of its benchmark files."""
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    found = sorted(set(re.findall(r'"\.\./(workflow_scripts/\S+\.py)"', rules)))
    return {Path(name).stem: ROOT / name for name in found}


def start(script: Path, repeats: int) -> Start:
    """The cheapest of several starts of a script."""
    command = [sys.executable, "-c", START, str(script), *LIBRARIES]
    return min(
        (
            Start(*json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
            for _ in range(repeats)
        ),
        key=lambda one: one.total,
    )


def rows(starts: dict[str, Start], jobs: dict[str, costs.Cost]) -> list[list[str | int | float]]:
    """Rows of the table, the costliest start first, and their sum.

    Args:
        jobs: of a finished run, by rule; a rule without jobs counts as one start.
    """
    table: list[list[str | int | float]] = []
    for rule, one in starts.items():
        count, cpu = (jobs[rule].jobs, jobs[rule].cpu_seconds) if rule in jobs else (1, 0.0)
        cpu = 0.0 if math.isnan(cpu) else cpu  # jobs too short for a sample
        share = f"{100 * count * one.total / cpu:.0f} %" if cpu else "-"
        table.append([rule, count, one.total, count * one.total, cpu, share, *one.libraries])
    table.sort(key=lambda row: -float(row[3]))
    total, cpu = (sum(float(row[column]) for row in table) for column in (3, 4))
    share = f"{100 * total / cpu:.0f} %" if cpu else "-"
    table.append(["together", sum(int(row[1]) for row in table), "", total, cpu, share])
    return [[*row[:6], " ".join(map(str, row[6:]))] for row in table]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="results of a model")
    parser.add_argument("--rules", nargs="+", help="only these rules")
    parser.add_argument("--repeats", type=int, default=2, help="starts of each script")
    given = parser.parse_args()
    found = costs.of_jobs(given.run / "benchmarks") if given.run else []
    jobs = {cost.rule: cost for cost in found}
    wanted = given.rules or [rule for rule in scripts() if rule in jobs or not jobs]
    starts = {rule: start(scripts()[rule], given.repeats) for rule in wanted}
    show(
        "CPU seconds before a job's own work",
        ["rule", "jobs", "start", "starts", "run", "share", "libraries at start"],
        rows(starts, jobs),
    )


if __name__ == "__main__":
    main()
