"""Zarr shard files of uncompressed chunks: written in one pass, memory-mapped for reading.

The layout is zarr v3's `sharding_indexed` codec over `bytes` and `crc32c`: chunks one after the
other, each followed by its checksum, then an index of (offset, size) pairs and the checksum of the
index (zarr specification v3, codecs/sharding-indexed). Any zarr reader opens these files. Writing
them here keeps one chunk in memory instead of a whole shard, and memory maps are ten times faster
than reading through the codecs.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

CRC_BYTES = 4
# Offset and size of a missing chunk, by the specification.
ABSENT = 2**64 - 1

Half = npt.NDArray[np.float16]
Values = npt.NDArray[np.float16] | npt.NDArray[np.int8]


class ShardSummary(NamedTuple):
    """A shard file in the manifest: size, SHA-256 of all bytes, crc32c of every chunk."""

    bytes: int
    sha256: str
    chunk_crc32c: list[int]


class ShardWriter:
    """Appends chunks to one shard file; `append` at most `slots` times, then `close`."""

    def __init__(self, path: Path, slots: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self._entries: list[tuple[int, int]] = []
        self._crcs: list[int] = []
        self._slots = slots
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self._entries) == self._slots

    def append(self, chunk: Values) -> None:
        """Write one chunk of shape (chunk_rows, d_model), little-endian."""
        payload = (
            np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))
            .reshape(-1)
            .view(np.uint8)
        )
        payload.flags.writeable = False  # google_crc32c requires a read-only buffer
        crc = google_crc32c.value(payload)
        self._entries.append((self._size, payload.nbytes + CRC_BYTES))
        self._crcs.append(crc)
        self._write(payload.data)
        self._write(struct.pack("<I", crc))

    def close(self) -> ShardSummary:
        """Write the index, flush the file to disk and close it."""
        entries = self._entries + [(ABSENT, ABSENT)] * (self._slots - len(self._entries))
        index = np.array(entries, dtype="<u8").tobytes()
        self._write(index)
        self._write(struct.pack("<I", google_crc32c.value(index)))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return ShardSummary(self._size, self._digest.hexdigest(), self._crcs)

    def abandon(self) -> None:
        """Close without an index, which leaves the file unreadable."""
        self._stream.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._size += len(data)


class MappedShard:
    """Memory map of a shard file; `chunk` gives unverified views, `crc32c` their checksums.

    Raises:
        ValueError: the index is damaged or does not fit the file.
    """

    def __init__(
        self, path: Path, chunk_rows: int, d_model: int, slots: int, kind: str = "<f2"
    ) -> None:
        self._path = path
        self._rows, self._width, self._kind = chunk_rows, d_model, np.dtype(kind)
        self._map: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        index_bytes = 16 * slots
        footer = self._map[-(index_bytes + CRC_BYTES) :].tobytes()
        if len(footer) < index_bytes + CRC_BYTES:
            raise ValueError("the file is too short to hold an index")
        index = footer[:index_bytes]
        if struct.unpack("<I", footer[index_bytes:])[0] != google_crc32c.value(index):
            raise ValueError("the checksum of its index is wrong")
        self._offsets = np.frombuffer(index, dtype="<u8").reshape(slots, 2)[:, 0]
        sizes = np.frombuffer(index, dtype="<u8").reshape(slots, 2)[:, 1]
        self._payload = chunk_rows * d_model * self._kind.itemsize
        limit = len(self._map) - len(footer)
        for offset, size in zip(self._offsets.tolist(), sizes.tolist(), strict=True):
            if offset != ABSENT and (size != self._payload + CRC_BYTES or offset + size > limit):
                raise ValueError("its index does not fit its size")

    def chunk(self, slot: int) -> npt.NDArray[Any]:
        """Read-only view of one chunk, (chunk_rows, d_model) of the file's dtype."""
        return self._bytes(slot).view(self._kind).reshape(self._rows, self._width)

    def read_into(self, slot: int, target: Values) -> None:
        """Copy the first rows of one chunk into `target` (rows, d_model), contiguous.

        One large read: it is faster than the map on a network disk, a file that was truncated
        raises an error instead of ending the process, and no mapped page counts as memory.
        """
        view, done = target.reshape(-1).view(np.uint8), 0
        with self._path.open("rb", buffering=0) as stream:
            stream.seek(self._offset(slot))
            while done < len(view):
                count = stream.readinto(view[done:].data)
                if not count:
                    raise ValueError(f"it ends within chunk {slot}")
                done += count

    def crc32c(self, slot: int) -> int:
        """Checksum of the chunk's bytes on disk."""
        return int(google_crc32c.value(self._bytes(slot)))

    def _bytes(self, slot: int) -> npt.NDArray[np.uint8]:
        offset = self._offset(slot)
        return self._map[offset : offset + self._payload]

    def _offset(self, slot: int) -> int:
        offset = int(self._offsets[slot])
        if offset == ABSENT:
            raise ValueError(f"it holds no chunk {slot}")
        return offset
