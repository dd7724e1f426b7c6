"""Writing activation stores: sequential, atomic, and resumable after every complete shard file.

A store is written to `NAME.zarr.partial`, which one process at a time can lock. A record of each
complete shard file holds what the manifest needs, so that a killed job resumes after the last one.
"""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ghosttrack.activations import int8s
from ghosttrack.activations.layout import (
    CHUNK_ROWS,
    CHUNKS_PER_SHARD,
    MASSIVE_FACTOR,
    SHARD_ROWS,
    why_not_finite,
)
from ghosttrack.activations.precision import storage_error
from ghosttrack.activations.shards import Half, ShardWriter
from ghosttrack.activations.store import (
    NOTHING_CLIPPED,
    SCHEMA,
    SIDECARS,
    Block,
    Header,
    describe,
    positions,
    scale_for,
    scaled,
    write_group,
)
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

log = logging.getLogger("ghosttrack")

# A refused store recommends a scale that holds this multiple of its largest value.
SPARE = 2


class _Record(NamedTuple):
    """The contribution of a complete shard file to the manifest and the small arrays."""

    about: dict[str, Any]  # identity, summary, error
    flat: dict[str, npt.NDArray[Any]]  # norms, clipped rows, and the sidecars of an int8s store


class _Flags(NamedTuple):
    """Rows to exclude, and the median norm that decides which are massive."""

    massive: npt.NDArray[np.bool_]  # (rows,), more than ten times the median norm
    first: npt.NDArray[np.bool_]  # (rows,), position 0 of a context
    median: float


