"""Tracks in memory and on disk: columns over (token, layer, slot), with pointers between layers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

SCHEMA = 1
# Tokens per batch and per zarr chunk. Not a setting: the `random` null draws once per batch.
ROWS = 2048


class TrackTable(NamedTuple):
    """Detections of some tokens. All arrays are (rows, layers, slots); empty slots have feature -1.

    `previous` is the slot of the same track one layer back (gap 1) or two layers back (gap 2). At
    the birth of a track it is -1 and the gap is 0. `surplus` is the link's similarity above the
    gate. Slots below the tracker's top_k hold the strongest detections, strongest first. Later
    slots hold weaker detections that continue a track.
    """

    feature: NDArray[np.int32]
    activation: NDArray[np.float32]
    previous: NDArray[np.int16]
    gap: NDArray[np.int8]
    surplus: NDArray[np.float32]

    def part(self, start: int, stop: int) -> "TrackTable":
        """Rows `start` to `stop` - 1, as views."""
        return TrackTable(*(column[start:stop] for column in self))  # type: ignore[arg-type]


EMPTY = TrackTable(*(cast(Any, value) for value in (-1, 0.0, -1, 0, 0.0)))
TYPES = TrackTable(*(cast(Any, name) for name in ("int32", "float32", "int16", "int8", "float32")))


def blank(rows: int, layers: int, slots: int) -> TrackTable:
    """A table without detections."""
    shape = (rows, layers, slots)
    return TrackTable(
        *(np.full(shape, value, dtype=kind) for value, kind in zip(EMPTY, TYPES, strict=True))
    )


class TrackWriter:
    """Appends tables to a zarr group of known row count.

    `used` is the largest number of slots of the tables so far.
    """

    def __init__(
        self, directory: Path, rows: int, layers: int, slots: int, chunk_slots: int
    ) -> None:
        self.group = zarr.create_group(store=directory, zarr_format=3)
        self.row, self.used = 0, 1
        for name, kind, value in zip(TrackTable._fields, TYPES, EMPTY, strict=True):
            self.group.create_array(
                name,
                shape=(rows, layers, slots),
                dtype=str(kind),
                chunks=(ROWS, layers, min(chunk_slots, slots)),
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                fill_value=value,
                dimension_names=("row", "layer", "slot"),
            )

    def append(self, table: TrackTable) -> None:
        """Write the next rows."""
        rows, _, width = table.feature.shape
        for name, values in table._asdict().items():
            self._array(name)[self.row : self.row + rows, :, :width] = values
        self.row += rows
        self.used = max(self.used, width)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Drop the slots that no token uses, and store the attributes."""
        for name in TrackTable._fields:
            array = self._array(name)
            array.resize((*array.shape[:2], self.used))
        self.group.attrs.update(attributes)

    def _array(self, name: str) -> Any:
        return self.group[name]


@contextmanager
def writer(
    directory: Path, *, rows: int, layers: int, slots: int, chunk_slots: int
) -> Iterator[TrackWriter]:
    """A TrackWriter into a temporary directory, which is renamed to `directory` on success."""
    with files.atomic_directory(directory) as partial:
        yield TrackWriter(partial, rows, layers, slots, chunk_slots)


def digest(directory: Path) -> str:
    """Hex SHA-256 over the names and bytes of the files below `directory`."""
    total = hashlib.sha256()
    # Hidden files do not count: Snakemake leaves a time stamp in a folder that a rule made.
    for path in sorted(
        path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")
    ):
        total.update(
            f"{path.relative_to(directory).as_posix()}\0{files.sha256_file(path)}\n".encode()
        )
    return total.hexdigest()


class TrackReader:
    """Reads the tracks of one data set and variant in ranges of rows.

    Args:
        directory: the zarr group.
        manifest: JSON file written beside it.

    Raises:
        UserError: the group is not the one that the manifest describes, or files are missing.
    """

    def __init__(self, directory: Path, manifest: Path) -> None:
        about = files.read_object(manifest)
        if not directory.is_dir() or digest(directory) != about.get("store_sha256"):
            raise UserError(
                f"{directory} is not the store that {manifest} describes, because files are "
                "missing or changed: delete both and run again, rule track_features writes them again"
            )
        self._group = zarr.open_group(store=directory, mode="r")
        self.rows: int = about["rows"]
        self.layers: list[int] = about["layers"]
        self.variant: str = about["variant"]
        self.top_k: int = about["top_k"]
        # Mean activation of the strongest top_k detections, per layer: the unit of the metrics.
        self.scale: NDArray[np.float64] = np.asarray(about["activation_scale"], dtype=np.float64)

    def read(self, start: int, stop: int) -> TrackTable:
        """Rows `start` to `stop` - 1."""
        return TrackTable(
            *(np.asarray(cast(Any, self._group[name])[start:stop]) for name in TrackTable._fields)
        )
