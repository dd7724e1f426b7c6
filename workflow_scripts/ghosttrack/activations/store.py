"""Activation stores: one layer's activations on disk, as a zarr group with a manifest.

A store is a zarr v3 group. Its main array, named after the site, is (rows, d_model): float16, or
int8 with the arrays that decode it (see int8s). `massive`, (rows,) bool, flags attention sinks.
The model's value is the stored value times the attribute `scale`, a power of two that keeps large
residual streams within the range of float16; without this attribute it is 1.
zarr silently reads a missing or empty file as fill values, so no store is read without its
manifest: row range, size and SHA-256 of every file, crc32c of every chunk. The manifest is written
last, so it exists only beside a complete store.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.int8s import UNWRITTEN, Coded
from ghosttrack.activations.layout import CHUNK_ROWS, CHUNKS_PER_SHARD, HALF_MAX
from ghosttrack.activations.shards import Half

if TYPE_CHECKING:
    import torch

SCHEMA = "ghosttrack-activations/2"
Storage = Literal["fp16", "int8s"]


class Header(NamedTuple):
    """Origin of a store's rows: model, layer, site and input tokens."""

    model: str
    weights_sha256: str
    layer: int | None  # None: the token embedding, which is not the output of a block
    site: str  # resid_post, mlp_out, attn_out or embedding; names the array
    context: int | None  # rows per packed context; None: rows are tokens of examples
    tokens_sha256: str
    storage: Storage = "fp16"
    # Precision of the forward pass, such as bfloat16 (`inputs.model_precision.Precision.name`).
    model_precision: str = "float32"
    scale: int = 1  # power of two: value = stored value x scale

    @property
    def largest(self) -> float:
        """The largest value that the store can hold."""
        return HALF_MAX * self.scale


NOTHING_CLIPPED: npt.NDArray[np.float64] = np.empty((0, 3))


class Block(NamedTuple):
    """Rows ready to be stored.

    values: (n, d_model) float16, divided by `scale` and clipped to the range of float16; or a whole
        chunk of them that a device has encoded.
    norms: (n,) float32, of the rows themselves.
    exact: (n, d_model) float32, if the storage error is to be measured.
    clipped: (m, 3) float64, one line per row with clipped values: index of the row in the block,
        number of clipped values, and the largest of them in absolute value.
    scale: power of two that the rows were divided by.
    """

    values: Half | Coded
    norms: npt.NDArray[np.float32]
    exact: npt.NDArray[np.float32] | None = None
    clipped: npt.NDArray[np.float64] = NOTHING_CLIPPED
    scale: int = 1


def to_block(
    rows: "torch.Tensor | npt.NDArray[np.float32]", *, exact: bool = False, scale: int = 1
) -> Block:
    """Divide (n, d_model) rows by `scale` and round them to float16, on their device.

    Rows in half precision become float32 first. Values beyond the range of float16 are clipped.
    With `exact`, the block also keeps the rows as they are.
    """
    import torch  # here only: readers of stores do without it

    rows = torch.as_tensor(rows).float()
    norms = torch.linalg.vector_norm(rows, dim=1)
    kept = rows.cpu().numpy().copy() if exact else None  # the model may change its output
    values, clipped = rows if scale == 1 else rows / scale, NOTHING_CLIPPED
    if not bool((norms <= HALF_MAX * scale).all()):
        clipped = _clipped_rows(rows.cpu().numpy(), HALF_MAX * scale)
        values = values.clamp(-HALF_MAX, HALF_MAX)
    return Block(values.half().cpu().numpy(), norms.cpu().numpy(), kept, clipped, scale)


def as_stored(rows: "torch.Tensor", scale: int) -> "torch.Tensor":
    """Rows as a store with this scale returns them, (n, d_model) float32."""
    return (rows.float() / scale).clamp(-HALF_MAX, HALF_MAX).half().float() * scale


def scaled(values: Half, scale: int) -> npt.NDArray[np.floating[Any]]:
    """Stored values in the model's units: float16 as they are at scale 1, else float32."""
    return values if scale == 1 else np.multiply(values, np.float32(scale), dtype=np.float32)


def scale_for(largest: float) -> int:
    """The smallest power of two, at least 1, with which float16 holds values up to `largest`."""
    return int(2 ** max(0, np.ceil(np.log2(max(largest, 1.0) / HALF_MAX))))


def smallest_float(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    """The values as float16 if none of them overflows, else unchanged; NaN stays."""
    return values.astype(np.float16) if not (np.abs(values) > HALF_MAX).any() else values


def _clipped_rows(rows: npt.NDArray[np.float32], largest: float) -> npt.NDArray[np.float64]:
    """`Block.clipped` of (n, d_model) rows, for a store that holds values up to `largest`."""
    size = np.abs(rows)
    count = (size > largest).sum(axis=1)
    numbers = np.flatnonzero(count)
    return np.stack([numbers, count[numbers], size[numbers].max(axis=1)], axis=1, dtype=np.float64)


def positions(row_start: int, rows: int, context: int | None) -> npt.NDArray[np.int64]:
    """Position of every row in its context, (rows,); -1 if rows are not packed contexts."""
    if context is None:
        return np.full(rows, -1, dtype=np.int64)
    return (row_start + np.arange(rows, dtype=np.int64)) % context


# Additional arrays of an int8s store, with the names of their dimensions; see int8s.Coded.
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
    """Write a store's zarr metadata and small arrays beside its existing shard files.

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
    # All-zero chunks are written too: otherwise a missing file would be a valid way to store zeros.
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


def describe(header: Header) -> str:
    """Site and layer of a store, for error messages."""
    return describe_layer(header.layer, header.site)


def describe_layer(layer: int | None, site: str) -> str:
    """Site and layer of activations, for messages; None: the token embedding."""
    return "embedding" if layer is None else f"{site} of layer {layer}"
