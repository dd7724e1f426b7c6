"""`python -m ghosttrack.planning.orphans [--wait | --cancel]`: running jobs of a killed run.

When Snakemake is killed, its jobs keep running: on Slurm, where the next run would submit them a
second time, and on this machine, where they hold locks that the next run needs. They are found with
squeue (by working directory and Snakemake's comment), among the processes of this machine, and by
the locks in `results/`, on any host. Jobs of a live run are no orphans; the lease of the folder
(`runtime.lease`) tells whether a run is live.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from ghosttrack.errors import UserError
from ghosttrack.planning import slurm
from ghosttrack.runtime import files, lease

# Patterns of lock files below `results`: of training states, and of stores that are being written.
LOCKS = ("*/state/*/*/lock", "*/*.partial/lock", "*/*/*.partial/lock", "*/*/*/*.partial/lock")
# Seconds after SIGTERM in which training finishes its step and saves a checkpoint, before SIGKILL.
GRACE_SECONDS = 60.0
REMEDY = (
    "make orphans ARGS=--wait      waits until they end; results of Slurm jobs are kept\n"
    "make orphans ARGS=--cancel    ends them; training resumes from its checkpoint in the next run\n"
    "Then run the same command again."
)
UNSEEN = (
    "Checked: Slurm jobs of all users of this folder, the processes of this machine, and the "
    "locks in results/. Processes on another host or in a container are only visible by their "
    "locks, and many jobs hold no lock.\n"
)


class Orphan(NamedTuple):
    """A running job: a Slurm job, a process of this machine, or another holder of a lock."""

    kind: str  # "slurm", "process" or "lock"
    id: str  # Slurm job id, process id, or the locked folder
    name: str  # rule and wildcards
    where: str  # state, node, time

    @property
    def line(self) -> str:
        """One line of text."""
        kind = {"slurm": "Slurm job ", "process": "process ", "lock": "lock of "}[self.kind]
        return f"  {kind + self.id:<18} {self.name:<40} {self.where}".rstrip()


def find(folder: Path, *, require_slurm: bool = False) -> list[Orphan]:
    """Every job that runs in `folder`.

    Args:
        folder: the folder of the Snakefile and `results`.
        require_slurm: whether it is an error if squeue does not answer; otherwise Slurm is ignored
            then.
    Raises:
        UserError: squeue does not answer, and `require_slurm` is set.
    """
    queued: list[slurm.SlurmJob] = []
    if slurm.available() or require_slurm:
        try:
            queued = slurm.jobs_in(folder, lease.users(folder))
        except UserError:
            if require_slurm:
                raise
    orphans = [
        Orphan(
            "slurm",
            job.id,
            f"{job.rule} {job.wildcards}".strip(),
            f"{job.state} {job.node} {job.elapsed}",
        )
        for job in queued
    ]
    ids = {job.id for job in queued}
    processes = [process for process in job_processes(folder) if _slurm_job(process) not in ids]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            since = time.strftime("%H:%M:%S", time.localtime(process.create_time()))
            if script := _script(process):
                owner = "" if process.uids().real == os.getuid() else f", of {process.username()}"
                orphans.append(Orphan("process", str(process.pid), script, f"since {since}{owner}"))
    known = {f"process {process.pid} on " for process in processes}
    for held in held_locks(folder / "results"):
        owner = files.owner_of(held)
        slurm_id = owner.rpartition(", Slurm job ")[2] if ", Slurm job " in owner else ""
        if slurm_id not in ids and not owner.startswith(tuple(known)):
            orphans.append(
                Orphan("lock", str(held), "", f"held by {owner or 'an unknown process'}")
            )
    return orphans


def held_locks(results: Path) -> list[Path]:
    """Folders below `results` whose lock a live process on any host holds."""
    return [
        path.parent
        for pattern in LOCKS
        for path in sorted(results.glob(pattern))
        if files.locked(path.parent)
    ]


def job_processes(folder: Path) -> list[psutil.Process]:
    """Processes of this machine that run a rule's script in `folder`."""
    return [
        process
        for process, words in _processes(folder)
        if any(lease.JOB_SCRIPTS in word for word in words)
    ]


def runs(folder: Path) -> list[psutil.Process]:
    """Snakemake processes in `folder`, except dry runs, jobs, this process and its parents."""
    excluded = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process, words in _processes(folder)
        if process.pid not in excluded
        and any(Path(word).name == "snakemake" for word in words[:4])
        and not {"-n", "--dry-run", "--dryrun", "--mode"} & set(words)
    ]


def _processes(folder: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] == psutil.STATUS_ZOMBIE or not any(
            "snakemake" in word for word in words
        ):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if _works_in(folder, process, words):
                yield process, words


