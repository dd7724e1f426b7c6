"""Peak memory of a process, as its log names it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import job, peak_memory
from tests.conftest import ROOT


def peak_after(code: str) -> float:
    """Peak in MB of a process that ran `code`."""
    end = "from ghosttrack.runtime import peak_memory; print(peak_memory.peak_bytes() / 1e6)"
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


def test_the_log_of_a_job_names_its_peak_once_per_attempt_and_after_an_error(
    tmp_path: Path,
) -> None:
    def fails() -> None:
        raise UserError("wrong")

    log = tmp_path / "log"
    job.run(lambda: None, fake(log))
    with pytest.raises(SystemExit):
        job.run(fails, fake(log))
    peaks = peak_memory.logged_peaks(log.read_text())
    assert len(peaks) == 2
    assert all(10 < peak <= peak_memory.peak_bytes() / 1e6 + 1 for peak in peaks)
    # An error stays the last line, which status shows.
    assert "wrong" in log.read_text().splitlines()[-1]
