"""The lease of a run on its folder: one run at a time, on any host, in any container, of any user.

A run creates a lease with the next number (`lease_file`) and renews the date of its file while it
works. At its end it releases the lease. The lease is live

- if its `flock` is held;
- else, if its process is visible from this machine, while this process exists (`lease_process`);
- else, while its date is recent by the clock of the file system.
"""

import atexit
import contextlib
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, lease_file, lease_process
from ghosttrack.runtime.lease_file import DIRECTORY, Lease, file_clock

RENEW_SECONDS = 15.0
# Eight renewals: some fail while a file server restarts or a machine is overloaded.
EXPIRY_SECONDS = 120.0
# Some file systems take dates from the client's clock, which may be wrong. So an expired lease of
# another machine is watched for two renewals before it is replaced.
WATCH_SECONDS = 2 * RENEW_SECONDS + 5
# Variable from `launch` to its Snakemake: token of the lease and process id of `launch`.
VARIABLE = "GHOSTTRACK_LEASE"
# Part of the command line of every job.
JOB_SCRIPTS = ".snakemake/scripts/"
# Snakemake cancels its jobs only at a KeyboardInterrupt. It may ignore SIGINT: a shell starts
# `command &` so.
END_SIGNAL = signal.SIGUSR2


class LeaseStatus(NamedTuple):
    """The newest lease in a folder, and the evidence whether it is live."""

    number: int
    path: Path
    lease: Lease | None  # None while it is being written
    modified: float  # time of its last renewal, s
    silent: float  # seconds since then, by the clock of the file system
    locked: bool  # whether a process holds its flock
    inode: int = 0

    @property
    def alive(self) -> bool | None:
        """Whether its process exists and works in this folder; None if this machine cannot tell."""
        if self.lease is None:
            return None
        if self.lease.inode not in (0, self.inode) and lease_process.is_visible(self.lease):
            return False  # the folder is a copy, and the run works in the original
        return lease_process.is_alive(self.lease)

    @property
    def expired(self) -> bool:
        """Whether the last renewal is too long ago."""
        return self.silent > EXPIRY_SECONDS

    @property
    def live(self) -> bool:
        """Whether a run may be active with this lease."""
        if self.locked:
            return True
        return not self.expired if self.alive is None else self.alive

    @property
    def holder(self) -> str:
        """User, host, process, command and times of the holder, in words."""
        seen = f"last sign of life {max(self.silent, 0):.0f} s ago"
        if self.lease is None:
            return f"{files.user_of(self.path)}, on a host that is not known yet, {seen}"
        lease = self.lease
        return (
            f"{lease.user} on {lease.host}, process {lease.pid} ({lease.command}), since "
            f"{lease.started}, {seen}"
        )

    @property
    def refusal(self) -> str:
        """Error message for another run in this folder."""
        return (
            f"another run is active in this folder: {self.holder}.\n{self._remedy}\nA folder can "
            "have one run at a time, because Snakemake keeps one set of locks and metadata in "
            "it. For two models in one run, use --config model=both; for two runs at once, use "
            "two clones."
        )

    @property
    def _remedy(self) -> str:
        host, pid = (self.lease.host, self.lease.pid) if self.lease else ("its host", 0)
        visible = self.lease is not None and lease_process.is_visible(self.lease)
        where = "" if visible else f" on {host}" if pid else " there"
        end = f"Wait until it has ended, or end it{where}: " + (
            f"kill {pid}" if pid else "its process is not known yet"
        )
        if self.alive and self.expired:
            return (
                f"{end}\nIts process is stopped, or cannot write to {DIRECTORY}. To continue it: "
                f"kill -CONT {pid}"
            )
        if self.alive:
            return end
        left = EXPIRY_SECONDS - self.silent
        if (self.locked and self.expired) or left > 2 * EXPIRY_SECONDS:
            return (
                f"{end}\nIf you know that {host} is gone for good: delete {DIRECTORY}, then run "
                "the same command again"
            )
        return (
            f"{end}\nIf {host} is gone for good, its lease expires in {max(left, 1):.0f} s: "
            "run the same command again then"
        )


