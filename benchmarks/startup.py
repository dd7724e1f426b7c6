"""CPU seconds that a job spends before its own work, by rule, beside the CPU seconds of a finished run.

    PYTHONPATH=workflow_scripts python benchmarks/startup.py results/smollm2-135m

A new process starts Python, reads what Snakemake puts before a script, imports the script, and
transformers' model classes if the rule loads a model. The smallest of several starts counts. `forked`
is the same in a job that is forked (`planning/forked_jobs.py`), `-` where jobs start as usual. Without a folder of results, every rule is listed without the
columns of a run. Snakemake samples the CPU time of a running job, so that of a short job is too low.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil
from measure import show

from ghosttrack.planning import forked_jobs
from ghosttrack.report import costs

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "pandas", "zarr")
# Code that loads a language model names this module.
LOADS_MODEL = "run_model"
# The imports of the lines that Snakemake puts before a script, those of the script, and those of a
# model's classes.
START = """
import json, resource, runpy, sys

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

python = cpu()
from snakemake.iocontainers import Snakemake
from snakemake.logging import logger
snakemake = cpu()
script, out, *libraries = ARGUMENTS
source = runpy.run_path(script, run_name="script")
loaded = [name for name in libraries if name in sys.modules]
if "run_model" in source:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
with open(out, "w") as stream:
    json.dump([python, snakemake - python, cpu() - snakemake, loaded], stream)
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


def start(script: Path, repeats: int, server: forked_jobs.Server | None = None) -> Start | None:
    """The cheapest of several starts of a script.

    Args:
        server: forks the process; None: a new process. A job that is not forked gives None.
    """
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        out, code = Path(folder) / "out", Path(folder) / f"tmp.{script.name}"
        arguments = [str(script), str(out), *LIBRARIES]
        code.write_text(START.replace("ARGUMENTS", repr(arguments)), encoding="utf-8")
        for _ in range(repeats):
            if server is None:
                subprocess.run([sys.executable, code], check=True)
            elif server.run(str(code), dict(os.environ), None) != 0:
                return None
            starts.append(Start(*json.loads(out.read_text(encoding="utf-8"))))
    return min(starts, key=lambda one: one.total)


def rows(
    starts: dict[str, Start], forked: dict[str, float], jobs: dict[str, costs.Cost], server: float
) -> list[list[str | int | float]]:
    """Rows of the table, the costliest start first, and their sum.

    Args:
        forked: CPU seconds of the start of a forked job, by rule.
        jobs: of a finished run, by rule; a rule without jobs counts as one start.
        server: CPU seconds of the processes that jobs are forked from.
    """
    table: list[list[str | int | float]] = []
    for rule, one in starts.items():
        count, cpu = (jobs[rule].jobs, jobs[rule].cpu_seconds) if rule in jobs else (1, 0.0)
        cpu = 0.0 if math.isnan(cpu) else cpu  # jobs too short for a sample
        share = f"{100 * count * one.total / cpu:.0f} %" if cpu else "-"
        less = forked.get(rule, one.total)
        shown: str | float = less if rule in forked else "-"
        work = [one.total, shown, count * one.total, count * less, cpu, share]
        table.append([rule, count, *work, " ".join(one.libraries)])
    table.sort(key=lambda row: -float(row[4]))
    every, less, cpu = (sum(float(row[column]) for row in table) for column in (4, 5, 6))
    count = sum(int(row[1]) for row in table)
    table.append(["the servers", 3, "", server, "", server, "", "", ""])
    share = f"{100 * every / cpu:.0f} %" if cpu else "-"
    return [*table, ["together", count, "", "", every, less + server, cpu, share, ""]]


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
    forked_jobs.STARTED_AS_USUAL = 0
    servers = {
        modules: forked_jobs.Server(modules)
        for modules in (forked_jobs.TORCH, forked_jobs.MODEL, forked_jobs.ANALYSIS)
    }
    forks = {
        rule: start(scripts()[rule], given.repeats, servers[modules])
        for rule in wanted
        if (modules := forked_jobs.modules_of(scripts()[rule].with_stem(f"tmp.{rule}").name))
    }
    used = 0.0
    for server in servers.values():
        if server.process:
            times = psutil.Process(server.process.pid).cpu_times()
            used += times.user + times.system
        server.close()
    show(
        "CPU seconds before a job's own work",
        ["rule", "jobs", "start", "forked", "starts", "all forked", "run", "share", "libraries"],
        rows(
            {rule: one for rule, one in starts.items() if one},
            {rule: one.total for rule, one in forks.items() if one},
            jobs,
            used,
        ),
    )


if __name__ == "__main__":
    main()
