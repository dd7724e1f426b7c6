"""A plain reader of event files, by the published layout of their records."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c


def events(folder: Path) -> list[Any]:
    """All events in the one event file of a folder, in order."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + size]
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        assert struct.unpack("<I", content[12 + size : 16 + size])[0] == masked_crc32c(data)
        found.append(event_pb2.Event.FromString(data))
        content = content[16 + size :]
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and numbers of every curve in a folder."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves
