"""Current state of each job, from Slurm's queue, the jobs' logs and the processes of this machine.

Nothing is locked or written. A job runs if Slurm says so, or if the process that started its log is
alive. A job that started, is not done and does not run has failed if its log has an error, and
otherwise was cut off.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from ghosttrack.planning import plan
from ghosttrack.planning.run_state import Job
from ghosttrack.planning.slurm import SlurmJob
from ghosttrack.runtime import gpu_usage

State = Literal["done", "running", "queued", "failed", "cut off", "waiting"]
# Bytes that are read at the end of a log at first: the progress lines of half an hour.
_TAIL_BYTES = 32_768
_START = re.compile(r"INFO process (\d+) on (\S+?)(?:, Slurm job (\d+))?(?:, GPU .+)?$")
_PROGRESS = re.compile(
    r"INFO .*?: ([\d,]+)/([\d,]+) (\w+), ([\d,.]+) \w+/s(?:, (.+?) left)?(?:, took .*?)?(?:;.*)?$"
)


class LoggedProgress(NamedTuple):
    """The last progress line in a job's log."""

    done: int  # units
    total: int  # units
    unit: str
    rate: float  # units per second
    left: str  # time left, such as "3m 05s"


class Activity(NamedTuple):
    """Current state of one job."""

    phase: str
    name: str
    state: State
    slurm_job: str = ""  # id, if any
    node: str = ""  # of a Slurm job
    progress: LoggedProgress | None = None
    gpu: gpu_usage.Sample | None = None
    last_line: str = ""  # of the log, if the job failed or was cut off


class _Start(NamedTuple):
    process: int
    host: str
    slurm_job: str
    after: list[str]  # log lines of this attempt


def look(
    model: str,
    jobs: Iterable[Job],
    queue: Sequence[SlurmJob],
    results: Path,
    waves: Sequence[Sequence[int]] = (),
) -> list[Activity]:
    """Current state of every job, in the order of `jobs`.

    Args:
        model: name of the model.
        jobs: of its run.
        queue: Slurm jobs of this folder.
        results: folder of all results.
        waves: layers of each wave of extraction.
    """
    logs, queued = results / model / "logs", by_job(model, queue)
    passes = {plan.pass_name(layers): f"wave_{wave:02d}" for wave, layers in enumerate(waves)}
    return [
        _activity(job, queued.get((job.phase, _queued_name(job, passes))), logs / _log_name(job))
        for job in jobs
    ]


def _queued_name(job: Job, passes: Mapping[str, str]) -> str:
    """Name of a job as `by_job` reads it: Slurm knows the number of a wave and the wildcards."""
    if job.phase == "extract_activations":
        layers, _, shard = job.name.partition("_shard_")
        return f"{passes.get(layers, layers)}_shard_{shard}"
    return job.name.replace(".", "_", 1) if job.phase == "fit_detector_class" else job.name


def by_job(model: str, queue: Iterable[SlurmJob]) -> dict[tuple[str, str], SlurmJob]:
    """Slurm jobs of `model` by phase and name, as in `run_state.Job` but for `_queued_name`."""
    jobs = {}
    tag = plan.rule_names([model])[model]
    for job in queue:
        match = re.fullmatch(rf"(.+?)_{re.escape(tag)}(?:_(wave_\d+))?", job.rule)
        rest = job.wildcards.removeprefix(model).removeprefix("_")
        if match:
            phase, name = match[1], f"{match[2]}_shard_{rest}" if match[2] else rest
        elif job.wildcards == model or job.wildcards.startswith(f"{model}_"):
            phase, name = job.rule, f"layer_{rest}" if re.fullmatch(r"\d{2,3}", rest) else rest
        else:
            continue
        # A requeued job may be listed with its successor: prefer the running one.
        if (phase, name) not in jobs or job.state == "RUNNING":
            jobs[phase, name] = job
    return jobs


def _log_name(job: Job) -> str:
    return f"{job.phase}/{job.name}.log" if job.name else f"{job.phase}.log"


def _activity(job: Job, queued: SlurmJob | None, log: Path) -> Activity:
    if job.done and queued is None:
        return Activity(job.phase, job.name, "done")
    start = _last_start(log)
    if queued is not None:
        if queued.state in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
            return Activity(job.phase, job.name, "queued", queued.id)
        # Otherwise the log is still that of an earlier attempt.
        same = start is not None and start.slurm_job == queued.id
        return _running(job, queued.id, queued.node, start.after if start and same else [], log)
    if start is None:
        return Activity(job.phase, job.name, "waiting")
    if not start.slurm_job and start.host == os.uname().nodename and _is_job(start.process):
        return _running(job, "", "", start.after, log)
    last = start.after[-1] if start.after else ""
    failed = any(" ERROR " in line for line in start.after)
    return Activity(
        job.phase, job.name, "failed" if failed else "cut off", start.slurm_job, last_line=last
    )


def _running(job: Job, slurm_job: str, node: str, lines: Sequence[str], log: Path) -> Activity:
    return Activity(
        job.phase,
        job.name,
        "running",
        slurm_job,
        node,
        _last_progress(lines),
        gpu_usage.last_sample(gpu_usage.samples_beside(log)),
    )


def _last_start(log: Path) -> _Start | None:
    """Start of the last attempt in a log, or None; only as much of its end is read as is needed."""
    try:
        size, read = log.stat().st_size, 0
        with log.open("rb") as stream:
            while read < size:
                read = min(size, max(_TAIL_BYTES, 4 * read))
                stream.seek(size - read)
                lines = stream.read().decode("utf-8", "replace").splitlines()
                for number in range(len(lines) - 1, -1, -1):
                    if match := _START.search(lines[number]):
                        return _Start(int(match[1]), match[2], match[3] or "", lines[number + 1 :])
    except OSError:
        return None
    return None


def _last_progress(lines: Sequence[str]) -> LoggedProgress | None:
    for line in reversed(lines):
        if match := _PROGRESS.search(line):
            done, total, unit, rate, left = match.groups()
            return LoggedProgress(
                _number(done), _number(total), unit, float(rate.replace(",", "")), left or ""
            )
    return None


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _is_job(process: int) -> bool:
    """Whether the process is alive and runs a rule's script: process ids are reused."""
    with contextlib.suppress(psutil.Error):
        return any(".snakemake/scripts/" in word for word in psutil.Process(process).cmdline())
    return False


def counts(activities: Iterable[Activity]) -> Mapping[str, dict[str, int]]:
    """Number of jobs by phase and state; phases in order of appearance."""
    counted: dict[str, dict[str, int]] = {}
    for activity in activities:
        states = counted.setdefault(activity.phase, {})
        states[activity.state] = states.get(activity.state, 0) + 1
    return counted


def at_work(activities: Iterable[Activity]) -> Iterator[Activity]:
    """Jobs that run, wait in Slurm's queue, failed or were cut off."""
    return (activity for activity in activities if activity.state not in ("done", "waiting"))
