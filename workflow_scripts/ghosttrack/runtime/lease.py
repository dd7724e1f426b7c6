"""The lease of a run on its folder, in `results/.run`: one run at a time, on any host, in any container, of any user.

A run creates `lease_NUMBER.json`, one number above the newest, and renews the file's date while it works. At its end it
renames the file to `.ended`. Creating the next number is atomic on every file system, so of two runs that find the same
dead lease exactly one takes its place. A lease is live while its process exists, as far as this machine can see it.
Where it cannot, the lease is live while its `flock` is held or its date is recent by the file system's own clock.
"""

import atexit
import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

DIRECTORY = Path("results") / ".run"
RENEW_SECONDS = 15.0
# Eight renewals: a file server that restarts or a machine under load misses a few of them.
EXPIRY_SECONDS = 120.0
# Some file systems take dates from the client's clock. Before a silent lease of another machine is replaced, its file
# is watched for two renewals, so that a wrong clock alone never ends a live run.
WATCH_SECONDS = 2 * RENEW_SECONDS + 5
# Of launch for the Snakemake that it starts: token of the lease and process id of launch.
VARIABLE = "GHOSTTRACK_LEASE"
# What the command line of a job's process holds.
JOB_SCRIPTS = ".snakemake/scripts/"
# Snakemake cancels its jobs at a KeyboardInterrupt only. SIGINT cannot be relied on: a shell's `command &` ignores it.
END_SIGNAL = signal.SIGUSR2

_NAME = re.compile(r"lease_(\d+)\.(json|ended)")
# One length for every record: a record that replaces another leaves no rest of it.
_RECORD_BYTES = 2048


class Lease(NamedTuple):
    """Who holds the folder. `boot`, `namespaces` and `ticks` are "" or 0 where the system does not tell them."""

    token: str
    host: str
    boot: str  # id of the host's current boot
    namespaces: str  # inodes of the process's pid and time namespaces: containers have their own
    pid: int
    ticks: int  # start of the process, in clock ticks since boot
    user: str
    command: str
    started: str  # local time with its offset from UTC
    users: list[
        int
    ]  # ids of everyone who has held this folder's lease: their Slurm jobs may still be queued
    inode: int = 0  # of the lease's file: a copy of the folder holds a copy of the lease


class Found(NamedTuple):
    """The newest lease in a folder, and what shows whether it is live."""

    number: int
    path: Path
    lease: Lease | None  # None while it is being written
    modified: float  # date of its last renewal, s
    silent: float  # seconds since then, by the file system's clock
    locked: bool  # whether a process holds its flock
    inode: int = 0

    @property
    def alive(self) -> bool | None:
        """Whether its process exists and works here; None where this machine cannot tell."""
        if self.lease and self.lease.inode not in (0, self.inode) and _same_processes(self.lease):
            return False  # the folder is a copy: its run works in the original
        return _alive(self.lease) if self.lease else None

    @property
    def expired(self) -> bool:
        """Whether it was not renewed for too long."""
        return self.silent > EXPIRY_SECONDS

    @property
    def live(self) -> bool:
        """Whether a run may be at work under it."""
        if self.locked:
            return True
        return not self.expired if self.alive is None else self.alive

    @property
    def holder(self) -> str:
        """`ann on node3, process 12 (snakemake saes), since 2026-11-28 19:05:00+01:00, last sign of life 7 s ago`."""
        seen = f"last sign of life {max(self.silent, 0):.0f} s ago"
        if self.lease is None:
            return f"{files.user_of(self.path)}, on a host that is not known yet, {seen}"
        each = self.lease
        return f"{each.user} on {each.host}, process {each.pid} ({each.command}), since {each.started}, {seen}"

    @property
    def refusal(self) -> str:
        """The message for another run."""
        return (
            f"another run is at work in this folder: {self.holder}.\n{self._remedy}\n"
            "A folder takes one run at a time, because Snakemake keeps one set of locks and records for it. "
            "Two models together are one run with --config model=both; two runs at once need a clone each."
        )

    @property
    def _remedy(self) -> str:
        host, pid = (self.lease.host, self.lease.pid) if self.lease else ("its host", 0)
        here = self.lease is not None and _same_processes(self.lease)
        place = "" if here else f" on {host}" if pid else " there"
        end = f"Wait until it has ended, or end it{place}: " + (
            f"kill {pid}" if pid else "its process is not known yet"
        )
        if self.alive and self.expired:
            return f"{end}\nIts process is stopped, or cannot write to {DIRECTORY}. To continue it: kill -CONT {pid}"
        if self.alive:
            return end
        left = EXPIRY_SECONDS - self.silent
        if (self.locked and self.expired) or left > 2 * EXPIRY_SECONDS:
            return f"{end}\nIf you know that {host} is gone for good: delete {DIRECTORY}, then run the same command again"
        return (
            f"{end}\nIf {host} is gone for good, its lease runs out in {max(left, 1):.0f} s: "
            "run the same command again then"
        )


