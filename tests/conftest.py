"""Fixtures of every test: a private copy of the workflow, and skips that count as failures where nothing may be absent."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ghosttrack.runtime import lock_log, progress

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile",
    "rules",
    "envs",
    "profiles",
    "slurm",
    "config",
    "workflow_scripts",
    "Makefile",
)

# Processes of pytest-xdist share the cores. Threads of two processes would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test ARGS=...` exports its variables, which would reach every make that a test starts.
for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(name, None)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def copy_house(destination: Path) -> Path:
    """Copy what a run needs, without results and caches."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_symlink():
            (destination / name).symlink_to(source.readlink())
        elif source.is_dir():
            shutil.copytree(
                source, destination / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(source, destination / name)
    return destination


def snakemake(
    house: Path, *arguments: str, timeout: float = 300, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run Snakemake in a house; output and exit code are for the test to judge."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house / "workflow_scripts"), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def job_counts(output: str) -> dict[str, int]:
    """Jobs per rule from the table that a dry run prints; {} for "Nothing to be done"."""
    counts: dict[str, int] = {}
    inside = False
    for line in output.splitlines():
        words = line.split()
        if words[:2] == ["job", "count"]:
            counts, inside = {}, True
        elif inside and len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
        elif inside and not words:
            inside = False
    counts.pop("total", None)
    return counts


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow without results; tests that change files take their own."""
    return copy_house(tmp_path_factory.mktemp("house"))


# Of the random walks: printed with every run, and taken from the environment to replay one.
SEED = int(os.environ.get("GHOSTTRACK_SEED") or random.SystemRandom().randrange(2**32))


def pytest_report_header() -> str:
    return f"random walks: GHOSTTRACK_SEED={SEED}"


# Longest first, so that all processes end at about the same time.
FOLDERS = ("e2e", "slurm", "walks", "dag", "docs", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by folder; the large files of tests/unit come before its folders."""

    def place(item: pytest.Item) -> tuple[int, int]:
        parts = item.path.relative_to(ROOT / "tests").parts
        return FOLDERS.index(parts[0]), len(parts)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give a process whole files, and all end-to-end tests to one process: they share a finished run."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "e2e" if nodeid.startswith("tests/e2e/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _same_process() -> Iterator[None]:
    """A test leaves signal handlers and logging as it found them: later tests share the process."""
    before = _process_state()
    yield
    assert _process_state() == before


def _process_state() -> dict[str, Any]:
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    loggers = [logging.getLogger(), lock_log._log]
    return {
        "signals": [signal.getsignal(number) for number in signals],
        "loggers": [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers],
        "observers": progress.observers[:],
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """With GHOSTTRACK_NO_SKIPS set, a skipped test is a failed one.

    Tests that need another project's packages or a GPU may be skipped.
    """
    report = yield
    if item.get_closest_marker("peers") or item.get_closest_marker("gpu"):
        return report
    if report.skipped and os.environ.get("GHOSTTRACK_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped where nothing may be absent: {report.longrepr}"
        )
    return report