class HeldLease:
    """A lease that this process holds."""

    def __init__(
        self, folder: Path, number: int, lease: Lease, handle: int, after_killed: bool
    ) -> None:
        self.folder, self.number, self.lease, self.handle = folder, number, lease, handle
        # Whether the run before was killed: its lease was not live, but not released either.
        self.after_killed = after_killed
        self._done = threading.Event()

    @property
    def path(self) -> Path:
        """The file of the lease."""
        return lease_file.path_of(self.folder, self.number)

    def keep_renewed(self, lost: Callable[[str], None]) -> None:
        """Renew the lease in a thread; call `lost` if another run takes over."""
        threading.Thread(
            target=self._renew_until_done, args=(lost,), name="lease", daemon=True
        ).start()

    def _renew_until_done(self, lost: Callable[[str], None]) -> None:
        while not self._done.wait(RENEW_SECONDS):
            # Try again if the file system does not answer.
            with contextlib.suppress(OSError, UserError):
                if not self.renew():
                    if not self._done.is_set():
                        lost(self._takeover())
                    return

    def renew(self) -> bool:
        """Set the file's date to the current time; False if another run has taken over."""
        if any(other > self.number for other, _ in lease_file.entries(self.folder)):
            return False
        if self.path.with_suffix(".ended").exists():  # released by the process that shares it
            self._done.set()
            return False
        try:
            os.utime(self.path)
        except FileNotFoundError:  # a user deleted it
            handle = lease_file.create(self.folder, self.number, self.lease)
            if handle is not None:
                os.close(self.handle)
                self.handle = handle
        return True

    def _takeover(self) -> str:
        newest = current(self.folder)
        other = f"the run of {newest.holder}" if newest else "another run, which has ended since,"
        return (
            f"{other} has taken this folder, because this run gave no sign of life for more than "
            f"{EXPIRY_SECONDS:.0f} s (was this machine asleep, or cut off from its files?). This "
            "run ends now, so that no job runs twice"
        )

    def hand_over(self, pid: int) -> None:
        """Make process `pid` of this machine, a Snakemake, the holder."""
        self.lease = self.lease._replace(pid=pid, ticks=lease_process.start_ticks(pid))
        # If the disk is full, the old record is valid while its process lives.
        with contextlib.suppress(OSError):
            lease_file.write(self.handle, self.lease)

    def release(self) -> None:
        """Release the lease, so that the next run can start at once."""
        if not self._done.is_set():
            with contextlib.suppress(OSError):
                self.path.rename(self.path.with_suffix(".ended"))
        self.leave()

    def leave(self) -> None:
        """Stop holding the lease but keep its file, by which the next run sees the kill."""
        if not self._done.is_set():
            self._done.set()
            os.close(self.handle)


def current(folder: Path) -> LeaseStatus | None:
    """The newest lease of `folder`; None if there is none or it was released.

    Raises:
        UserError: this user has no permission to read it.
    """
    number, ended = lease_file.newest(folder)
    if not number or ended:
        return None
    path = lease_file.path_of(folder, number)
    try:
        now = file_clock(path.parent)
        with path.open("rb") as stream:
            status = _status(number, path, stream.fileno(), now)
            for _ in range(20):  # another run may be writing it
                if status.lease or status.expired:
                    break
                time.sleep(0.05)
                status = _status(number, path, stream.fileno(), now)
            return status
    except FileNotFoundError:
        return None
    except PermissionError:
        raise lease_file.unreadable(path) from None


def _status(number: int, path: Path, handle: int, now: float) -> LeaseStatus:
    stat = os.fstat(handle)
    return LeaseStatus(
        number,
        path,
        lease_file.unpacked(os.pread(handle, 2 * lease_file.RECORD_BYTES, 0)),
        stat.st_mtime,
        now - stat.st_mtime,
        lease_file.flock_is_held(handle),
        stat.st_ino,
    )


def users(folder: Path) -> set[int]:
    """Ids of all users in the newest lease of `folder`: its holder and earlier holders."""
    number, ended = lease_file.newest(folder)
    try:
        record = lease_file.path_of(folder, number, "ended" if ended else "json").read_bytes()
    except OSError:
        return set()
    lease = lease_file.unpacked(record)
    return set(lease.users) if lease else set()


@contextlib.contextmanager
def hold(folder: Path, command: str, lost: Callable[[str], None]) -> Iterator[HeldLease]:
    """Hold and renew the lease of `folder` while the block runs.

    Args:
        folder: working directory of the run.
        command: the command of this run, for messages to other users.
        lost: called with a message, in a thread, if another run takes over.
    Raises:
        UserError: a live run holds the lease, or `results` cannot be read or written.
    """
    held = acquire(folder, command)
    held.keep_renewed(lost)
    try:
        yield held
    finally:
        held.release()


