"""Activation stores: one layer's activations on disk, as a zarr group and the manifest that vouches for it.

A store is a zarr v3 group with two arrays: the activations, named by their site, (rows, d_model)
float16, and `massive`, (rows,) bool. zarr fills in for a missing or empty file without a word, so
nothing here is read without its manifest: row range, size and SHA-256 of every file, crc32c of
every chunk. The manifest is written last, so it exists only beside a whole store.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ghosttrack import files
from ghosttrack.activations import layout
from ghosttrack.activations.shards import Half, ShardSummary, ShardWriter
from ghosttrack.errors import UserError

SCHEMA = "ghosttrack-activations/1"
CHUNK_ROWS, CHUNKS_PER_SHARD = layout.CHUNK_ROWS, layout.CHUNKS_PER_SHARD
# ASSUME: rows far above the rest in norm are attention sinks, not meaning; 10 medians splits them off cleanly.
MASSIVE_FACTOR = 10.0
HALF_MAX = float(np.finfo(np.float16).max)


class Header(NamedTuple):
    """What the rows of a store are: the model, the place in it, and the tokens that went in."""

    model: str
    weights_sha256: str
    layer: int | None  # None: not the output of a block (the token embedding)
    site: str  # resid_post, mlp_out, attn_out or embedding; names the array
    context: int | None  # rows per packed context; None: rows are answer tokens of examples
    tokens_sha256: str


class Block(NamedTuple):
    """Rows ready for a store: float16 values (n, d_model), float32 norms (n,) before rounding, values clipped."""

    values: Half
    norms: npt.NDArray[np.float32]
    clipped: int


def to_block(rows: npt.NDArray[np.float32]) -> Block:
    """Round (n, d_model) float32 rows to float16, clipping what it cannot hold instead of making it infinite."""
    clipped = int((np.abs(rows) > HALF_MAX).sum())
    values = np.clip(rows, -HALF_MAX, HALF_MAX).astype(np.float16)
    return Block(values, np.sqrt(np.einsum("ij,ij->i", rows, rows)), clipped)


class StoreWriter:
    """Writes one store front to back, as a context manager: published when the block ends without an error.

    Args:
        store, manifest: where they go; both are replaced.
        header: what the rows are.
        rows: rows that will be appended.
        d_model: width of a row.
        row_start: index of the first row in the whole layer.
        total_rows: rows of the whole layer, over all its stores; default: this store is all of it.
    Raises:
        UserError: another process writes this store, or a row is not finite.
    """

    def __init__(
        self, store: Path, manifest: Path, header: Header, *,
        rows: int, d_model: int, row_start: int = 0, total_rows: int | None = None,
    ) -> None:  # fmt: skip
        if rows < 1:
            raise ValueError(f"{store}: a store needs at least one row, found {rows}")
        self._store, self._manifest, self._header = Path(store), Path(manifest), header
        self._rows, self._width, self._start = rows, d_model, row_start
        self._total = row_start + rows if total_rows is None else total_rows
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(files.atomic_directory(self._store))
            # From here on no manifest vouches for what stands in the store's place.
            self._manifest.unlink(missing_ok=True)
            self._stack = stack.pop_all()
        self._shards: dict[str, ShardSummary] = {}
        self._shard: ShardWriter | None = None
        self._buffer: Half = np.full((CHUNK_ROWS, self._width), np.nan, dtype=np.float16)
        self._norms = np.empty(self._rows, dtype=np.float32)
        self._done = self._clipped = 0
        return self

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's attributes, repeated in the manifest."""
        return {
            "schema": SCHEMA, **self._header._asdict(), "d_model": self._width,
            "rows": self._rows, "row_start": self._start, "total_rows": self._total,
        }  # fmt: skip

    def append(self, block: Block) -> None:
        """Add the next rows."""
        count = len(block.values)
        if self._done + count > self._rows:
            raise ValueError(f"{self._store}: {self._done + count} rows given, {self._rows} announced")
        finite = np.isfinite(block.norms)
        if not finite.all():
            raise UserError(
                f"{_place(self._header)}: row {self._start + self._done + int(np.argmin(finite))} holds NaN or infinity, "
                f"expected numbers: the weights of model {self._header.model} are damaged or do not fit its config.json; "
                "delete the model folder and run again"
            )
        self._norms[self._done : self._done + count] = block.norms
        self._clipped += block.clipped
        taken = 0
        while taken < count:
            at = self._done % CHUNK_ROWS
            take = min(count - taken, CHUNK_ROWS - at)
            self._buffer[at : at + take] = block.values[taken : taken + take]
            taken += take
            self._done += take
            if self._done % CHUNK_ROWS == 0:
                self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            if self._shard is not None:
                self._shard.abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            manifest = self._finish()
        files.write_json(self._manifest, manifest)

    def _flush(self) -> None:
        if self._shard is None:
            self._shard_name = f"{self._header.site}/c/{len(self._shards)}/0"
            self._shard = ShardWriter(self._folder / self._shard_name, CHUNKS_PER_SHARD)
        self._shard.append(self._buffer)
        self._buffer.fill(np.nan)  # so that rows beyond the last read as fill values
        if self._shard.full:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shards[self._shard_name] = self._shard.close()
            self._shard = None

    def _finish(self) -> dict[str, Any]:
        if self._done != self._rows:
            raise ValueError(f"{self._store}: {self._done} rows given, {self._rows} announced")
        if self._done % CHUNK_ROWS:
            self._flush()
        self._close_shard()
        first = positions(self._start, self._rows, self._header.context) == 0
        # Position 0 is massive by nature; it must not move the median.
        normal = self._norms[~first] if not first.all() else self._norms
        median = float(np.median(normal))
        massive = self._norms > MASSIVE_FACTOR * median
        _write_group(self._folder, self.attributes, massive)
        kept = self._norms[~(massive | first)].astype(np.float64)
        return {
            **self.attributes,
            "files": self._file_entries(),
            "clipped": self._clipped,
            "nan": 0,
            "massive_rows": int(massive.sum()),
            "excluded_rows": int((massive | first).sum()),
            "median_norm": median,
            "mean_square_norm": float(np.square(kept).mean()) if kept.size else None,
        }

    def _file_entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = {name: summary._asdict() for name, summary in self._shards.items()}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file() and name not in entries and name != "lock":
                entries[name] = {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        return entries


def positions(row_start: int, rows: int, context: int | None) -> npt.NDArray[np.int64]:
    """Position of every row in its context, (rows,); -1 where rows are not packed contexts."""
    if context is None:
        return np.full(rows, -1, dtype=np.int64)
    return (row_start + np.arange(rows, dtype=np.int64)) % context


def _write_group(folder: Path, attributes: dict[str, Any], massive: npt.NDArray[np.bool_]) -> None:
    """Write a store's zarr metadata and its `massive` array; the shard files of the activations are there already."""
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.open_group(folder, mode="a", zarr_format=3, attributes=attributes)
    rows, d_model = attributes["rows"], attributes["d_model"]
    # All-zero chunks are written too: else a missing file would be a valid way to say "zeros".
    common: dict[str, Any] = {"compressors": [Crc32cCodec()], "filters": None, "config": {"write_empty_chunks": True}}
    group.create_array(
        attributes["site"], shape=(rows, d_model), dtype="float16", chunks=(CHUNK_ROWS, d_model),
        shards=(CHUNK_ROWS * CHUNKS_PER_SHARD, d_model), fill_value=float("nan"),
        dimension_names=("row", "channel"), **common,
    )  # fmt: skip
    flags = group.create_array(
        "massive", shape=(rows,), dtype="bool", chunks=(rows,), dimension_names=("row",), **common
    )
    flags[:] = massive


def read_massive(folder: Path) -> npt.NDArray[np.bool_]:
    """The `massive` array of a store, (rows,)."""
    import zarr

    return np.asarray(zarr.open_array(folder / "massive", mode="r", zarr_format=3)[:], dtype=np.bool_)


def _place(header: Header) -> str:
    return header.site if header.layer is None else f"{header.site} of layer {header.layer}"
