"""A training process that is killed again and again ends with the bytes of one that was not."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sae_fakes import SMALL
from test_sae_scripts import arguments, write_store

from ghosttrack.activations.sampler import ChunkSampler
from sae import train_sae

KILLS, STOPS = 20, 5
# Short, so that a short run writes several checkpoints.
INTERVAL = 0.05
SETTINGS = SMALL.model_copy(update={"epochs": 24, "dead_after": 0.02})
# 1,024 rows less one first position in 32 and one massive row leave 15 batches of 64.
STEPS = 15 * SETTINGS.epochs

Times = npt.NDArray[np.float64]


class Job:
    """One run of the training script in a folder of its own, over as many processes as it takes."""

    def __init__(self, folder: Path, store: Path, manifest: Path) -> None:
        folder.mkdir()
        self.weights, self.state = folder / "sae_weights.safetensors", folder / "state"
        self.given: dict[str, Any] = {
            **arguments(folder, store, manifest),
            "sae": SETTINGS,
            "checkpoint_seconds": INTERVAL,
        }
        self._times = folder / "times"

    def start(self, processes: ForkServerContext) -> BaseProcess:
        """A new process that goes on where the last one was stopped."""
        np.zeros(STEPS).tofile(self._times)
        process = processes.Process(target=train, args=(self.given, self._times))
        process.start()
        return process

    @property
    def times(self) -> Times:
        """When the last process began each step, (STEPS,) seconds; 0 if it did not."""
        return np.fromfile(self._times)

    @property
    def begun(self) -> int:
        """Steps up to the last one that the last process began; 0 before the first."""
        reached = np.flatnonzero(self.times)
        return int(reached[-1]) + 1 if len(reached) else 0

    @property
    def saved(self) -> int:
        """Steps in the newest checkpoint."""
        return max(
            (int(path.stem.split("_")[1]) for path in self.state.glob("step_*.checkpoint")),
            default=0,
        )


def train(given: dict[str, Any], times: Path) -> None:
    """In a process of its own: the script as it is, but for a note of when each step begins."""
    torch.set_num_threads(1)
    noted = np.memmap(
        times, mode="r+", dtype=np.float64
    )  # shared pages: a kill leaves what was written

    class Noted(ChunkSampler):
        def batch_at(self, step: int) -> torch.Tensor:
            noted[step] = time.monotonic()
            return super().batch_at(step)

    vars(train_sae)["ChunkSampler"] = Noted
    train_sae.main(**given)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Processes that import all modules before the fork: a fork after a computation can hang."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context.set_forkserver_preload(["test_training_kills", "train_sae"])
    return context


@pytest.fixture
def new_job(tmp_path: Path) -> Callable[[], Job]:
    """Makes jobs on the same activations."""
    store, manifest = write_store(tmp_path, "train", seed=0)
    jobs: list[Job] = []

    def make() -> Job:
        jobs.append(Job(tmp_path / f"job_{len(jobs)}", store, manifest))
        return jobs[-1]

    return make


def uninterrupted(job: Job, processes: ForkServerContext) -> bytes:
    """The weights of a run that nobody stops."""
    job.given["checkpoint_seconds"] = 3600.0
    process = job.start(processes)
    process.join()
    assert process.exitcode == 0
    assert job.begun == STEPS
    return job.weights.read_bytes()


def wait_for_step(job: Job, process: BaseProcess, step: int) -> None:
    while process.is_alive() and job.begun < step:
        time.sleep(0.001)


def test_twenty_kills_at_random_moments_change_no_byte_and_lose_at_most_one_interval(
    new_job: Callable[[], Job], processes: ForkServerContext
) -> None:
    expected = uninterrupted(new_job(), processes)
    moments, job, kills, finished, gone_on = random.Random(0), new_job(), 0, 0, 0
    while kills < KILLS or finished == 0:
        before = job.saved
        process = job.start(processes)
        # At a random step, so that a busy machine changes nothing; the moment within a step or a
        # save is random too.
        wait_for_step(
            job, process, before + moments.randint(1, 120) if kills < KILLS else STEPS + 1
        )
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            times, saved = job.times, job.saved
            assert int(np.flatnonzero(times)[0]) == before  # it went on from the newest checkpoint
            gone_on += before > 0
            # All lost steps but the last began within one interval of the last save.
            if job.begun - saved > 1:
                assert times[job.begun - 2] - times[saved] < INTERVAL
        else:
            assert process.exitcode == 0
            assert job.weights.read_bytes() == expected
            assert not job.state.exists()
            job, finished = new_job(), finished + 1
    assert gone_on > KILLS / 4


def test_sigterm_at_five_random_steps_loses_no_step_and_changes_no_byte(
    new_job: Callable[[], Job], processes: ForkServerContext
) -> None:
    expected = uninterrupted(new_job(), processes)
    job, moments = new_job(), random.Random(1)
    job.given["checkpoint_seconds"] = 3600.0  # only the signal saves
    for step in sorted(moments.sample(range(2, STEPS - 100), STOPS)):
        process = job.start(processes)
        wait_for_step(job, process, step)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 128 + signal.SIGTERM
        assert job.saved == job.begun  # every step that began was finished and saved
    process = job.start(processes)
    process.join()
    assert int(np.flatnonzero(job.times)[0]) == job.saved or not job.state.exists()
    assert process.exitcode == 0
    assert job.weights.read_bytes() == expected
