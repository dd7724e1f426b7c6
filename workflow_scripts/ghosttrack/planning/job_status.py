"""What each job of a run is doing now: from Slurm's queue, from the jobs' own logs, and from the processes of this machine.

Nothing is locked or written. A job runs when Slurm says so, or when the process that began its log is alive. One that
began, is not done and does not run has failed, or was cut off; the last line of its log says which.
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
# The end of a log that is read: some hundred progress lines.
_TAIL_BYTES = 32_768
_START = re.compile(r"INFO process (\d+) on (\S+?)(?:, Slurm job (\d+))?(?:, GPU (\S+))?$")
_PROGRESS = re.compile(
    r"INFO .*?: ([\d,]+)/([\d,]+) (\w+), ([\d,.]+) \w+/s(?:, (.+?) left)?(?:, took .*?)?(?:;.*)?$"
)


class Progress(NamedTuple):
    """The last progress line of a job: units done and in all, units a second, and the time left in words."""

    done: int
    total: int
    unit: str
    rate: float
    left: str


class Activity(NamedTuple):
    """One job now. `slurm_job` and `node` are "" where there are none, `last_line` is that of a job that did not finish."""

    phase: str
    name: str
    state: State
    slurm_job: str = ""
    node: str = ""
    progress: Progress | None = None
    gpu: gpu_usage.Sample | None = None
    last_line: str = ""


class _Start(NamedTuple):
    process: int
    host: str
    slurm_job: str
    after: list[str]  # the lines since


def look(
    model: str, jobs: Iterable[Job], queue: Sequence[SlurmJob], results: Path
) -> list[Activity]:
    """What every job does, in the given order; `queue` is what Slurm holds of this folder."""
    logs, queued = results / model / "logs", by_job(model, queue)
    return [
        _activity(job, queued.get((job.phase, job.name)), logs / _log_name(job)) for job in jobs
    ]


def by_job(model: str, queue: Iterable[SlurmJob]) -> dict[tuple[str, str], SlurmJob]:
    """Slurm's jobs by phase and name, as `monitor` has them; those of other models are left out."""
    found = {}
    tag = plan.rule_names([model])[model]
    for job in queue:
        named = re.fullmatch(rf"(.+?)_{re.escape(tag)}(?:_(wave_\d+))?", job.rule)
        rest = job.wildcards.removeprefix(model).removeprefix("_")
        if named:
            phase, name = named[1], f"{named[2]}_shard_{rest}" if named[2] else rest
        elif job.wildcards == model or job.wildcards.startswith(f"{model}_"):
            phase, name = job.rule, f"layer_{rest}" if re.fullmatch(r"\d{2,3}", rest) else rest
        else:
            continue
        # A job that is being requeued may stand beside its successor: the one that runs tells more.
        if (phase, name) not in found or job.state == "RUNNING":
            found[phase, name] = job
    return found


def _log_name(job: Job) -> str:
    return f"{job.phase}/{job.name}.log" if job.name else f"{job.phase}.log"


def _activity(job: Job, queued: SlurmJob | None, log: Path) -> Activity:
    if job.done and queued is None:
        return Activity(job.phase, job.name, "done")
    start = _last_start(log)
    if queued is not None:
        if queued.state in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
            return Activity(job.phase, job.name, "queued", queued.id)
        own = (
            start is not None and start.slurm_job == queued.id
        )  # else the log is still that of an earlier attempt
        return _running(job, queued.id, queued.node, start.after if start and own else [], log)
    if start is None:
        return Activity(job.phase, job.name, "waiting")
    if not start.slurm_job and start.host == os.uname().nodename and _works(start.process):
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
    """Where the last attempt that a log tells of began; None without one in its last part."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for number in range(len(lines) - 1, -1, -1):
        if found := _START.search(lines[number]):
            return _Start(int(found[1]), found[2], found[3] or "", lines[number + 1 :])
    return None


def _last_progress(lines: Sequence[str]) -> Progress | None:
    for line in reversed(lines):
        if found := _PROGRESS.search(line):
            done, total, unit, rate, left = found.groups()
            return Progress(
                _number(done), _number(total), unit, float(rate.replace(",", "")), left or ""
            )
    return None


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _works(process: int) -> bool:
    """Whether it is alive and a rule's script: numbers of processes are used again."""
    with contextlib.suppress(psutil.Error):
        return any(".snakemake/scripts/" in word for word in psutil.Process(process).cmdline())
    return False


def counts(found: Iterable[Activity]) -> Mapping[str, dict[str, int]]:
    """Jobs by phase and state, phases in order of appearance."""
    counted: dict[str, dict[str, int]] = {}
    for each in found:
        states = counted.setdefault(each.phase, {})
        states[each.state] = states.get(each.state, 0) + 1
    return counted


def at_work(found: Iterable[Activity]) -> Iterator[Activity]:
    """Jobs that run, wait in Slurm's queue, failed or were cut off."""
    return (each for each in found if each.state not in ("done", "waiting"))
