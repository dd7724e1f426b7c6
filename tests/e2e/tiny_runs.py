"""Runs of the real workflow on the tiny model, and what they leave behind."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import job_counts, snakemake

MODEL = "tiny-gpt2"
RUN = ("--profile", "profiles/local", "--resources", "gpu=2", "--config", f"model={MODEL}")


def launch(
    house: Path, *arguments: str, timeout: float = 900, before: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """What `make run` calls, behind the words `before`."""
    return subprocess.run(
        [*before, sys.executable, "-m", "ghosttrack.cli.launch", *RUN, *arguments],
        cwd=house,
        env=environment(house),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment(house: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(house / "workflow_scripts")}


def planned(house: Path, *arguments: str) -> dict[str, int]:
    """Jobs that a dry run with `arguments`, after `--config model=...`, would start, without the bookkeeping target."""
    result = snakemake(house, "-n", *RUN, *arguments)
    assert result.returncode == 0, result.stderr
    counts = job_counts(result.stdout + result.stderr)
    if not counts:
        assert "Nothing to be done" in result.stdout + result.stderr
    counts.pop("all", None)
    return counts


def contents(house: Path) -> dict[str, bytes]:
    """Every result file by name; logs, timings and progress are not results."""
    results = house / "results" / MODEL
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and not {"logs", "benchmarks", "state"} & set(path.relative_to(results).parts[:2])
        and not path.name.startswith(".snakemake")
    }
