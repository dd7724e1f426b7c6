"""Atomic writes, digests and locks: a file that exists is complete, and has one writer."""

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
    """Open a temporary file next to `path`; on success flush, fsync and rename it to `path`.

    After an exception or a kill, `path` is unchanged.

    Args:
        mode: "w" or "wb".
        durable: whether to wait for the disk. Otherwise a power failure may lose or empty the file,
            which its readers must treat as missing.
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
    """Remove temporary files of killed writers of `path`; the caller must hold its lock."""
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        leftover.unlink()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; on success fsync its files and rename it to `path`.

    An existing directory `path` is replaced. Files of killed writers are removed first.

    Raises:
        UserError: a live process writes the same directory.
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
    """Replace `path` by `partial`, whose lock the caller holds and whose files are synced."""
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    # After the rename: without the lock file, a second writer could start in `partial`.
    (path / "lock").unlink()
    sync_directory(path.parent)


def sync_tree(directory: Path) -> None:
    """Flush every file and folder under `directory` to disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync_file(Path(folder) / name)
        sync_directory(Path(folder))


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically as sorted, indented JSON; NaN raises ValueError, JSON has none."""
    with atomic_write(Path(path)) as stream:
        json.dump(content, stream, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run the same command again to make it again, delete nothing else"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: delete it and run again")
    return content


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """Files with weights in a transformers directory."""
    return [
        path
        for pattern in ("*.safetensors", "pytorch_model*.bin", "*.gguf")
        for path in directory.glob(pattern)
    ]


def sha256_json(content: Any) -> str:
    """Hex SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# `locked` holds a lock for an instant, so `flock` tries more than once.
_TRIES, _PAUSE = 4, 0.1


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the exclusive lock `directory`/lock while the block runs.

    The kernel releases the lock when the process ends, so a killed job leaves no lock. Events are
    written to `logs/locks.log`.

    Raises:
        UserError: another live process holds the lock, or the lock file is not writable.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _opened(directory / "lock") as stream:
        if not flock(stream.fileno()):
            owner = owner_of(directory) or "an unknown process"
            lock_log.note("refused", directory, f"held by {owner}")
            raise UserError(
                f"{directory} is in use by {owner}: another run is still writing it. "
                "`make orphans` lists running jobs; wait for them or end them, then run again"
            )
        if not _same_file(stream, directory / "lock"):
            raise UserError(
                f"{directory} was just completed by another process: run the same command again"
            )
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
        UserError: it belongs to another user and is not writable.
    """
    try:
        return path.open("a+", encoding="utf-8")
    except PermissionError:
        raise UserError(
            f"{path} belongs to {user_of(path)}, and you have no permission to write it: two "
            "users of one folder need a common group with write permission (chmod -R g+rwX "
            "results, and umask 002 for later runs)"
        ) from None


def flock(handle: int) -> bool:
    """Try to take the exclusive lock on an open file; whether it succeeded."""
    for attempt in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE if attempt < _TRIES - 1 else 0)
    return False


def owner_of(directory: Path) -> str:
    """Last holder of `directory`/lock, such as `process 12 on node3, Slurm job 7`, or ""."""
    path = Path(directory) / "lock"
    try:
        return path.read_text(encoding="utf-8").strip()
    except PermissionError:
        return f"probably a process of {user_of(path)} (you have no permission to read {path})"
    except OSError:
        return ""


def locked(directory: Path) -> bool:
    """Whether a live process holds `directory`/lock; also True without permission to test it."""
    try:
        with (Path(directory) / "lock").open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


def user_name(uid: int) -> str:
    """A user's name, or `user 1234` for an unknown user id."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def user_of(path: Path) -> str:
    """Owner of `path`, or of its nearest parent folder that is accessible."""
    for candidate in (path, *path.absolute().parents):
        with suppress(OSError):
            return user_name(candidate.stat().st_uid)
    return "another user"


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that renames in it survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path, keep: set[Path]) -> None:
    """Remove all files under `directory` that are not in `keep`, and then empty folders."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            if Path(folder) / name not in keep:
                (Path(folder) / name).unlink()
        if Path(folder) != directory and not any(Path(folder).iterdir()):
            Path(folder).rmdir()


def _same_file(stream: IO[Any], path: Path) -> bool:
    """Whether `path` still is the open file: its folder may have been renamed meanwhile."""
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
