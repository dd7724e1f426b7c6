"""The locks' journal, `logs/locks.log`: who held which folder when, so that one writer at a time can be proved afterwards.

One line an event, tab-separated: UTC time, event, folder, process, host, Slurm job, remark.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError

NAME = "locks.log"
_log = logging.getLogger("ghosttrack.locks")
_log.propagate = False  # a person reads the job's log; the journal is for checks


class Event(NamedTuple):
    """One line: `event` is acquired, released or refused; `job` is "" outside Slurm."""

    time: str
    event: str
    folder: str
    process: int
    host: str
    job: str
    remark: str

    @property
    def writer(self) -> tuple[str, int]:
        """What tells writers apart."""
        return self.host, self.process


class Overlap(NamedTuple):
    """`first` was still at work in `folder` when `second` began."""

    folder: str
    first: Event
    second: Event


def note(event: str, folder: Path, remark: str = "") -> None:
    """Add a line for this process, if `keep` was called in it."""
    made = Event(
        datetime.now(UTC).isoformat(timespec="microseconds"),
        event,
        str(folder),
        os.getpid(),
        os.uname().nodename,
        os.environ.get("SLURM_JOB_ID", ""),
        remark.replace("\t", " ").replace("\n", " "),
    )
    _log.info("\t".join(map(str, made)))


def keep(path: Path) -> None:
    """From now on this process adds its events to `path`."""
    _log.handlers = [_Appender(path)]
    _log.setLevel(logging.INFO)


class _Appender(logging.Handler):
    """Appends one line under a lock: appending alone may lose lines where several hosts share the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """A journal that cannot be written must not stop the job that holds the lock."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(record.getMessage() + "\n")
        except OSError as error:
            logging.getLogger("ghosttrack").warning("%s cannot be written: %s", self.path, error)


def read(path: Path) -> list[Event]:
    """All events in order; none if there is no such file.

    Raises:
        UserError: a line that is no event.
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
            f"{path}, line {number}: expected {len(Event._fields)} tab-separated fields, found {line!r}"
        )
    time, event, folder, process, host, job, remark = parts
    return Event(time, event, folder, int(process), host, job, remark)


def overlaps(events: Iterable[Event]) -> Iterator[Overlap]:
    """Where two writers were in one folder at once.

    A writer is at work from `acquired` to `released`. A killed one never says `released`; so a writer that says it
    was alive all along, and whoever acquired the folder in between was a second one.
    """
    at_work: dict[
        str, dict[tuple[str, int], tuple[Event, list[Event]]]
    ] = {}  # folder, writer: its event, those after it
    for event in events:
        here = at_work.setdefault(event.folder, {})
        if event.event == "acquired":
            for _, after in here.values():
                after.append(event)
            here[event.writer] = (event, [])
        elif event.event == "released" and event.writer in here:
            first, after = here.pop(event.writer)
            yield from (Overlap(event.folder, first, second) for second in after)