class Held:
    """A lease that this process holds."""

    def __init__(
        self, folder: Path, number: int, lease: Lease, handle: int, after_killed: bool
    ) -> None:
        self.folder, self.number, self.lease, self.handle = folder, number, lease, handle
        self.after_killed = after_killed  # whether the run before was killed: its lease was dead, but not given back
        self._done = threading.Event()

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.folder / DIRECTORY / f"lease_{self.number:06d}.json"

    def keep_renewed(self, lost: Callable[[str], None]) -> None:
        """Renew the lease in a thread until it is released; call `lost` with a message when another run took its place."""
        threading.Thread(
            target=self._renew_until_done, args=(lost,), name="lease", daemon=True
        ).start()

    def _renew_until_done(self, lost: Callable[[str], None]) -> None:
        while not self._done.wait(RENEW_SECONDS):
            with contextlib.suppress(
                OSError, UserError
            ):  # the file system does not answer: try again
                if not self.renew():
                    if not self._done.is_set():
                        lost(self._lost_to())
                    return

    def renew(self) -> bool:
        """Set the file's date to the file system's present; False when another run took the lease's place."""
        if _later(self.folder, self.number):
            return False
        if self.path.with_suffix(".ended").exists():  # given back by the process that shares it
            self._done.set()
            return False
        try:
            os.utime(self.path)
        except FileNotFoundError:  # somebody deleted it
            handle = _create(self.folder, self.number, self.lease)
            if handle is not None:
                os.close(self.handle)
                self.handle = handle
        return True

    def _lost_to(self) -> str:
        found = current(self.folder)
        other = f"the run of {found.holder}" if found else "another run, which has ended since,"
        return (
            f"{other} has taken this folder, because this run gave no sign of life for more than {EXPIRY_SECONDS:.0f} s "
            "(was this machine asleep, or cut off from its files?). This run ends now, so that no job runs twice"
        )

    def hand_over(self, pid: int) -> None:
        """Name process `pid` of this machine as the holder: the Snakemake that works under the lease."""
        self.lease = self.lease._replace(pid=pid, ticks=_ticks(pid))
        with contextlib.suppress(
            OSError
        ):  # no room: the old record stays right as long as its process lives
            _put(self.handle, self.lease)

    def release(self) -> None:
        """Give the lease back, so that the next run starts at once."""
        if not self._done.is_set():
            with contextlib.suppress(OSError):
                self.path.rename(self.path.with_suffix(".ended"))
        self.leave()

    def leave(self) -> None:
        """Hold it no longer, but leave its file: the next run sees that this one was killed, and cleans up after it."""
        if not self._done.is_set():
            self._done.set()
            os.close(self.handle)


def current(folder: Path) -> Found | None:
    """The newest lease of `folder`, live or dead; None if there is none or it was given back.

    Raises:
        UserError: this user may not read it.
    """
    number, ended = _newest(folder)
    if not number or ended:
        return None
    path = folder / DIRECTORY / f"lease_{number:06d}.json"
    try:
        now = file_clock(path.parent)
        with path.open("rb") as stream:
            found = _found(number, path, stream.fileno(), now)
            for _ in range(20):  # it may be in the middle of its first write
                if found.lease or found.expired:
                    break
                time.sleep(0.05)
                found = _found(number, path, stream.fileno(), now)
            return found
    except FileNotFoundError:
        return None
    except PermissionError:
        raise _unreadable(path) from None


def users(folder: Path) -> set[int]:
    """Ids of everyone who has held the lease of `folder`, as far as it says so."""
    number, ended = _newest(folder)
    path = folder / DIRECTORY / f"lease_{number:06d}.{'ended' if ended else 'json'}"
    try:
        lease = _unpacked(path.read_bytes())
    except OSError:
        return set()
    return set(lease.users) if lease else set()


def _found(number: int, path: Path, handle: int, now: float) -> Found:
    status = os.fstat(handle)
    lease = _unpacked(os.pread(handle, 2 * _RECORD_BYTES, 0))
    silent = now - status.st_mtime
    return Found(
        number, path, lease, status.st_mtime, silent, _flock_is_held(handle), status.st_ino
    )


