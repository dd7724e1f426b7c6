"""Reading activation stores, with all data verified against their manifests.

Opening verifies row ranges, identity, file sizes and the hashes of small files. The checksum of a
chunk is verified when it is first read, so a run that reads everything verifies everything once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import google_crc32c
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from ghosttrack.activations import int8s
from ghosttrack.activations.layout import CHUNK_ROWS, CHUNKS_PER_SHARD
from ghosttrack.activations.shards import Half, MappedShard
from ghosttrack.activations.store import SCHEMA, SIDECARS, Header, positions, read_flat, scaled
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

# Manifest keys that are equal in all stores of a layer. Stores with scale 1 have no `scale`.
LAYER_KEYS = (*Header._fields, "d_model", "total_rows")
# The bits of a float16 that is infinite or NaN: from the first on as a signed integer if it is
# positive, from the second on as an unsigned one if it is negative.
_NOT_FINITE, _NOT_FINITE_NEGATIVE = 0x7C00, 0xFC00


class _File(BaseModel):
    """What a manifest says about one file of its store."""

    model_config = ConfigDict(strict=True)
    bytes: NonNegativeInt
    sha256: str
    chunk_crc32c: list[int] | None = None


class _Manifest(BaseModel):
    """Types of the keys of a manifest that readers use."""

    model_config = ConfigDict(strict=True)
    model: str
    weights_sha256: str
    layer: int | None
    site: str
    context: PositiveInt | None
    tokens_sha256: str
    storage: str
    model_precision: str
    d_model: PositiveInt
    rows: PositiveInt
    row_start: NonNegativeInt
    total_rows: PositiveInt
    files: dict[str, _File]
    storage_error: dict[str, float] | None


class _Part(NamedTuple):
    """One store with its manifest, and the content of the manifest."""

    store: Path
    manifest: Path
    content: Mapping[str, Any]

    @property
    def start(self) -> int:
        return int(self.content["row_start"])

    @property
    def rows(self) -> int:
        return int(self.content["rows"])


class ActivationStore:
    """All activations of one layer, over one or more stores, as rows 0 .. `rows` - 1.

    Attributes:
        rows, d_model: shape of the whole.
        layer, site, context: origin of the rows; `context` is None for tokens of examples.
        attributes: the manifest values that all stores share.
        massive: (rows,) bool, norm above ten times the median of its store.
        excluded: (rows,) bool, massive or position 0 of a context.
        storage, storage_error: storage mode and its error on the first rows (see precision).
        scale: power of two; a value is the stored value times the scale.
        chunk_bounds: (chunks + 1,) int64; chunk i holds rows chunk_bounds[i] to
            chunk_bounds[i + 1] - 1.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        first = parts[0].content
        self._parts = parts
        self.attributes: dict[str, Any] = {key: first[key] for key in LAYER_KEYS if key in first}
        self.scale: int = first.get("scale", 1)
        self.rows: int = sum(part.rows for part in parts)
        self.d_model: int = first["d_model"]
        self.layer: int | None = first["layer"]
        self.site: str = first["site"]
        self.context: int | None = first["context"]
        self.massive: npt.NDArray[np.bool_] = np.concatenate([_massive(part) for part in parts])
        self.excluded: npt.NDArray[np.bool_] = self.massive | (
            positions(0, self.rows, self.context) == 0
        )
        # Chunks in row order: part, and index within the part.
        self._owners = [
            (part, number) for part in parts for number in range(-(-part.rows // CHUNK_ROWS))
        ]
        starts = [part.start + number * CHUNK_ROWS for part, number in self._owners]
        self.chunk_bounds: npt.NDArray[np.int64] = np.array([*starts, self.rows], dtype=np.int64)
        self._verified = np.zeros(len(self._owners), dtype=np.bool_)
        self._maps: dict[Path, MappedShard] = {}
        self.storage: str = first["storage"]
        self.storage_error: dict[str, float] | None = first["storage_error"]
        # Read before the files are hashed: a file lost in between cannot be read as fill values.
        small = SIDECARS if self.storage == "int8s" else ()
        self._sidecars = {
            part.store: {name: read_flat(part.store, name) for name in small} for part in parts
        }
        for part in parts:
            _require_files(part)
            for name, values in self._sidecars[part.store].items():
                if not np.isfinite(values).all():
                    _refuse(part, part.store / name, "it holds NaN or infinite values")

    @classmethod
    def open(
        cls,
        stores: Sequence[Path],
        manifests: Sequence[Path],
        expected: Mapping[str, Any] | None = None,
    ) -> "ActivationStore":
        """Open the stores of one layer.

        Args:
            stores, manifests: in the same order; they must hold every row of the layer once.
            expected: manifest values that the stores must have, such as {"layer": 3}.
        Raises:
            UserError: with the damaged, missing, foreign or overlapping file and what to delete.
        """
        if len(stores) != len(manifests) or not stores:
            raise UserError(
                f"{len(stores)} activation stores with {len(manifests)} manifests: expected one "
                "manifest per store, and at least one store"
            )
        parts = [
            _load(Path(store), Path(manifest))
            for store, manifest in zip(stores, manifests, strict=True)
        ]
        for part in parts:
            _require(
                part,
                {key: parts[0].content.get(key) for key in LAYER_KEYS},
                f"{parts[0].store} has",
            )
            _require(part, expected or {}, "this job expects")
        parts.sort(key=lambda part: part.start)
        _require_cover(parts)
        for part in parts:
            _require_files(part)
        return cls(parts)

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.floating[Any]]:
        """Rows `start` .. `stop` - 1 as a new array, (stop - start, d_model).

        The values are in the model's units: float16 at scale 1, else float32. Reads whole chunks
        from a memory map; their checksums are verified at the first read.
        """
        stop = self.rows if stop is None else stop
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} are outside 0..{self.rows}")
        kind = np.float16 if self.scale == 1 else np.float32
        result: npt.NDArray[np.floating[Any]] = np.empty((stop - start, self.d_model), dtype=kind)
        at = start
        while at < stop:
            number = int(np.searchsorted(self.chunk_bounds, at, side="right")) - 1
            base = int(self.chunk_bounds[number])
            end = min(stop, int(self.chunk_bounds[number + 1]))
            result[at - start : end - start] = self.chunk(number)[at - base : end - base]
            at = end
        return result

    def chunk(self, number: int) -> npt.NDArray[np.floating[Any]]:
        """One chunk in the model's units, (rows, d_model): float16 at scale 1, else float32."""
        return scaled(self.half(number), self.scale)

    def half(self, number: int) -> Half:
        """One chunk in units of `scale`, (rows, d_model) float16: a read-only view, or decoded."""
        stored, coding = self._stored(number), self.coding(number)
        return stored if coding is None else int8s.decode(int8s.Coded(stored, *coding))

    def rows_of(self, number: int) -> int:
        """Rows of one chunk."""
        return int(self.chunk_bounds[number + 1] - self.chunk_bounds[number])

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of the numbers as they are stored: float16, or int8 levels."""
        return np.dtype("<f2" if self.storage == "fp16" else "<i1")

    def coding(self, number: int) -> int8s.Coding | None:
        """What the levels of one chunk of an int8s store mean; None for float16."""
        if self.storage == "fp16":
            return None
        part, inside = self._owners[number]
        flat = self._sidecars[part.store]
        first = inside * CHUNK_ROWS
        low, high = np.searchsorted(flat["outlier_rows"], [first, first + CHUNK_ROWS])
        return int8s.Coding(
            flat["row_scale"][first : first + self.rows_of(number)],
            flat["mean"][inside],
            flat["deviation"][inside],
            flat["outlier_rows"][low:high] - first,
            flat["outliers"][low:high],
        )

    def read_stored(self, number: int, target: npt.NDArray[Any]) -> None:
        """Copy one chunk as it is stored into `target` (rows, d_model) of `stored_dtype`.

        Any thread may call this. Raises UserError if the chunk is damaged, as `chunk` does.
        """
        with self._refused(number):
            mapped, slot = self._map(number)
            mapped.read_into(slot, target)
            if not self._verified[number]:
                if len(target) == CHUNK_ROWS:
                    payload = target.reshape(-1).view(np.uint8)
                    payload.flags.writeable = False  # google_crc32c requires a read-only buffer
                    self._verify(number, int(google_crc32c.value(payload)), target)
                else:  # the checksum covers the unused rows too
                    self._verify(number, mapped.crc32c(slot), target)

    def release(self) -> None:
        """Unmap the files, to free the memory of this process; reading maps them again."""
        self._maps.clear()

    def _stored(self, number: int) -> npt.NDArray[Any]:
        """One chunk as it is on disk, verified at the first read."""
        with self._refused(number):
            mapped, slot = self._map(number)
            values = mapped.chunk(slot)[: self.rows_of(number)]
            if not self._verified[number]:
                self._verify(number, mapped.crc32c(slot), values)
        return values

    def _map(self, number: int) -> tuple[MappedShard, int]:
        """The mapped file of a chunk, and the chunk's number in it."""
        path, slot = self._place(number)
        mapped = self._maps.get(path)
        if mapped is None:
            mapped = MappedShard(
                path, CHUNK_ROWS, self.d_model, CHUNKS_PER_SHARD, self.stored_dtype.str
            )
            self._maps[path] = mapped
        return mapped, slot

    def _place(self, number: int) -> tuple[Path, int]:
        """The file of a chunk, and the chunk's number in it."""
        part, inside = self._owners[number]
        shard, slot = divmod(inside, CHUNKS_PER_SHARD)
        return part.store / f"{self.site}/c/{shard}/0", slot

    @contextmanager
    def _refused(self, number: int) -> Iterator[None]:
        """Turn an error about the bytes of a chunk into a UserError."""
        try:
            yield
        except (ValueError, OSError) as error:
            first = int(self.chunk_bounds[number])
            _refuse(
                self._owners[number][0],
                self._place(number)[0],
                f"rows from {first} on are damaged: {error}",
            )

    def verify(self) -> None:
        """Verify the SHA-256 of every file and all chunks.

        Raises:
            UserError: with the first damaged file.
        """
        for part in self._parts:
            for name, entry in part.content["files"].items():
                if files.sha256_file(part.store / name) != entry["sha256"]:
                    _refuse(part, part.store / name, "its SHA-256 is not the one in the manifest")
        for number in range(len(self._owners)):
            self.half(number)

    def fingerprint(self) -> str:
        """Hex SHA-256 over all manifests, which contain the hashes of every file."""
        return files.sha256_json([part.content for part in self._parts])

    def _verify(self, number: int, checksum: int, values: npt.NDArray[Any]) -> None:
        """Compare a chunk with its manifest, and remember that it was done."""
        part = self._owners[number][0]
        path, slot = self._place(number)
        name = path.relative_to(part.store).as_posix()
        expected = part.content["files"][name]["chunk_crc32c"][slot]
        if checksum != expected:
            raise ValueError(
                f"chunk {slot} has checksum {checksum:08x}, its manifest says {expected:08x}"
            )
        if values.dtype == np.int8:
            if values.size and int(values.min()) == int8s.UNWRITTEN:
                raise ValueError(f"chunk {slot} holds rows that were never written")
        elif values.size and not finite(values):
            raise ValueError(f"chunk {slot} holds NaN or infinite values")
        self._verified[number] = True


