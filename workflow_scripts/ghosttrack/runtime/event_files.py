"""Event files: numbers of a job that TensorBoard shows while the job runs."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError

# TensorBoard reads the files of a folder whose names have the word `tfevents`.
NAME = "events.out.tfevents"
VERSION = "brain.Event:2"


class EventFile:
    """The event file of one training. Each number of a step is a point of a curve.

    A training that is resumed writes its file anew: first the points that its checkpoint knows, then
    the others. So every step is in the file once, whatever was killed and retried. A step takes the
    same number of bytes each time, at the same place, so a TensorBoard that is open reads on as if
    the training had never stopped.
    """

    def __init__(self, folder: Path, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Write the event file in `folder` with `points`: steps and their numbers by name.

        Raises:
            UserError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import record_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as error:
            raise UserError(
                f"event_files: true needs the package tensorboardX ({error}): install "
                "envs/requirements.txt, or set event_files: false"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = record_writer.RecordWriter(str(folder / NAME))
        self._write(file_version=VERSION)
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
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