def acquire(folder: Path, command: str) -> HeldLease:
    """Take the lease of `folder`, unless it is live.

    Raises:
        UserError: a live run holds the lease, or `results` cannot be read or written.
    """
    while True:
        lease = for_this_process(command, users(folder))
        number, _ = lease_file.newest(folder)
        before = current(folder)
        if before and before.live:
            raise UserError(before.refusal)
        if before and before.alive is None:
            _watch(folder, before)
        if before and before.number != number:
            continue
        handle = lease_file.create(folder, number + 1, lease)
        if handle is not None:
            return HeldLease(folder, number + 1, lease, handle, after_killed=before is not None)
        time.sleep(0.1)


def for_this_process(command: str, earlier_users: set[int]) -> Lease:
    """A new lease for this process."""
    pid = os.getpid()
    return Lease(
        token=secrets.token_hex(8),
        host=os.uname().nodename,
        boot=lease_process.boot_id(),
        namespaces=lease_process.namespaces(),
        pid=pid,
        ticks=lease_process.start_ticks(pid),
        user=files.user_name(os.getuid()),
        command=command,
        started=datetime.now().astimezone().isoformat(" ", "seconds"),
        users=sorted({*earlier_users, os.getuid()}),
    )


def _watch(folder: Path, expired: LeaseStatus) -> None:
    """Watch whether an expired lease is renewed.

    Raises:
        UserError: the lease is renewed.
    """
    sys.stderr.write(
        f"The lease of the run of {expired.holder} has expired. Watching for {WATCH_SECONDS:.0f} s "
        "whether it is renewed, before this run takes over\n"
    )
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end and (again := current(folder)):
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if (again.number, again.modified) != (expired.number, expired.modified):
            raise UserError(again._replace(silent=0.0).refusal)


@cache
def hold_for_this_process(folder: Path) -> HeldLease:
    """Hold the lease of `folder` until this Snakemake ends: that of `launch`, or a new one.

    Raises:
        UserError: a live run holds the lease, or `results` cannot be read or written.
    """
    # Removed from the environment, so that jobs do not inherit it.
    token, _, parent = os.environ.pop(VARIABLE, "").partition(" ")
    held = _shared(folder, token) or acquire(folder, shortened(sys.argv[1:]))
    signal.signal(END_SIGNAL, signal.default_int_handler)

    def lost(message: str) -> None:
        if str(os.getppid()) != parent:  # otherwise `launch` ends this process with the message
            end_run(os.getpid(), message)

    held.keep_renewed(lost)
    atexit.register(lambda: held.leave() if snakemake_locks(folder) else held.release())
    return held


def _shared(folder: Path, token: str) -> HeldLease | None:
    """The lease of `launch` with this token; None without one or after a takeover."""
    status = current(folder) if token else None
    if status is None or status.lease is None or status.lease.token != token:
        return None
    try:
        handle = os.open(status.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    held = HeldLease(folder, status.number, status.lease, handle, after_killed=False)
    if status.lease.pid != os.getpid():  # `launch` was killed before it could hand over
        held.hand_over(os.getpid())
    return held


def end_run(snakemake: int, message: str) -> None:
    """Print `message`, and end the process `snakemake` and its jobs on this machine.

    Snakemake cancels its Slurm jobs itself. It ends first: if a job failed while it is running, it
    would delete the outputs, which belong to the other run.
    """
    import psutil  # slow to import, and most runs do not need it

    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        jobs = psutil.Process(snakemake).children(recursive=True)
        os.kill(snakemake, END_SIGNAL)
        time.sleep(1.0)
        for job in jobs:
            with contextlib.suppress(psutil.Error):
                if any(JOB_SCRIPTS in word for word in job.cmdline()):
                    job.terminate()


def snakemake_locks(folder: Path) -> list[Path]:
    """Files of Snakemake's lock on `folder`."""
    return sorted((folder / ".snakemake" / "locks").glob("*.lock"))


def clear_snakemake_locks(folder: Path) -> None:
    """Remove Snakemake's lock of a killed run; the caller must hold the lease."""
    if locks := snakemake_locks(folder):
        sys.stderr.write("clearing the lock of a run that was killed\n")
        for path in locks:
            path.unlink(missing_ok=True)


def shortened(arguments: list[str]) -> str:
    """`snakemake ARGUMENTS` in at most 100 characters."""
    text = shlex.join(["snakemake", *arguments])
    return text if len(text) <= 100 else f"{text[:97]}..."