def finite(values: Half) -> bool:
    """Whether no value is infinite or NaN. Two maxima of integers: a third of the time of a mask."""
    signed, unsigned = values.view(np.int16).max(), values.view(np.uint16).max()
    return bool(signed < _NOT_FINITE and unsigned < _NOT_FINITE_NEGATIVE)


def require_same_rows(stores: Sequence[ActivationStore]) -> None:
    """Refuse stores of several layers whose rows are not the same tokens of the same model.

    Raises:
        UserError: with both layers and the value that differs.
    """
    for one, other in pairwise(stores):
        for key in ("weights_sha256", "tokens_sha256", "total_rows", "model_precision"):
            if one.attributes[key] != other.attributes[key]:
                raise UserError(
                    f"stores of layers {one.layer} and {other.layer} hold different rows: {key} is "
                    f"{one.attributes[key]} and {other.attributes[key]}; delete both and run again"
                )


def _load(store: Path, manifest: Path) -> _Part:
    content = files.read_json(manifest)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{manifest}: schema is {_printable(schema)}, expected {SCHEMA}: {remedy(store, manifest)}"
        )
    # Stores from before this key hold activations of a float32 model.
    content.setdefault("model_precision", "float32")
    missing = [
        key
        for key in (*LAYER_KEYS, "rows", "row_start", "files", "storage_error")
        if key not in content and key != "scale"
    ]
    if missing:
        raise UserError(f"{manifest}: {', '.join(missing)} missing: {remedy(store, manifest)}")
    scale = content.get("scale", 1)
    if not isinstance(scale, int) or scale < 1 or scale & (scale - 1):
        raise UserError(
            f"{manifest}: its scale is {scale!r}, expected a power of two: "
            f"{remedy(store, manifest)}"
        )
    try:
        _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{manifest}: {'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}: "
            f"{remedy(store, manifest)}"
        ) from None
    return _Part(store, manifest, content)


