"""Rounds of Snakemake's scheduler do not grow with the number of finished jobs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Jobs of one resource, so that others always wait, and a scheduler that counts its rounds.
SNAKEFILE = """
import atexit
import sys
sys.path.insert(0, {scripts!r})
from ghosttrack.planning import scheduling
from snakemake.scheduling.job_scheduler import JobScheduler

rounds = 0
select = JobScheduler.job_selector

def counted(self, jobs):
    global rounds
    rounds += 1
    return select(self, jobs)

JobScheduler.job_selector = counted
atexit.register(lambda: print("ROUNDS", rounds, file=sys.stderr))
{install}

rule all:
    input: [f"{{number}}.txt" for number in range(12)]

rule one:
    output: "{{number}}.txt"
    resources: single=1
    shell: "sleep .3; touch {{output}}"
"""


def rounds(folder: Path, install: str) -> int:
    folder.mkdir()
    scripts = str(ROOT / "workflow_scripts")
    (folder / "Snakefile").write_text(SNAKEFILE.format(scripts=scripts, install=install))
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--resources", "single=1"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list(folder.glob("*.txt"))) == 12
    return max(map(int, re.findall(r"^ROUNDS (\d+)$", result.stderr, re.MULTILINE)))


def test_waiting_jobs_cause_one_round_a_second(tmp_path: Path) -> None:
    plain, ours = rounds(tmp_path / "plain", ""), rounds(tmp_path / "ours", "scheduling.install()")
    assert ours < plain  # if not, Snakemake needs no correction any more


def test_a_version_of_snakemake_without_the_method_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from snakemake.scheduling.job_scheduler import JobScheduler

    from ghosttrack.planning import scheduling

    monkeypatch.delattr(JobScheduler, scheduling.METHOD)
    scheduling.install()
    assert not hasattr(JobScheduler, scheduling.METHOD)
