"""Peak memory and CPU time of a process, as its log names them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import job, resource_use
from tests.conftest import ROOT


def peak_after(code: str) -> float:
    """Peak in MB of a process that ran `code`."""
    end = "from ghosttrack.runtime import resource_use; print(resource_use.peak_bytes() / 1e6)"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{end}"],
        env={"PYTHONPATH": str(ROOT / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


def test_the_peak_counts_what_was_freed_and_not_what_the_parent_holds() -> None:
    held = bytearray(b"x" * 300_000_000)
    before, after = peak_after(""), peak_after("x = b'x' * 200_000_000; del x")
    assert len(held) == 300_000_000
    assert before < 100
    assert 180 < after - before < 250


def fake(log: Path) -> dict[str, SimpleNamespace]:
    empty = SimpleNamespace(keys=list)
    parts = dict.fromkeys(("input", "output", "params", "wildcards", "resources"), empty)
    return {"snakemake": SimpleNamespace(log=[str(log)], rule="r", threads=1, **parts)}


def test_the_log_of_a_job_names_its_use_once_per_attempt_and_after_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        raise UserError("wrong")

    log = tmp_path / "log"
    job.run(lambda: None, fake(log))
    with pytest.raises(SystemExit):
        job.run(fails, fake(log))
    uses = resource_use.logged(log.read_text())
    assert len(uses) == 2
    assert all(10 < use.peak_mb <= resource_use.peak_bytes() / 1e6 + 1 for use in uses)
    assert all(0 < (use.cpu_seconds or 0) <= resource_use.cpu_seconds() for use in uses)
    # An error stays the last line, which status shows.
    assert "wrong" in log.read_text().splitlines()[-1]


def test_cpu_time_counts_threads_and_ended_processes_and_no_waiting() -> None:
    code = """
import subprocess, sys, threading, time
from ghosttrack.runtime import resource_use
before = resource_use.cpu_seconds()
time.sleep(0.3)
waited = resource_use.cpu_seconds()
work = "import time\\nwhile time.process_time() < 0.3: pass"
def turn():
    while time.thread_time() < 0.2: pass
thread = threading.Thread(target=turn); thread.start(); thread.join()
turned = resource_use.cpu_seconds()
subprocess.run([sys.executable, "-c", work], check=True)
print(waited - before, turned - waited, resource_use.cpu_seconds() - turned)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    waited, turned, started = map(float, result.stdout.split())
    assert waited < 0.1
    assert turned >= 0.19
    assert started >= 0.29


def test_logs_of_earlier_versions_have_a_peak_alone() -> None:
    log = (
        "07:03:54 INFO peak memory 1,279 MB\n07:05:42 INFO peak memory 12 MB, CPU time 1,234.50 s\n"
    )
    assert resource_use.logged(log) == [(1279, None), (12, 1234.5)]
