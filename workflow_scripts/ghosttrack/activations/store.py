"""Activation stores: one layer's activations on disk, as a zarr group and the manifest that vouches for it.

A store is a zarr v3 group. Its main array, named by the site, is (rows, d_model): float16, or int8 with the
arrays that turn it back (see int8s). `massive`, (rows,) bool, flags attention sinks. zarr fills in for a missing
or empty file without a word, so nothing here is read without its manifest: row range, size and SHA-256 of
every file, crc32c of every chunk. The manifest is written last, so it exists only beside a whole store.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.int8s import UNWRITTEN
from ghosttrack.activations.layout import CHUNK_ROWS, CHUNKS_PER_SHARD, HALF_MAX
from ghosttrack.activations.shards import Half

SCHEMA = "ghosttrack-activations/2"
Storage = Literal["fp16", "int8s"]


class Header(NamedTuple):
    """What the rows of a store are: the model, the place in it, and the tokens that went in."""

    model: str
    weights_sha256: str
    layer: int | None  # None: not the output of a block (the token embedding)
    site: str  # resid_post, mlp_out, attn_out or embedding; names the array
    context: int | None  # rows per packed context; None: rows are answer tokens of examples
    tokens_sha256: str
    storage: Storage = "fp16"


NOTHING_CLIPPED: npt.NDArray[np.float64] = np.empty((0, 3))


class Block(NamedTuple):
    """Rows ready for a store: float16 values (n, d_model), clipped to what float16 holds; float32 norms (n,) before that.

    `clipped`, (m, 3) float64, has one line for each row of which a value was clipped: its place in the block, how many of
    its values were, and the largest of them in absolute value.
    """

    values: Half
    norms: npt.NDArray[np.float32]
    exact: npt.NDArray[np.float32] | None = (
        None  # (n, d_model), where the error of storage is to be measured
    )
    clipped: npt.NDArray[np.float64] = NOTHING_CLIPPED


def to_block(rows: npt.NDArray[np.float32]) -> Block:
    """Round (n, d_model) float32 rows to float16, clipping what it cannot hold instead of making it infinite."""
    values = np.clip(rows, -HALF_MAX, HALF_MAX).astype(np.float16)
    return Block(values, np.sqrt(np.einsum("ij,ij->i", rows, rows)), clipped=clipped_rows(rows))


def smallest_float(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    """The values as float16 if it holds all of them, else as they are; NaN stays."""
    return values.astype(np.float16) if not (np.abs(values) > HALF_MAX).any() else values


def clipped_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """`Block.clipped` of (n, d_model) rows."""
    size = np.abs(rows)
    count = (size > HALF_MAX).sum(axis=1)
    numbers = np.flatnonzero(count)
    return np.stack([numbers, count[numbers], size[numbers].max(axis=1)], axis=1, dtype=np.float64)


def positions(row_start: int, rows: int, context: int | None) -> npt.NDArray[np.int64]:
    """Position of every row in its context, (rows,); -1 where rows are not packed contexts."""
    if context is None:
        return np.full(rows, -1, dtype=np.int64)
    return (row_start + np.arange(rows, dtype=np.int64)) % context


# What an int8s store holds beside its levels, with the name of each dimension: see int8s.Coded.
SIDECARS = {
    "row_scale": ("row",),
    "mean": ("chunk", "channel"),
    "deviation": ("chunk", "channel"),
    "outlier_rows": ("outlier",),
    "outliers": ("outlier", "channel"),
}


def write_group(
    folder: Path, attributes: dict[str, Any], flat: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write a store's zarr metadata and its small arrays; the shard files of the activations are there already.

    Args:
        folder: the zarr group.
        attributes: as StoreWriter.attributes.
        flat: `massive`, and the sidecars of an int8s store.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.open_group(folder, mode="a", zarr_format=3, attributes=attributes)
    rows, d_model = attributes["rows"], attributes["d_model"]
    half = attributes["storage"] == "fp16"
    # All-zero chunks are written too: else a missing file would be a valid way to say "zeros".
    common: dict[str, Any] = {
        "compressors": [Crc32cCodec()],
        "filters": None,
        "config": {"write_empty_chunks": True},
    }
    group.create_array(
        attributes["site"],
        shape=(rows, d_model),
        dtype="float16" if half else "int8",
        chunks=(CHUNK_ROWS, d_model),
        shards=(CHUNK_ROWS * CHUNKS_PER_SHARD, d_model),
        fill_value=float("nan") if half else UNWRITTEN,
        dimension_names=("row", "channel"),
        **common,
    )
    for name, values in flat.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype.name,
            chunks=tuple(max(1, size) for size in values.shape),
            dimension_names=SIDECARS.get(name, ("row",)),
            **common,
        )
        if values.size:
            array[:] = values


def read_flat(folder: Path, name: str) -> npt.NDArray[Any]:
    """A small array of a store, whole: `massive` or a sidecar."""
    import zarr

    return np.asarray(zarr.open_array(folder / name, mode="r", zarr_format=3)[:])


def place(header: Header) -> str:
    """How an error names the rows of a store."""
    return header.site if header.layer is None else f"{header.site} of layer {header.layer}"
