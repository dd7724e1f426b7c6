"""`python -m ghosttrack.planning.orphans [--wait | --cancel]`: jobs that still work in this folder without their Snakemake.

A Snakemake that is killed leaves its jobs behind: on Slurm, where the next run would submit them a second time, and
on one machine, where they hold the locks that the next run needs. They are found in squeue (by work folder and
Snakemake's comment), among this machine's processes, and by the locks in `results/`, on whatever host they are held.
Jobs of a live run are no orphans: the lease of the folder (`lease.py`) tells, for every host and user.
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

# Folders with a lock, below `results`: progress of training, stores while they are written.
LOCKS = ("*/state/*/*/lock", "*/*.partial/lock", "*/*/*.partial/lock", "*/*/*/*.partial/lock")
# After SIGTERM a step of training is finished and saved; what is not gone then is killed.
GRACE_SECONDS = 60.0
REMEDY = (
    "make orphans ARGS=--wait      waits until they have ended; what Slurm jobs finish is kept\n"
    "make orphans ARGS=--cancel    ends them; training keeps its checkpoint and goes on from there\n"
    "Then run the same command again."
)
UNSEEN = (
    "Looked at: Slurm jobs of everyone who ran something here, this machine's processes, the locks in results/. "
    "Processes of another host or container show by their locks only, and many jobs hold none.\n"
)


class Orphan(NamedTuple):
    """One job at work: a Slurm job, a process of this machine, or the holder of a lock that is neither."""

    kind: str  # "slurm", "process" or "lock"
    id: str  # Slurm's number, process id, or the locked folder
    name: str  # what it does
    where: str  # state, node, since when

    @property
    def line(self) -> str:
        """For a person."""
        kind = {"slurm": "Slurm job ", "process": "process ", "lock": "lock of "}[self.kind]
        return f"  {kind + self.id:<18} {self.name:<40} {self.where}".rstrip()


def find(folder: Path, *, require_slurm: bool = False) -> list[Orphan]:
    """Every job that works in `folder` now.

    Args:
        folder: with the Snakefile and `results`.
        require_slurm: whether an unanswered squeue is an error; else this machine alone is looked at then.
    Raises:
        UserError: squeue does not answer.
    """
    queued: list[slurm.SlurmJob] = []
    if slurm.available() or require_slurm:
        try:
            queued = slurm.jobs_in(folder, lease.users(folder))
        except UserError:
            if require_slurm:
                raise
    found = [
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
                whose = "" if process.uids().real == os.getuid() else f", of {process.username()}"
                found.append(Orphan("process", str(process.pid), script, f"since {since}{whose}"))
    known = {f"process {process.pid} on " for process in processes}
    for held in held_locks(folder / "results"):
        owner = files.owner_of(held)
        of_slurm = owner.rpartition(", Slurm job ")[2] if ", Slurm job " in owner else ""
        if of_slurm not in ids and not owner.startswith(tuple(known)):
            found.append(Orphan("lock", str(held), "", f"held by {owner or 'an unnamed process'}"))
    return found


def held_locks(results: Path) -> list[Path]:
    """Folders below `results` whose lock a live process holds, on this host or another."""
    return [
        path.parent
        for pattern in LOCKS
        for path in sorted(results.glob(pattern))
        if files.locked(path.parent)
    ]


def job_processes(folder: Path) -> list[psutil.Process]:
    """This machine's processes that run a rule's script in `folder`."""
    return [
        process
        for process, words in _processes(folder)
        if any(lease.JOB_SCRIPTS in word for word in words)
    ]


def runs(folder: Path) -> list[psutil.Process]:
    """Snakemake processes at work in `folder` that submit jobs, this one and its parents left out; dry runs are none."""
    mine = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process, words in _processes(folder)
        if process.pid not in mine
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
    """Whether a process works in `folder`. Another user's is known by its script's name, which is there only."""
    try:
        return Path(process.cwd()) == folder
    except psutil.AccessDenied:
        scripts = [Path(word).name for word in words if lease.JOB_SCRIPTS in word]
        return any((folder / lease.JOB_SCRIPTS / name).exists() for name in scripts)


def _script(process: psutil.Process) -> str:
    """`train_sae` from `.snakemake/scripts/tmpab12.train_sae.py`; "" of a process that has ended meanwhile and has no words left."""
    words = (word for word in process.cmdline() if lease.JOB_SCRIPTS in word)
    return next((Path(word).name.split(".")[-2] for word in words), "")


def _slurm_job(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("SLURM_JOB_ID", "")
    return ""


def described(found: Sequence[Orphan]) -> str:
    """The list for a person, headed by their number."""
    number = "1 job" if len(found) == 1 else f"{len(found)} jobs"
    return "\n".join(
        [
            f"{number} of an earlier run still at work in this folder:",
            *(each.line for each in found),
        ]
    )


def refuse(folder: Path, *, require_slurm: bool) -> None:
    """Before anything is submitted: end with the list and the remedy if jobs still work here.

    Raises:
        UserError: there are some, or squeue does not answer.
    """
    if found := find(folder, require_slurm=require_slurm):
        raise UserError(
            f"{described(found)}\nA second writer could spoil what they make, so nothing was started.\n{REMEDY}"
        )


def cancel(found: Sequence[Orphan]) -> None:
    """Ask all to end, and wait; processes that do not within a minute are killed. Other hosts' and users' jobs stay."""
    slurm.cancel([each.id for each in found if each.kind == "slurm"])
    processes = []
    for each in found:
        if each.kind == "process":
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = psutil.Process(int(each.id))
                process.send_signal(signal.SIGTERM)
                processes.append(process)
    for process in psutil.wait_procs(processes, timeout=GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait(folder: Path, seconds: float = float("inf"), every: float = 5.0) -> list[Orphan]:
    """Until nothing works in `folder` any more or `seconds` are over; what is left. Says so whenever fewer are left."""
    end, before = time.monotonic() + seconds, -1
    while (found := find(folder)) and time.monotonic() < end:
        if len(found) != before:
            sys.stderr.write(f"waiting for {', '.join(each.id for each in found)}\n")
            before = len(found)
        time.sleep(min(every, max(0.0, end - time.monotonic())))
    return found


def main(arguments: list[str]) -> int:
    """List, wait for or end them; 0 when none are left, 1 when some are, 2 when that cannot be told."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.planning.orphans", description="Jobs of a killed run that still work here."
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--wait", action="store_true", help="until they have ended")
    chosen.add_argument(
        "--cancel", action="store_true", help="end them; training keeps its checkpoint"
    )
    given = parser.parse_args(arguments)
    folder = Path.cwd()
    try:
        if at_work := _live_run(folder):
            sys.stderr.write(f"{at_work}: its jobs are no orphans. Stop it first.\n")
            return 1
        found = find(folder, require_slurm=slurm.available())
        if found and given.wait:
            found = wait(folder)
        elif found and given.cancel:
            found = _cancel_all(folder)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if not found:
        sys.stdout.write(f"no orphans: no job of an earlier run works in this folder\n{UNSEEN}")
        return 0
    sys.stdout.write(f"{described(found)}\n{REMEDY}\n")
    return 1


def _live_run(folder: Path) -> str:
    """What runs in `folder` under a live lease, or as a Snakemake of this machine; "" if nothing does."""
    found = lease.current(folder)
    if found and found.live:
        return f"A run is at work here ({found.holder})"
    listed = ", ".join(str(process.pid) for process in runs(folder))
    return f"A Snakemake is at work here (process {listed})" if listed else ""


def _cancel_all(folder: Path) -> list[Orphan]:
    """End every orphan, under the folder's lease: no run can start meanwhile, so none of its jobs is among them."""
    with lease.hold(folder, "make orphans ARGS=--cancel", _lost) as held:
        if held.after_killed:
            lease.clear_snakemake_locks(folder)
        cancel(find(folder, require_slurm=slurm.available()))
        # Slurm needs KillWait, 30 s unless the site changed it, for jobs that do not listen.
        return wait(folder, 2 * GRACE_SECONDS, 1.0)


def _lost(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
