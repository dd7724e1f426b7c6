"""Event files: numbers of a job that TensorBoard shows while the job runs."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError

# What TensorBoard finds event files by. tensorboardX adds the time and the host.
PATTERN = "*tfevents*"


class EventFile:
    """The event file of one training. Each number of a step is a point of a curve.

    A training that is resumed replaces the file by one with the points that its checkpoint knows,
    and adds the others. So every step is in the file once, whatever was killed and retried.
    """

    def __init__(self, folder: Path, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Replace the event files in `folder` by one with `points`: steps and their numbers.

        Raises:
            UserError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as error:
            raise UserError(
                f"event_files: true needs the package tensorboardX ({error}): install "
                "envs/requirements.txt, or set event_files: false"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(PATTERN):
            old.unlink()
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = event_file_writer.EventsWriter(str(folder / "events"))
        # A TensorBoard that is open forgets the points of the replaced file when it reads this.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=0, session_log=start)
        for step, values in points:
            self._add(step, values)
        self._writer.flush()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step, by name, and write them to the disk."""
        self._add(step, values)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        numbers = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._write(step=step, summary=self._summary(value=numbers))

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))
