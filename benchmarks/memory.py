"""Memory that jobs ask for against their measured peaks, by rule, for finished runs.

    PYTHONPATH=workflow_scripts python benchmarks/memory.py results/smollm2-135m results/gemma3-270m

The asked memory comes from a dry run of the workflow in the folder of `results`. The peak is the
largest resident set that a job logged or that Snakemake sampled. A ratio below 1 means that a cluster
may end the job.
"""

import argparse
import math
import re
import subprocess
import sys
from pathlib import Path

from measure import show

from ghosttrack.report import costs
from ghosttrack.runtime import resource_use

# A dry run that prints rule, memory and minutes of every job; Snakemake prints them only without
# messages.
DRY_RUN = """
import sys
from snakemake import cli, jobs

def show(job, *_, **__):
    for resource in ("mem_mb", "runtime"):
        print("ASKED", resource, job.rule.name, job.resources.get(resource, 0), file=sys.stderr)

jobs.Job.log_info = show
cli.main(["-n", "--forceall", *sys.argv[2:], "--config", f"model={sys.argv[1]}"])
"""


def asked(model: str, folder: Path, *options: str, resource: str = "mem_mb") -> dict[str, float]:
    """MB that the first attempt of each rule asks for, by rule without the model's name.

    Args:
        model: name of the model.
        folder: working directory of the workflow. options: of Snakemake.
        resource: `mem_mb`, or `runtime` for minutes.
    """
    command = [sys.executable, "-c", DRY_RUN, model, *(options or ("--cores", "1"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if result.returncode:
        raise SystemExit(f"the dry run of {model} in {folder} failed:\n{result.stderr[-2000:]}")
    suffix = re.compile(rf"_{re.sub(r'[^A-Za-z0-9]', '_', model)}(_wave_\d+)?$")
    most: dict[str, float] = {}
    for name, size in re.findall(rf"^ASKED {resource} (\S+) (\d+)$", result.stderr, re.MULTILINE):
        rule = suffix.sub("", name)
        most[rule] = max(most.get(rule, 0.0), float(size))
    return most


def measured(run: Path) -> dict[str, float]:
    """Largest resident set in MB (10^6 bytes) of each rule's jobs, over all their attempts."""
    peaks = {
        cost.rule: cost.peak_rss_mb
        for cost in costs.of_jobs(run / "benchmarks")
        if not math.isnan(cost.peak_rss_mb)
    }
    for path in sorted((run / "logs").rglob("*.log")):
        rule = path.relative_to(run / "logs").parts[0].removesuffix(".log")
        for use in resource_use.logged(path.read_text(encoding="utf-8", errors="replace")):
            peaks[rule] = max(peaks.get(rule, 0.0), float(use.peak_mb))
    return peaks


def table(memory: dict[str, float], peaks: dict[str, float]) -> list[list[str]]:
    """Rows of rule, asked MB, peak MB and their ratio, the tightest rule first."""
    return [
        [rule, f"{memory[rule]:,.0f}", f"{peak:,.0f}", f"{memory[rule] / peak:.2f}"]
        for rule, peak in sorted(peaks.items(), key=lambda item: memory.get(item[0], 0) / item[1])
        if rule in memory
    ]


def main() -> None:
    """Print a table for each run, the tightest rule first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="+", help="directory of a finished run, results/MODEL"
    )
    for run in (path.resolve() for path in parser.parse_args().run):
        rows = table(asked(run.name, run.parents[1]), measured(run))
        show(f"memory of {run.name}", ["rule", "asked MB", "peak MB", "asked / peak"], rows)


if __name__ == "__main__":
    main()
