"""Jobs on a machine with several GPUs and no scheduler use different GPUs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import gpu_claims

HOLD = """
import os, signal, sys
from ghosttrack.runtime import gpu_claims
with gpu_claims.claimed(int(sys.argv[1])):
    print(os.environ[gpu_claims.VARIABLE], flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with GPUs as its nvidia-smi lists them, without a scheduler."""
    tools, locks = tmp_path / "bin", tmp_path / "tmp"
    tools.mkdir()
    locks.mkdir()
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(locks))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv(gpu_claims.VARIABLE, raising=False)

    def have(count: int) -> None:
        lines = "".join(
            f"echo 'GPU {number}: A card (UUID: GPU-{number})'\n" for number in range(count)
        )
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}true\n")
        (tools / "nvidia-smi").chmod(0o755)

    return have


def job(count: int) -> tuple["subprocess.Popen[str]", str]:
    """A process that claims GPUs until it is killed, and the names of its GPUs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(count)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_jobs_see_different_gpus_and_a_killed_job_frees_its_own(
    machine: Callable[[int], None],
) -> None:
    machine(4)
    (first, one), (second, two), (third, three) = job(1), job(2), job(1)
    try:
        assert [one, two, three] == ["0", "1,2", "3"]
        end(second)
        with gpu_claims.claimed(2):
            assert os.environ[gpu_claims.VARIABLE] == "1,2"
        assert gpu_claims.VARIABLE not in os.environ
    finally:
        end(first, second, third)


def test_a_job_waits_for_enough_free_gpus_and_holds_none_meanwhile(
    machine: Callable[[int], None],
) -> None:
    machine(2)
    first, one = job(1)
    looks = []

    def wait() -> None:
        with gpu_claims.claimed(1):  # the other GPU is still free for a smaller job
            looks.append(os.environ[gpu_claims.VARIABLE])
        end(first)

    try:
        with gpu_claims.claimed(2, wait):
            assert os.environ[gpu_claims.VARIABLE] == "0,1"
        assert (one, looks) == ("0", ["1"])
    finally:
        end(first)


def test_only_the_gpus_that_the_user_left_visible_are_claimed(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8)
    monkeypatch.setenv(gpu_claims.VARIABLE, "GPU-5, 7")
    with gpu_claims.claimed(1):
        assert os.environ[gpu_claims.VARIABLE] == "GPU-5"
        with gpu_claims.claimed(0):
            assert os.environ[gpu_claims.VARIABLE] == "GPU-5"
    assert os.environ[gpu_claims.VARIABLE] == "GPU-5, 7"
    with (
        pytest.raises(UserError, match=r"plan\.gpus_per_model: 3 GPUs .* this machine has 2"),
        gpu_claims.claimed(3),
    ):
        pass


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_claimed_on_a_cpu_or_a_single_gpu(
    machine: Callable[[int], None], count: int
) -> None:
    machine(count)
    with gpu_claims.claimed(1):
        assert gpu_claims.VARIABLE not in os.environ


def test_nothing_is_claimed_under_slurm(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(gpu_claims.VARIABLE, "2,3")
    with gpu_claims.claimed(1):
        assert os.environ[gpu_claims.VARIABLE] == "2,3"


def test_a_lock_folder_that_is_a_link_is_refused(
    machine: Callable[[int], None], tmp_path: Path
) -> None:
    machine(2)
    (tmp_path / "other").mkdir()
    folder = gpu_claims.lock_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is a link"), gpu_claims.claimed(1):
        pass
