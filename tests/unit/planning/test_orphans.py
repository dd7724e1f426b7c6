"""Jobs of a killed run: found by queue, process and lock; waited for, cancelled, refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.cli import launch
from ghosttrack.errors import UserError
from ghosttrack.planning import orphans, slurm
from ghosttrack.runtime import files, lease, lease_file

JOB = """
import signal, sys, time
from pathlib import Path
from ghosttrack.runtime import files
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(143)))
with files.lock(Path("results/tiny/state/train_sae/layer_01")):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow folder with the script of a job as working directory, without Slurm."""
    scripts = tmp_path / ".snakemake" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "tmpab12.train_sae.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "available", lambda: False)
    return tmp_path


class Job:
    """A job that holds the lock of its layer for `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
        script = str(folder / ".snakemake/scripts/tmpab12.train_sae.py")
        self.process = subprocess.Popen(
            [sys.executable, script, str(seconds)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def job(folder: Path) -> Iterator[Job]:
    running = Job(folder, 60)
    yield running
    running.end()


def queue(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *lines: str,
    code: int = 0,
    error: str = "no controller",
) -> Path:
    """A squeue that prints `lines`, and a scancel that records its arguments."""
    tools = folder / "bin"
    tools.mkdir()
    text = "\n".join(lines)
    (tools / "squeue").write_text(
        f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho {error} >&2\nexit {code}\n"
    )
    (tools / "scancel").write_text(
        f'#!/bin/sh\necho "$@" > {folder}/cancelled\nprintf "#!/bin/sh\\n" > {tools}/squeue\n'
    )
    for path in tools.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "available", lambda: True)
    return folder / "cancelled"


def test_a_folder_without_jobs_has_no_orphans(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orphans.refuse(folder, require_slurm=False)
    assert orphans.main([]) == 0
    assert "no orphans" in capsys.readouterr().out


def test_a_process_of_a_killed_snakemake_is_found_once_and_refused(folder: Path, job: Job) -> None:
    (found,) = orphans.find(folder)
    assert (found.kind, found.id, found.name) == ("process", str(job.process.pid), "train_sae")
    with pytest.raises(
        UserError, match=r"(?s)1 job of an earlier run.*train_sae.*nothing was started.*--cancel"
    ):
        orphans.refuse(folder, require_slurm=False)


def test_a_process_that_ends_during_the_search_is_no_orphan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SimpleNamespace(pid=1, create_time=lambda: 0.0, cmdline=list, environ=dict)
    monkeypatch.setattr(orphans, "job_processes", lambda _: [ended])
    assert orphans.find(folder) == []


@pytest.mark.usefixtures("job")
def test_a_run_is_not_started_with_an_orphan(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["saes"]) == 1
    assert "make orphans ARGS=--wait" in capsys.readouterr().err


def test_cancel_sends_sigterm(folder: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert orphans.main(["--cancel"]) == 0
    assert job.process.stdout is not None
    assert job.process.stdout.read() == "asked\n"
    assert "no orphans" in capsys.readouterr().out
    assert orphans.find(folder) == []


def test_cancel_kills_a_process_that_ignores_sigterm(
    folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "GRACE_SECONDS", 0.5)
    job.process.send_signal(signal.SIGSTOP)
    orphans.cancel(orphans.find(folder))
    assert job.process.wait() == -signal.SIGKILL


def test_wait_returns_when_the_orphan_ends(folder: Path) -> None:
    job, began = Job(folder, 0.5), time.monotonic()
    assert orphans.wait(folder, 20, every=0.1) == []
    assert time.monotonic() - began < 15
    assert job.process.wait() == 0
    job.end()


def test_a_lock_of_a_process_on_another_machine_is_shown_with_its_owner(folder: Path) -> None:
    store = folder / "results/tiny/activations/layer_00/shard_0000.zarr.partial"
    with files.lock(store):
        (store / "lock").write_text("process 5 on elsewhere")
        (found,) = orphans.find(folder)
    assert (found.kind, found.id, found.where) == (
        "lock",
        str(store),
        "held by process 5 on elsewhere",
    )


def test_a_lock_without_read_permission_counts_as_held_and_shows_its_owner(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = folder / "results/tiny/state/train_sae/layer_01"
    with files.lock(state):
        pass
    opened = Path.open

    def refuse(
        path: Path, *arguments: Any, **options: Any
    ) -> Any:  # root may open everything, so no mode refuses it
        if path.name == "lock":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    owner = files.user_name(os.getuid())
    (found,) = orphans.find(folder)
    assert (found.kind, found.id) == ("lock", str(state))
    assert f"held by probably a process of {owner} (you have no permission to read" in found.where
    with (
        pytest.raises(
            UserError, match=f"lock belongs to {owner}, and you have no permission to write it"
        ),
        files.lock(state),
    ):
        pass


def test_squeue_lists_the_jobs_of_all_users_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def output(*words: str) -> str:
        asked.append(words[words.index("-u") + 1])
        return ""

    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "_output", output)
    held = lease.acquire(folder, "")
    known, unknown = 1, 4_000_001
    held.path.write_bytes(lease_file.packed(held.lease._replace(users=[known, unknown])))
    orphans.find(folder)
    held.release()
    orphans.find(folder)
    assert asked == [",".join(map(str, sorted({known, os.getuid()})))] * 2


def test_a_live_lease_of_any_host_protects_its_jobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cancelled = queue(
        folder, monkeypatch, f"12|RUNNING|node1|3:20|{folder}|rule_train_sae_wildcards_tiny-gpt2_01"
    )
    held = lease.acquire(folder, "snakemake")
    held.path.write_bytes(
        lease_file.packed(held.lease._replace(host="node7", boot="b7", user="ann"))
    )
    held.leave()
    assert orphans.main(["--cancel"]) == 1
    assert "A run is active in this folder (ann on node7, process" in capsys.readouterr().err
    assert not cancelled.exists()


@pytest.mark.usefixtures("job")
def test_no_run_starts_while_orphans_are_cancelled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cancel = orphans.cancel

    def meanwhile(found: list[orphans.Orphan]) -> None:
        with pytest.raises(UserError) as refused:
            lease.acquire(folder, "snakemake")
        said.append(str(refused.value))
        cancel(found)

    monkeypatch.setattr(orphans, "cancel", meanwhile)
    assert orphans.main(["--cancel"]) == 0
    assert "(make orphans ARGS=--cancel)" in said[0]
    assert lease.current(folder) is None


def test_pending_and_running_jobs_of_this_folder_are_found_in_the_queue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(
        folder,
        monkeypatch,
        f"12|RUNNING|node1|3:20|{folder}|rule_train_sae_wildcards_tiny-gpt2_01",
        f"13|PENDING||0:00|{folder}|rule_evaluate_detectors",
        f"14|RUNNING|node1|3:20|{folder}/elsewhere|rule_train_sae_wildcards_tiny-gpt2_01",
        f"15|RUNNING|node1|3:20|{folder}|by hand",
    )
    assert slurm.jobs_in(folder) == [
        ("12", "RUNNING", "node1", "3:20", "train_sae", "tiny-gpt2_01"),
        ("13", "PENDING", "", "0:00", "evaluate_detectors", ""),
    ]
    assert [each.id for each in orphans.find(folder)] == ["12", "13"]


def test_jobs_in_the_queue_are_cancelled_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"{number}|RUNNING|node1|3:20|{folder}|rule_train_sae_wildcards_tiny-gpt2_01"
        for number in (12, 13)
    ]
    cancelled = queue(folder, monkeypatch, *lines)
    assert orphans.main(["--cancel"]) == 0
    assert cancelled.read_text() == "--full 12 13\n"


def test_only_a_slurm_run_needs_an_answer_of_squeue(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(folder, monkeypatch, code=1)
    with pytest.raises(UserError, match=r"squeue failed \(no controller\)"):
        orphans.refuse(folder, require_slurm=True)
    orphans.refuse(folder, require_slurm=False)
    assert orphans.main([]) == 2
    assert "try again" in capsys.readouterr().err


def test_jobs_of_a_live_snakemake_are_no_orphans(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "print('up', flush=True); import time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, "snakemake"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        assert [process.pid for process in orphans.runs(folder)] == [run.pid]
        assert orphans.main(["--cancel"]) == 1
        assert f"process {run.pid}" in capsys.readouterr().err
        assert run.poll() is None
        run.kill()


def test_a_dry_run_and_the_snakemake_inside_a_job_are_not_runs(folder: Path) -> None:
    code = "print('up', flush=True); import time; time.sleep(60)"
    for words in (["snakemake", "-n"], ["snakemake", "--mode", "remote"]):
        with subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=folder, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert orphans.runs(folder) == []
            other.kill()


def test_slurm_commands_without_a_cluster_give_no_jobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(
        folder,
        monkeypatch,
        code=1,
        error="squeue: fatal: Could not establish a configuration source",
    )
    assert slurm.jobs_in(folder) == []
    assert orphans.main([]) == 0