@contextlib.contextmanager
def hold(folder: Path, command: str, lost: Callable[[str], None]) -> Iterator[Held]:
    """Hold and renew the lease of `folder` while the block runs.

    Args:
        folder: the run's working directory.
        command: what runs, for the message that others get.
        lost: called with a message, in a thread, when another run took the lease's place.
    Raises:
        UserError: a live run holds it, or `results` cannot be read or written.
    """
    held = acquire(folder, command)
    held.keep_renewed(lost)
    try:
        yield held
    finally:
        held.release()


def acquire(folder: Path, command: str) -> Held:
    """Take the lease of `folder`, after a dead one too.

    Raises:
        UserError: a live run holds it, or `results` cannot be read or written.
    """
    while True:
        lease = _of_this_process(command, users(folder))
        number, _ = _newest(folder)
        found = current(folder)
        if found and found.live:
            raise UserError(found.refusal)
        if found and found.alive is None:
            _watch(folder, found)
        if found and found.number != number:
            continue
        handle = _create(folder, number + 1, lease)
        if handle is not None:
            return Held(folder, number + 1, lease, handle, after_killed=found is not None)
        time.sleep(0.1)


def _watch(folder: Path, found: Found) -> None:
    """See that a lease which ran out is not renewed after all.

    Raises:
        UserError: it is.
    """
    sys.stderr.write(
        f"The run of {found.holder}. Its lease has run out; watching for {WATCH_SECONDS:.0f} s whether it is renewed "
        "before this run takes its place\n"
    )
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end and (again := current(folder)):
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if (again.number, again.modified) != (found.number, found.modified):
            raise UserError(again._replace(silent=0.0).refusal)


@cache
def hold_for_this_process(folder: Path) -> Held:
    """Hold the lease of `folder` until this Snakemake ends: the one that launch took for it, or one of its own.

    Raises:
        UserError: a live run holds it, or `results` cannot be read or written.
    """
    token, _, parent = os.environ.pop(VARIABLE, "").partition(" ")  # jobs are not to inherit it
    held = _shared(folder, token) or acquire(folder, shortened(sys.argv[1:]))
    signal.signal(END_SIGNAL, signal.default_int_handler)

    def lost(message: str) -> None:
        if str(os.getppid()) != parent:  # else launch says it and ends this process
            end_run(os.getpid(), message)

    held.keep_renewed(lost)
    atexit.register(lambda: held.leave() if snakemake_locks(folder) else held.release())
    return held


def _shared(folder: Path, token: str) -> Held | None:
    """The lease with this token, which launch took; None if there is none, or another run took its place meanwhile."""
    found = current(folder) if token else None
    if found is None or found.lease is None or found.lease.token != token:
        return None
    try:
        handle = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    held = Held(folder, found.number, found.lease, handle, after_killed=False)
    if found.lease.pid != os.getpid():  # launch was killed before it could do so
        held.hand_over(os.getpid())
    return held


def end_run(snakemake: int, message: str) -> None:
    """Say why, then end process `snakemake` and its jobs on this machine; Snakemake cancels those on Slurm itself.

    Snakemake is told first: of a job that fails while it works it would delete the outputs, which are the other run's.
    """
    import psutil  # only now: most runs never need it

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
    """Files of Snakemake's own lock on `folder`."""
    return sorted((folder / ".snakemake" / "locks").glob("*.lock"))


def clear_snakemake_locks(folder: Path) -> None:
    """Remove Snakemake's own lock. Only for the holder of the lease, after a run that was killed."""
    if locks := snakemake_locks(folder):
        sys.stderr.write("clearing the lock of a run that was killed\n")
        for path in locks:
            path.unlink(missing_ok=True)


def shortened(arguments: list[str]) -> str:
    """`snakemake ARGUMENTS` in at most 100 characters."""
    text = shlex.join(["snakemake", *arguments])
    return text if len(text) <= 100 else f"{text[:97]}..."