def _works_in(folder: Path, process: psutil.Process, words: list[str]) -> bool:
    """Whether a process runs in `folder`; another user's process, whether its script is there."""
    try:
        return Path(process.cwd()) == folder
    except psutil.AccessDenied:
        scripts = [Path(word).name for word in words if lease.JOB_SCRIPTS in word]
        return any((folder / lease.JOB_SCRIPTS / name).exists() for name in scripts)


def _script(process: psutil.Process) -> str:
    """`train_sae` from `.snakemake/scripts/tmpab12.train_sae.py`; "" if the process has ended."""
    words = (word for word in process.cmdline() if lease.JOB_SCRIPTS in word)
    return next((Path(word).name.split(".")[-2] for word in words), "")


def _slurm_job(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("SLURM_JOB_ID", "")
    return ""


def described(orphans: Sequence[Orphan]) -> str:
    """A list with the number of jobs and a line per job."""
    number = "1 job" if len(orphans) == 1 else f"{len(orphans)} jobs"
    return "\n".join(
        [
            f"{number} of an earlier run still running in this folder:",
            *(orphan.line for orphan in orphans),
        ]
    )


def refuse(folder: Path, *, require_slurm: bool) -> None:
    """Refuse to start a run while jobs of an earlier run are still running.

    Raises:
        UserError: there are such jobs, or squeue does not answer.
    """
    if orphans := find(folder, require_slurm=require_slurm):
        raise UserError(
            f"{described(orphans)}\nA second writer could damage their results, so nothing was "
            f"started.\n{REMEDY}"
        )


def cancel(orphans: Sequence[Orphan]) -> None:
    """Terminate Slurm jobs and processes; kill processes that do not end within a minute.

    Jobs of other hosts and users keep running.
    """
    slurm.cancel([orphan.id for orphan in orphans if orphan.kind == "slurm"])
    processes = []
    for orphan in orphans:
        if orphan.kind == "process":
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = psutil.Process(int(orphan.id))
                process.send_signal(signal.SIGTERM)
                processes.append(process)
    for process in psutil.wait_procs(processes, timeout=GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait(folder: Path, seconds: float = float("inf"), every: float = 5.0) -> list[Orphan]:
    """Wait until no orphan is left, at most for `seconds`; returns the remaining ones."""
    end, before = time.monotonic() + seconds, -1
    while (orphans := find(folder)) and time.monotonic() < end:
        if len(orphans) != before:
            sys.stderr.write(f"waiting for {', '.join(orphan.id for orphan in orphans)}\n")
            before = len(orphans)
        time.sleep(min(every, max(0.0, end - time.monotonic())))
    return orphans


def main(arguments: list[str]) -> int:
    """List, wait for or cancel orphans; 0 if none are left, 1 if some are, 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.planning.orphans",
        description="Jobs of a killed run that are still running in this folder.",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--wait", action="store_true", help="wait until they end")
    chosen.add_argument(
        "--cancel", action="store_true", help="end them; training keeps its checkpoint"
    )
    given = parser.parse_args(arguments)
    folder = Path.cwd()
    try:
        if live := _live_run(folder):
            sys.stderr.write(f"{live}: its jobs are no orphans. Stop it first.\n")
            return 1
        orphans = find(folder, require_slurm=slurm.available())
        if orphans and given.wait:
            orphans = wait(folder)
        elif orphans and given.cancel:
            orphans = _cancel_all(folder)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if not orphans:
        sys.stdout.write(
            f"no orphans: no job of an earlier run is running in this folder\n{UNSEEN}"
        )
        return 0
    sys.stdout.write(f"{described(orphans)}\n{REMEDY}\n")
    return 1


def _live_run(folder: Path) -> str:
    """The live run in `folder`, by its lease or its process, as text; "" if there is none."""
    newest = lease.current(folder)
    if newest and newest.live:
        return f"A run is active in this folder ({newest.holder})"
    listed = ", ".join(str(process.pid) for process in runs(folder))
    return f"Snakemake is running in this folder (process {listed})" if listed else ""


def _cancel_all(folder: Path) -> list[Orphan]:
    """Cancel every orphan, with the lease of the folder, so that no run starts meanwhile."""
    with lease.hold(folder, "make orphans ARGS=--cancel", _lost) as held:
        if held.after_killed:
            lease.clear_snakemake_locks(folder)
        cancel(find(folder, require_slurm=slurm.available()))
        # Slurm kills a job that ignores SIGTERM after KillWait, by default 30 s.
        return wait(folder, 2 * GRACE_SECONDS, 1.0)


def _lost(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
