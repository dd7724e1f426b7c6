"""The log of locks, `logs/locks.log`: evidence that every folder had one writer at a time.

One tab-separated line per event: UTC time, event, folder, process, host, Slurm job, remark.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError

NAME = "locks.log"
_log = logging.getLogger("ghosttrack.locks")
_log.propagate = False  # lock events are for checks, not for the job's log


class Event(NamedTuple):
    """One line of the log."""

    time: str  # UTC
    event: str  # acquired, released or refused
    folder: str
    process: int
    host: str
    job: str  # Slurm job, or ""
    remark: str

    @property
    def writer(self) -> tuple[str, int]:
        """Host and process."""
        return self.host, self.process


class Overlap(NamedTuple):
    """`first` still wrote to `folder` when `second` acquired it."""

    folder: str
    first: Event
    second: Event


def note(event: str, folder: Path, remark: str = "") -> None:
    """Append an event of this process, inside a block of `kept`."""
    line = Event(
        datetime.now(UTC).isoformat(timespec="microseconds"),
        event,
        str(folder),
        os.getpid(),
        os.uname().nodename,
        os.environ.get("SLURM_JOB_ID", ""),
        remark.replace("\t", " ").replace("\n", " "),
    )
    _log.info("\t".join(map(str, line)))


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Append the events of this process inside the block to `path`."""
    before, level = _log.handlers, _log.level
    _log.handlers = [_Appender(path)]
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _log.handlers = before
        _log.setLevel(level)


class _Appender(logging.Handler):
    """Appends lines under a lock: without it, lines of several hosts may be lost."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line; only warn if the file cannot be written, so that the job continues."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(record.getMessage() + "\n")
        except OSError as error:
            logging.getLogger("ghosttrack").warning("%s cannot be written: %s", self.path, error)


def read(path: Path) -> list[Event]:
    """All events in order; [] if the file does not exist.

    Raises:
        UserError: a line is not an event.
    """
    if not path.exists():
        return []
    return [
        _event(path, number, line)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    ]


def _event(path: Path, number: int, line: str) -> Event:
    parts = line.split("\t")
    if len(parts) != len(Event._fields) or not parts[3].isdigit():
        raise UserError(
            f"{path}, line {number}: expected {len(Event._fields)} tab-separated fields, found "
            f"{line!r}"
        )
    time, event, folder, process, host, job, remark = parts
    return Event(time, event, folder, int(process), host, job, remark)


def overlaps(events: Iterable[Event]) -> Iterator[Overlap]:
    """Pairs of writers that wrote to one folder at the same time.

    A killed writer never logs `released`. So a writer that logs `released` was alive since
    `acquired`, and every process that acquired the folder in between was a second writer.
    """
    # Folder -> writer -> its `acquired` event, and the `acquired` events of others after it.
    active: dict[str, dict[tuple[str, int], tuple[Event, list[Event]]]] = {}
    for event in events:
        writers = active.setdefault(event.folder, {})
        if event.event == "acquired":
            for _, after in writers.values():
                after.append(event)
            writers[event.writer] = (event, [])
        elif event.event == "released" and event.writer in writers:
            first, after = writers.pop(event.writer)
            yield from (Overlap(event.folder, first, second) for second in after)