def _require_attributes(part: _Part) -> None:
    """Check that the store's own attributes are those of its manifest."""
    path = part.store / "zarr.json"
    entry = part.content["files"].get("zarr.json")
    if entry is not None and path.is_file() and files.sha256_file(path) != entry["sha256"]:
        _refuse(part, path, "its SHA-256 is not the one in the manifest")
    if not path.is_file():
        _refuse(part, path, "the file is missing")
    group = files.read_json(path)
    attributes = group.get("attributes") if isinstance(group, dict) else None
    if not isinstance(attributes, dict):
        _refuse(part, path, "it has no attributes")
    defaults = Header._field_defaults
    for key in (*LAYER_KEYS, "rows", "row_start"):
        stored, stated = (about.get(key, defaults.get(key)) for about in (attributes, part.content))
        if stored != stated:
            _refuse(part, part.manifest, f"its {key} is {stated!r}, the store says {stored!r}")


def _require(part: _Part, expected: Mapping[str, Any], who: str) -> None:
    for key, value in expected.items():
        if part.content.get(key) != value:
            raise UserError(
                f"{part.store} comes from another run: its {key} is "
                f"{_printable(part.content.get(key))}, {who} {_printable(value)}; "
                f"{remedy(part.store, part.manifest)}"
            )


def _require_cover(parts: Sequence[_Part]) -> None:
    end, before = 0, None
    for part in parts:
        if part.start < end and before is not None:
            raise UserError(
                f"{before.store} and {part.store} both hold row {part.start}, expected every row "
                f"once: delete both with their manifests ({before.manifest}, {part.manifest}) and "
                "run again, which repeats their jobs and the training on their rows"
            )
        if part.start > end:
            raise UserError(
                f"no store holds rows {end}..{part.start - 1}, before {part.store}: run again to "
                "write it"
            )
        end, before = part.start + part.rows, part
    total = parts[0].content["total_rows"]
    if end != total:
        raise UserError(
            f"{parts[-1].store} ends at row {end}, the layer has {total}: a store is missing or "
            "comes from another corpus; run again to write it"
        )


