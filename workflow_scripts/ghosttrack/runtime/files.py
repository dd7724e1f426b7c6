"""Atomic writes, digests and locks: a file that exists is whole, and has one writer."""

import fcntl
import hashlib
import json
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ghosttrack.errors import UserError
from ghosttrack.runtime import lock_log


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush, fsync and rename it to `path`.

    After an exception or a kill `path` is what it was before. `mode` is "w" or "wb". Not `durable`: it does
    not wait for the disk, so a power cut may lose or empty the file; for files whose reader takes that for none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
        if durable:
            sync_directory(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sweep_writes(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; the caller holds the lock that keeps out live ones."""
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        leftover.unlink()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success fsync its files and rename it to `path`.

    A directory that stands at `path` is replaced. Leftovers of killed writers are swept first;
    a second live writer of the same `path` is refused.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with lock(partial):
        sweep(partial, keep={partial / "lock"})
        try:
            yield partial
            sync_tree(partial)
            publish_directory(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def publish_directory(partial: Path, path: Path) -> None:
    """Rename `partial`, whose lock the caller holds and whose files are on disk, to `path`; what stands there goes."""
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    # Only after the rename: without the lock file a second writer could start in `partial`.
    (path / "lock").unlink()
    sync_directory(path.parent)


def sync_tree(directory: Path) -> None:
    """Flush every file and folder under `directory` to disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync_file(Path(folder) / name)
        sync_directory(Path(folder))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON, atomically. NaN is refused: JSON has none."""
    with atomic_write(Path(path)) as stream:
        json.dump(content, stream, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one raises a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: delete nothing else and run again, its job remakes it"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run again") from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """Files with weights in a transformers directory; none, if there are none."""
    return [
        path
        for pattern in ("*.safetensors", "pytorch_model*.bin", "*.gguf")
        for path in directory.glob(pattern)
    ]


def sha256_json(content: Any) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# Whoever asks whether a folder is locked holds its lock for an instant: one refusal says nothing yet.
_TRIES, _PAUSE = 4, 0.1


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold `directory`/lock exclusively; refuse when another live process holds it.

    The kernel drops the lock with its process, so a killed job leaves nothing to clean. Who held it when
    is in the locks' journal.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _opened(directory / "lock") as stream:
        if not flock(stream.fileno()):
            owner = owner_of(directory) or "an unnamed process"
            lock_log.note("refused", directory, f"held by {owner}")
            raise UserError(
                f"{directory} is in use by {owner}: another run is still writing it. "
                "`make orphans` shows what still works here; wait for it or end it, then run again"
            )
        if not _same_file(stream, directory / "lock"):
            raise UserError(f"{directory} was just finished by another process: run again")
        stream.seek(0)
        stream.truncate()
        job = os.environ.get("SLURM_JOB_ID")
        stream.write(
            f"process {os.getpid()} on {os.uname().nodename}"
            + (f", Slurm job {job}" if job else "")
        )
        stream.flush()
        lock_log.note("acquired", directory)
        try:
            yield
        finally:
            lock_log.note("released", directory)


def _opened(path: Path) -> IO[str]:
    """Open a lock file.

    Raises:
        UserError: it is another user's, and may not be written.
    """
    try:
        return path.open("a+", encoding="utf-8")
    except PermissionError:
        raise UserError(
            f"{path} belongs to {user_of(path)}, and you may not write to it: two users of one folder need a group that "
            "may write (chmod -R g+rwX results, and umask 002 for later runs)"
        ) from None


def flock(handle: int) -> bool:
    """Whether the exclusive lock on an open file could be had."""
    for attempt in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE if attempt < _TRIES - 1 else 0)
    return False


def owner_of(directory: Path) -> str:
    """What the last process that held `directory`/lock wrote there: `process 12 on node3, Slurm job 7`."""
    path = Path(directory) / "lock"
    try:
        return path.read_text(encoding="utf-8").strip()
    except PermissionError:
        return f"{user_of(path)}, perhaps: you may not read {path}"
    except OSError:
        return ""


def locked(directory: Path) -> bool:
    """Whether a live process holds `directory`/lock, or this user may not ask. Asks with a shared lock, given back at once."""
    try:
        with (Path(directory) / "lock").open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


def user_name(uid: int) -> str:
    """A user's name; `user 1234` where the system does not know one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def user_of(path: Path) -> str:
    """Name of the user that owns `path`, or the first folder above it that can be looked at."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return user_name(place.stat().st_uid)
    return "another user"


def sync_directory(path: Path) -> None:
    """Flush a directory entry to disk, so that a rename survives a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path, keep: set[Path]) -> None:
    """Remove every file under `directory` that is not in `keep`, and the folders that are empty then."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            if Path(folder) / name not in keep:
                (Path(folder) / name).unlink()
        if Path(folder) != directory and not any(Path(folder).iterdir()):
            Path(folder).rmdir()


def _same_file(stream: IO[Any], path: Path) -> bool:
    """Whether `path` still names the open file: its folder may have been renamed in between."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
