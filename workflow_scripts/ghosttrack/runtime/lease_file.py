"""The files of leases in `results/.run`: `lease_NUMBER.json`, renamed to `.ended` at the release.

To create the file of the next number is atomic on every file system, so only one of several runs
can follow the same lease.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

DIRECTORY = Path("results") / ".run"
_NAME = re.compile(r"lease_(\d+)\.(json|ended)")
# All records have the same length, so that a new record overwrites the old one completely.
RECORD_BYTES = 2048


class Lease(NamedTuple):
    """Holder of a folder; `boot`, `namespaces` and `ticks` are "" or 0 if they are not known."""

    token: str
    host: str
    boot: str  # id of the host's current boot
    namespaces: str  # inodes of the process's pid and time namespaces, which differ in containers
    pid: int
    ticks: int  # start of the process, in clock ticks since boot
    user: str
    command: str
    started: str  # local time with its offset from UTC
    users: list[int]  # ids of this and all earlier holders, who may have Slurm jobs
    inode: int = 0  # of the lease's file; it differs in a copy of the folder


def path_of(folder: Path, number: int, ending: str = "json") -> Path:
    """The file of a lease."""
    return folder / DIRECTORY / f"lease_{number:06d}.{ending}"


def entries(folder: Path) -> list[tuple[int, str]]:
    """Number and ending (`json` or `ended`) of every lease; [] before the first run.

    Raises:
        UserError: this user has no permission to read the directory.
    """
    try:
        names = [path.name for path in (folder / DIRECTORY).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise unreadable(folder / DIRECTORY) from None
    return [(int(match[1]), match[2]) for match in map(_NAME.fullmatch, names) if match]


def newest(folder: Path) -> tuple[int, bool]:
    """Highest number of a lease, or 0, and whether this lease was released."""
    leases = entries(folder)
    number = max((number for number, _ in leases), default=0)
    return number, (number, "ended") in leases


def create(folder: Path, number: int, lease: Lease) -> int | None:
    """Create the lease of this number and remove older ones.

    If two runs create the same number at the same time, the file system decides. A run that was
    delayed while other runs came and went finds their files next to its own, and withdraws.

    Returns:
        The open file, or None if another run was first.
    Raises:
        UserError: the file cannot be written.
    """
    path = path_of(folder, number)
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
        with contextlib.suppress(OSError):  # without flock, the process and the date decide
            files.flock(handle)
        write(handle, lease)
        os.fsync(handle)
        others = [entry for entry in entries(folder) if entry != (number, "json")]
    except OSError as error:
        _withdraw(path, handle)
        raise _unwritable(path, error) from None
    if any(other >= number for other, _ in others):
        _withdraw(path, handle)
        return None
    for other, ending in others:
        with contextlib.suppress(OSError):  # another user's file, in a folder with the sticky bit
            path_of(folder, other, ending).unlink()
    return handle


def write(handle: int, lease: Lease) -> None:
    """Write the record of a lease, with the inode of its file, to the open file."""
    os.pwrite(handle, packed(lease._replace(inode=os.fstat(handle).st_ino)), 0)


def packed(lease: Lease) -> bytes:
    """A record with a checksum, which shows a reader that a record is incomplete."""
    fields = lease._asdict()
    record = json.dumps({**fields, "check": files.sha256_json(fields)}, indent=1)
    return record.encode().ljust(RECORD_BYTES) + b"\n"


def unpacked(text: bytes) -> Lease | None:
    """The lease in a record; None for an incomplete record."""
    try:
        fields = json.loads(text)
        return Lease(**fields) if fields.pop("check") == files.sha256_json(fields) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def flock_is_held(handle: int) -> bool:
    """Whether another open file has the flock; False if flock does not work here."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def file_clock(directory: Path) -> float:
    """Current time (s) by the clock of the file system of `directory`.

    If the directory is not writable, the clock of this machine is used.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.utime(probe.fileno())
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def unreadable(path: Path) -> UserError:
    """The error about a lease of another user that this user may not read."""
    owner = files.user_of(path)
    return UserError(
        f"{path} belongs to {owner}, and you have no permission to read it, so it is not known "
        f"whether a run of {owner} is active in this folder. Ask {owner} to share the folder with "
        "your group (chmod -R g+rwX results .snakemake, and umask 002 for later runs), or work "
        "in your own clone"
    )


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}): it belongs to {files.user_of(path)}. Every "
        "run writes there: make `results` a folder with free space and write permission for you, "
        "or work in your own clone"
    )


def _withdraw(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)
    os.close(handle)