def _require_files(part: _Part) -> None:
    _require_attributes(part)
    shards = -(-part.rows // (CHUNK_ROWS * CHUNKS_PER_SHARD))
    site = part.content["site"]
    needed = [f"{site}/c/{number}/0" for number in range(shards)]
    # Chunks of `outliers` are not required: there may be no outliers.
    flat = [f"{name}/zarr.json" for name in SIDECARS if part.content["storage"] == "int8s"]
    for name in [
        *needed,
        "zarr.json",
        f"{site}/zarr.json",
        "massive/zarr.json",
        "massive/c/0",
        *flat,
    ]:
        if name not in part.content["files"]:
            _refuse(part, part.manifest, f"it does not list {_printable(name)}")
    for name, entry in part.content["files"].items():
        path = part.store / name
        try:
            size = path.stat().st_size
        except (OSError, ValueError):
            _refuse(part, path, "the file is missing")
        if size != entry["bytes"]:
            _refuse(part, path, f"it has {size} bytes, its manifest says {entry['bytes']}")
        if name in needed:
            first = needed.index(name) * CHUNKS_PER_SHARD
            chunks = min(CHUNKS_PER_SHARD, -(-part.rows // CHUNK_ROWS) - first)
            if len(entry.get("chunk_crc32c") or []) < chunks:
                _refuse(part, part.manifest, f"it has no chunk_crc32c of {name}")
        # Shard files are large: their chunks are verified when they are read.
        if name not in needed and files.sha256_file(path) != entry["sha256"]:
            _refuse(part, path, "its SHA-256 is not the one in the manifest")


def _massive(part: _Part) -> npt.NDArray[np.bool_]:
    massive = read_flat(part.store, "massive")
    if massive.shape != (part.rows,):
        _refuse(part, part.store / "massive", f"it has {massive.shape} values for {part.rows} rows")
    return massive


def _refuse(part: _Part, path: Path, problem: str) -> NoReturn:
    raise UserError(f"{_printable(path)}: {problem}; {remedy(part.store, part.manifest)}") from None


def _printable(value: object) -> str:
    """A value from a file in one line."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def remedy(store: Path, manifest: Path) -> str:
    """Remedy in an error message: how to write a store again."""
    return (
        f"delete {store} and {manifest}, then: snakemake --profile YOURS {manifest} "
        "(this repeats its job alone; a whole run would also repeat the training on its layers)"
    )