class StoreWriter:
    """Context manager that writes one store and publishes it when the block ends without an error.

    Args:
        store, manifest: paths; existing files are replaced.
        header: origin of the rows.
        rows: number of rows that will be appended.
        d_model: width of a row.
        row_start: index of the first row in the whole layer.
        total_rows: rows of the whole layer, over all its stores; default: this store is the whole
            layer.
        resume: digest of the code that computes the rows. Complete shard files of an interrupted
            writer of the same rows are reused, see `finished_rows`. If this writer fails, its
            complete shard files stay. Default: start from the first row.
    Raises:
        UserError: another process writes this store, a row is not finite, or an included row has
            values beyond the range of float16 times the scale of the header.
    """

    def __init__(
        self,
        store: Path,
        manifest: Path,
        header: Header,
        *,
        rows: int,
        d_model: int,
        row_start: int = 0,
        total_rows: int | None = None,
        resume: str | None = None,
    ) -> None:
        if rows < 1:
            raise ValueError(f"{store}: a store needs at least one row, found {rows}")
        self._store, self._manifest, self._header = Path(store), Path(manifest), header
        self._folder = self._store.with_name(f"{self._store.name}.partial")
        self._rows, self._width, self._start = rows, d_model, row_start
        self._total = row_start + rows if total_rows is None else total_rows
        self._resume = resume
        self._stack = ExitStack()

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the zarr group, repeated in the manifest."""
        about = self._header._asdict()
        if self._header.scale == 1:
            del about["scale"]
        return {
            "schema": SCHEMA,
            **about,
            "d_model": self._width,
            "rows": self._rows,
            "row_start": self._start,
            "total_rows": self._total,
        }

    def __enter__(self) -> Self:
        self._store.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(files.lock(self._folder))
        # From here on, an existing store counts as incomplete.
        self._manifest.unlink(missing_ok=True)
        files.sweep_writes(self._manifest)
        self._records: list[_Record] = []
        self._content: dict[str, Any] | None = None
        if self._resume is not None:
            while len(self._records) * SHARD_ROWS < self._rows and (
                record := self._recorded(len(self._records))
            ):
                self._records.append(record)
        self.resume_after(self.finished_rows)
        return self

    @property
    def finished_rows(self) -> int:
        """Rows in complete shard files, which need not be appended again."""
        return min(len(self._records) * SHARD_ROWS, self._rows)

    def resume_after(self, rows: int) -> None:
        """Keep the first `rows` rows, which must end with a complete shard file; continue there."""
        self._records = self._records[: -(-rows // SHARD_ROWS)]
        numbers = range(len(self._records))
        kept = {self._folder / self._shard_name(number) for number in numbers} | {
            self._record_path(number) for number in numbers
        }
        files.sweep(self._folder, keep={self._folder / "lock", *kept})
        self._done = self.finished_rows
        self._clipped = [NOTHING_CLIPPED]
        self._shard: ShardWriter | None = None
        self._start_shard()

    def append(self, block: Block) -> None:
        """Add the next rows, divided by the scale of the header; encoded ones start a chunk."""
        count = len(block.norms)
        if block.scale != self._header.scale:
            raise ValueError(
                f"{self._store}: rows in units of {block.scale}, {self._header.scale} expected"
            )
        if self._done + count > self._rows:
            raise ValueError(
                f"{self._store}: {self._done + count} rows appended, {self._rows} expected"
            )
        finite = np.isfinite(block.norms)
        if not finite.all():
            raise UserError(
                f"{describe(self._header)}: row "
                f"{self._start + self._done + int(np.argmin(finite))} holds NaN or infinity, "
                "expected finite values: "
                + why_not_finite(
                    self._header.model_precision.startswith("float16"), self._header.model
                )
            )
        if len(block.clipped):
            self._clipped.append(block.clipped + np.array([self._done, 0, 0]))
        values = block.values
        if isinstance(values, int8s.Coded) and (
            self._header.storage != "int8s" or self._done % CHUNK_ROWS or count != CHUNK_ROWS
        ):
            raise ValueError(
                f"{self._store}: {count} encoded rows from row {self._done} on, expected a whole "
                "chunk of an int8s store"
            )
        taken = 0
        while taken < count:
            at = self._done % CHUNK_ROWS
            part = slice(taken, min(count, taken + CHUNK_ROWS - at))
            size = part.stop - part.start
            chunk = values if isinstance(values, int8s.Coded) else self._fill(values[part], at)
            if block.exact is not None and self._done < CHUNK_ROWS:
                self._exact.append(block.exact[part])
            inside = self._done % SHARD_ROWS
            self._norms[inside : inside + size] = block.norms[part]
            self._done += size
            taken = part.stop
            if self._done % CHUNK_ROWS == 0 or self._done == self._rows:
                self._end_chunk(chunk, size=at + size)

    def _fill(self, rows: Half, at: int) -> Half:
        """The chunk with these rows from row `at` on: a whole chunk is returned as it is."""
        if len(rows) == CHUNK_ROWS:
            return rows
        self._buffer[at : at + len(rows)] = rows
        return self._buffer

    def finish(self) -> None:
        """Write everything to disk, except the final name; the end of the block does both.

        Of several stores, finish all before the first block ends.
        """
        if self._content is None:
            if self._done != self._rows:
                raise ValueError(
                    f"{self._store}: {self._done} rows appended, {self._rows} expected"
                )
            self._content = self._finished()
            files.sync_tree(self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        with self._stack:
            try:
                if kind is None:
                    self.finish()
                    self._publish()
                    return
            except BaseException:
                self._abandon()
                raise
            self._abandon()

    def _publish(self) -> None:
        shutil.rmtree(self._folder / "progress", ignore_errors=True)
        files.publish_directory(self._folder, self._store)
        files.write_json(self._manifest, self._content)

    def _abandon(self) -> None:
        if self._shard is not None:
            self._shard.abandon()
        if self._resume is None or not self._records:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- chunks and shard files
    def _shard_name(self, number: int) -> str:
        return f"{self._header.site}/c/{number}/0"

    def _start_shard(self) -> None:
        self._buffer: Half = np.empty((CHUNK_ROWS, self._width), dtype=np.float16)
        self._exact: list[npt.NDArray[np.float32]] = []
        self._norms = np.empty(min(SHARD_ROWS, self._rows - self._done), dtype=np.float32)
        self._coded: list[int8s.Coded] = []
        self._error: dict[str, float] | None = None

    def _end_chunk(self, chunk: Half | int8s.Coded, size: int) -> None:
        """Write a chunk, (CHUNK_ROWS, d_model), of which the first `size` rows are filled."""
        if self._shard is None:
            self._shard = ShardWriter(
                self._folder / self._shard_name(len(self._records)), CHUNKS_PER_SHARD
            )
        back: Callable[[], Half]
        if isinstance(chunk, int8s.Coded) or self._header.storage == "int8s":
            coded = chunk if isinstance(chunk, int8s.Coded) else int8s.encode(chunk[:size])
            beyond = np.full((CHUNK_ROWS - size, self._width), int8s.UNWRITTEN, dtype=np.int8)
            self._shard.append(
                np.concatenate([coded.levels, beyond]) if len(beyond) else coded.levels
            )
            self._coded.append(coded._replace(levels=beyond[:0]))  # the levels are on disk
            back = partial(int8s.decode, coded)
        else:
            if size < CHUNK_ROWS:
                chunk[size:] = np.nan  # rows after the last one are fill values
            self._shard.append(chunk)
            back = partial(np.asarray, chunk[:size])
        if sum(map(len, self._exact)) == size:
            self._measure_error(np.concatenate(self._exact), back())
        self._exact = []
        if self._shard.full or self._done == self._rows:
            self._end_shard()

    def _measure_error(self, exact: npt.NDArray[np.float32], stored: Half) -> None:
        norms = self._norms[: len(stored)]
        normal = (norms <= MASSIVE_FACTOR * np.median(norms)) & (
            positions(self._start, len(stored), self._header.context) != 0
        )
        kept = scaled(stored[normal], self._header.scale)
        error = storage_error(exact[normal], kept)
        self._error = error._asdict() if error else None

    def _end_shard(self) -> None:
        assert self._shard is not None  # a chunk was just added to it
        summary, self._shard = self._shard.close(), None
        about = {"identity": self._identity, "summary": summary._asdict(), "error": self._error}
        clipped = np.concatenate(self._clipped)
        here = clipped[:, 0] < self._done
        self._clipped = [clipped[~here]]
        # Only the norms of all rows decide which rows are massive; so many included rows cannot all
        # become massive: stop early.
        before = self._done - len(self._norms)
        massive, first, _ = self._flags(self._norms, self._start + before)
        self._require_held(
            clipped[here], massive | first, first=before, most=len(self._norms) // 100
        )
        record = _Record(
            about, {"norms": self._norms, "clipped": clipped[here], **self._sidecars()}
        )
        if self._resume is not None:
            with files.atomic_write(self._record_path(len(self._records)), "wb") as stream:
                arrays: dict[str, Any] = {
                    "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
                    **record.flat,
                }
                np.savez(stream, **arrays)
        self._records.append(record)
        if self._done < self._rows:
            self._start_shard()

    def _sidecars(self) -> dict[str, npt.NDArray[Any]]:
        if not self._coded:
            return {}
        first = len(self._records) * SHARD_ROWS
        starts = first + CHUNK_ROWS * np.arange(len(self._coded))
        return {
            "row_scale": np.concatenate([chunk.row_scale for chunk in self._coded]),
            "mean": np.stack([chunk.mean for chunk in self._coded]),
            "deviation": np.stack([chunk.deviation for chunk in self._coded]),
            "outlier_rows": np.concatenate(
                [
                    start + chunk.outlier_rows
                    for start, chunk in zip(starts, self._coded, strict=True)
                ]
            ),
            "outliers": np.concatenate([chunk.outliers for chunk in self._coded]),
        }

    # ---- records of finished shard files
    @property
    def _identity(self) -> dict[str, Any]:
        return {**self.attributes, "code": self._resume}

    def _record_path(self, number: int) -> Path:
        return self._folder / "progress" / f"{number:04d}.npz"

    def _recorded(self, number: int) -> _Record | None:
        """The record of a complete shard file of the same rows; None without a valid one."""
        try:
            with (
                self._record_path(number).open("rb") as stream,
                np.load(stream, allow_pickle=False) as arrays,
            ):
                about = json.loads(arrays["about"].tobytes())
                flat = {name: arrays[name] for name in arrays.files if name != "about"}
            intact = (
                files.sha256_file(self._folder / self._shard_name(number))
                == about["summary"]["sha256"]
            )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        return _Record(about, flat) if intact and about["identity"] == self._identity else None

    # ---- the manifest
    def _finished(self) -> dict[str, Any]:
        norms = self._joined("norms")
        massive, first, median = self._flags(norms, self._start)
        clipped = self._joined("clipped")
        self._require_held(clipped, massive | first, first=0, most=0)
        if len(clipped):
            self._log_clipped(clipped)
        sidecars = {
            name: self._joined(name) for name in SIDECARS if self._header.storage == "int8s"
        }
        write_group(self._folder, self.attributes, {"massive": massive, **sidecars})
        included = norms[~(massive | first)].astype(np.float64)
        return {
            **self.attributes,
            "files": self._file_entries(),
            "clipped": int(clipped[:, 1].sum()),
            "nan": 0,
            "massive_rows": int(massive.sum()),
            "excluded_rows": int((massive | first).sum()),
            "median_norm": median,
            "mean_square_norm": float(np.square(included).mean()) if included.size else None,
            "storage_error": self._records[0].about["error"],
        }

    def _flags(self, norms: npt.NDArray[np.float32], start: int) -> _Flags:
        """Flags of rows with these norms; the first of them is row `start` of the layer."""
        first = positions(start, len(norms), self._header.context) == 0
        # Position 0 is usually massive, so it does not count for the median.
        median = float(np.median(norms[~first] if not first.all() else norms))
        return _Flags(norms > MASSIVE_FACTOR * median, first, median)

    def _require_held(
        self,
        clipped: npt.NDArray[np.float64],
        excluded: npt.NDArray[np.bool_],
        first: int,
        most: int,
    ) -> None:
        """Refuse clipped values in more than `most` included rows.

        Args:
            excluded: (rows,) bool, from row `first` of the store on.
        """
        lost = clipped[~excluded[clipped[:, 0].astype(np.int64) - first]]
        if len(lost) <= most:
            return
        self._records = []  # a resumed job would compute the same rows
        row, _, largest = lost[np.argmax(lost[:, 2])]
        raise UserError(
            f"{describe(self._header)}: {len(lost):,} of {len(excluded):,} rows hold values beyond "
            f"float16, at most {self._header.largest:,.0f} at scale {self._header.scale}; the "
            f"largest is {largest:,.0f} in row {self._start + int(row):,}. Set "
            f"activations.min_scale to {scale_for(SPARE * largest)}, or choose another "
            "activations.site, or activations.layers without this layer"
        )

    def _log_clipped(self, clipped: npt.NDArray[np.float64]) -> None:
        log.warning(
            f"{describe(self._header)}: {clipped[:, 1].sum():,.0f} values in {len(clipped):,} "
            f"massive or first rows were clipped to {self._header.largest:,.0f}, the largest is "
            f"{clipped[:, 2].max():,.0f}; such rows are excluded from training and evaluation"
        )

    def _joined(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([record.flat[name] for record in self._records])

    def _file_entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = {
            self._shard_name(number): record.about["summary"]
            for number, record in enumerate(self._records)
        }
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if (
                path.is_file()
                and name not in entries
                and name != "lock"
                and not name.startswith("progress/")
            ):
                entries[name] = {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        return entries