def file_clock(directory: Path) -> float:
    """The present by the clock of the file system that `directory` is on; this machine's where it cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.utime(probe.fileno())
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


# ---- the files
def _entries(folder: Path) -> list[tuple[int, str]]:
    """Number and ending, `json` or `ended`, of every lease; none before the first run."""
    try:
        names = [path.name for path in (folder / DIRECTORY).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise _unreadable(folder / DIRECTORY) from None
    return [(int(match[1]), match[2]) for match in map(_NAME.fullmatch, names) if match]


def _newest(folder: Path) -> tuple[int, bool]:
    """Highest number, 0 without one, and whether its lease was given back."""
    entries = _entries(folder)
    number = max((number for number, _ in entries), default=0)
    return number, (number, "ended") in entries


def _later(folder: Path, number: int) -> bool:
    return any(other > number for other, _ in _entries(folder))


def _create(folder: Path, number: int, lease: Lease) -> int | None:
    """Make the lease of this number and remove older ones; its open file, or None if another run was first.

    Between two that create one at the same time the file system decides. One that was late, because others came and
    went since it looked, finds their files beside its own and withdraws.
    """
    path = folder / DIRECTORY / f"lease_{number:06d}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        if path.parent.is_dir():
            return None
        raise _unwritable(path.parent, error) from None
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    try:
        _fill(handle, lease)
        others = [entry for entry in _entries(folder) if entry != (number, "json")]
    except OSError as error:
        _withdraw(path, handle)
        raise _unwritable(path, error) from None
    if any(other >= number for other, _ in others):
        _withdraw(path, handle)
        return None
    for other, ending in others:
        with contextlib.suppress(OSError):  # another user's, in a folder with the sticky bit
            path.with_name(f"lease_{other:06d}.{ending}").unlink()
    return handle


def _fill(handle: int, lease: Lease) -> None:
    with contextlib.suppress(OSError):  # flock does not work here: process and date decide
        files.flock(handle)
    _put(handle, lease)
    os.fsync(handle)


def _put(handle: int, lease: Lease) -> None:
    os.pwrite(handle, _packed(lease._replace(inode=os.fstat(handle).st_ino)), 0)


def _withdraw(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)
    os.close(handle)


def _unreadable(path: Path) -> UserError:
    owner = files.user_of(path)
    return UserError(
        f"{path} belongs to {owner}, and you may not read it: whether a run of {owner} is at work here cannot be told. "
        f"Ask {owner} to share the folder with your group (chmod -R g+rwX results .snakemake, and umask 002 for later "
        "runs), or work in a clone of your own"
    )


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}): it belongs to {files.user_of(path)}. Every run writes there: "
        "make `results` a folder with room that you may write to, or work in a clone of your own"
    )


def _flock_is_held(handle: int) -> bool:
    """Whether another open file holds it; False where flock does not work."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _packed(lease: Lease) -> bytes:
    """The record with a checksum: who reads while it is being replaced sees that it is no record."""
    fields = lease._asdict()
    return (
        json.dumps({**fields, "check": files.sha256_json(fields)}, indent=1)
        .encode()
        .ljust(_RECORD_BYTES)
        + b"\n"
    )


def _unpacked(text: bytes) -> Lease | None:
    try:
        fields = json.loads(text)
        return Lease(**fields) if fields.pop("check") == files.sha256_json(fields) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


# ---- processes
def _of_this_process(command: str, before: set[int]) -> Lease:
    pid, users = os.getpid(), sorted({*before, os.getuid()})
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    user = files.user_name(os.getuid())
    return Lease(
        secrets.token_hex(8),
        os.uname().nodename,
        _boot(),
        _namespaces(),
        pid,
        _ticks(pid),
        user,
        command,
        started,
        users,
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespaces() -> str:
    """Process ids mean something within a pid namespace, their start times within a time namespace."""
    try:
        return " ".join(str(Path("/proc/self/ns", kind).stat().st_ino) for kind in ("pid", "time"))
    except OSError:
        return ""


def _same_processes(lease: Lease) -> bool:
    """Whether the lease's process id means a process that this one can address: same boot, same pid namespace.

    Host names do not count: different machines may have the same one.
    """
    return bool(lease.boot and lease.namespaces) and (lease.boot, lease.namespaces) == (
        _boot(),
        _namespaces(),
    )


def _alive(lease: Lease) -> bool | None:
    """Whether the lease's process exists; None where this machine cannot tell, as of another host or container."""
    if not _same_processes(lease):
        return None
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process: it exists
    state, ticks = _stat(lease.pid)
    if state in ("Z", "X"):  # it has ended, and nobody has asked how
        return False
    return ticks == lease.ticks if ticks and lease.ticks else None


def _ticks(pid: int) -> int:
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start of a process, in ticks since boot; ("", 0) where /proc does not show it."""
    try:
        if str(Path("/proc/self").readlink()) != str(
            os.getpid()
        ):  # it shows another namespace's processes
            return "", 0
        # The name, in parentheses, may hold anything; the state follows it, field 22 of the line is the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
