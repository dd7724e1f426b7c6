"""Every kind of damage, in both storage modes, is reported and fixed by writing one store again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from small_stores import HEADER, WIDTH, empty, flip, make_rows, overwrite, truncate, write, zero

from ghosttrack.activations import verification
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Header, Storage, read_flat, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

# A layer of two stores: 70,000 rows in two shard files, 20,000 rows in one.
ROWS = {"one": 70_000, "two": 20_000}
TOTAL = sum(ROWS.values())
SHARD, MANIFEST = "one.zarr/resid_post/c/1/0", "one.json"


class Kind(NamedTuple):
    """One kind of damage, the reported message and file, and the store to write again."""

    do: Callable[[Path, Header], object]
    said: str
    named: str = SHARD
    rewritten: str = "one"


def job(folder: Path, header: Header, name: str, start: int | None = None) -> None:
    """Write a store as an extraction job does for one layer."""
    first = {"one": 0, "two": ROWS["one"]}[name] if start is None else start
    write(
        folder,
        make_rows(ROWS[name], seed=first),
        header,
        start=first,
        total=TOTAL,
        name=name,
        step=ROWS[name],
    )


def at(place: str, change: Callable[[Path], object]) -> Callable[[Path, Header], object]:
    return lambda folder, _: change(folder / place)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Header], object]:
    """Change the manifest of the first store."""

    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return at(MANIFEST, edit)


def manifest_of_another_run(folder: Path, header: Header) -> None:
    """The same model, layer and tokens, but other values."""
    write(folder / "other", make_rows(70_000, seed=9), header, total=TOTAL, name="one", step=70_000)
    shutil.copy(folder / "other" / MANIFEST, folder / MANIFEST)
    shutil.rmtree(folder / "other")


def shard_of_another_model(folder: Path, header: Header) -> None:
    """A file of the correct size, name and form."""
    other = header._replace(model="other", weights_sha256="other")
    write(folder / "other", make_rows(70_000, seed=9), other, total=TOTAL, name="one", step=70_000)
    shutil.copy(folder / "other" / SHARD, folder / SHARD)
    shutil.rmtree(folder / "other")


def store_of_another_model(folder: Path, header: Header) -> None:
    job(folder, header._replace(model="other", weights_sha256="other"), "two")


def rows_that_are_not_finite(value: float) -> Callable[[Path, Header], None]:
    """Non-finite values with valid checksums, which the writer cannot see in the norms."""

    def write_them(folder: Path, header: Header) -> None:
        block = to_block(make_rows(70_000))
        assert isinstance(block.values, np.ndarray)
        block.values[69_999] = value
        with StoreWriter(
            folder / "one.zarr",
            folder / MANIFEST,
            header,
            rows=70_000,
            d_model=WIDTH,
            total_rows=TOTAL,
        ) as writer:
            writer.append(block)

    return write_them


def small_array(
    name: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Callable[[Path, Header], None]:
    """Other values in a small array, with a manifest that matches them."""

    def replace(folder: Path, _: Header) -> None:
        target, manifest = folder / "one.zarr", folder / MANIFEST
        values = change(read_flat(target, name))
        shutil.rmtree(target / name)
        array = zarr.open_group(target, mode="a").create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape,
            config={"write_empty_chunks": True},
        )
        array[:] = values
        content = json.loads(manifest.read_text())
        for listed, entry in content["files"].items():
            if listed.startswith(f"{name}/"):
                path = target / listed
                entry.update(bytes=path.stat().st_size, sha256=files.sha256_file(path))
        manifest.write_text(json.dumps(content))

    return replace


def first_is(value: float) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    return lambda values: np.concatenate([np.full_like(values[:1], value), values[1:]])


KINDS = {
    "shard missing": Kind(at(SHARD, Path.unlink), "the file is missing"),
    "shard empty": Kind(at(SHARD, empty), "it has 0 bytes"),
    "shard truncated by one byte": Kind(at(SHARD, truncate), "bytes, its manifest says"),
    # 35,000 bytes lie in the second chunk of either mode or, in fp16, in the first.
    "one bit flipped": Kind(
        at(SHARD, lambda path: overwrite(path, 35_001, flip, 1)), "chunk [01] has checksum"
    ),
    "page zeroed": Kind(
        at(SHARD, lambda path: overwrite(path, 4096, zero, 4096)), "chunk 0 has checksum"
    ),
    "manifest missing": Kind(at(MANIFEST, Path.unlink), "is missing", MANIFEST),
    "manifest of another run": Kind(
        manifest_of_another_run, "has checksum|its SHA-256|bytes, its manifest", "one.zarr"
    ),
    "NaN rows": Kind(rows_that_are_not_finite(np.nan), "holds NaN", "one.zarr"),
    "rows of infinity": Kind(rows_that_are_not_finite(np.inf), "holds NaN", "one.zarr"),
    "rows of minus infinity": Kind(rows_that_are_not_finite(-np.inf), "holds NaN", "one.zarr"),
    "massive flags of too few rows": Kind(
        small_array("massive", lambda flags: flags[:-1]),
        r"\(69999,\) values for 70000 rows",
        "one.zarr/massive",
    ),
    "massive flags of too many rows": Kind(
        small_array("massive", lambda flags: np.append(flags, flags[0])),
        "for 70000 rows",
        "one.zarr/massive",
    ),
    "shard of another model": Kind(shard_of_another_model, "chunk 0 has checksum"),
    "store of another model": Kind(
        store_of_another_model, "comes from another run: its", "two.zarr", "two"
    ),
    "row range held twice": Kind(
        lambda folder, header: job(folder, header, "two", start=60_000),
        "both hold row 60000",
        "two.zarr",
        "two",
    ),
    "bit flipped in the index": Kind(
        at(SHARD, lambda path: overwrite(path, -200, flip, 1)), "checksum of its index"
    ),
    "page zeroed at the end": Kind(
        at(SHARD, lambda path: overwrite(path, -4096, zero, 4096)), "checksum of its index"
    ),
    "store missing": Kind(at("one.zarr", shutil.rmtree), "the file is missing", "one.zarr"),
    "manifest empty": Kind(at(MANIFEST, empty), "is not valid JSON", MANIFEST),
    "manifest truncated": Kind(
        at(MANIFEST, lambda path: os.truncate(path, 200)), "is not valid JSON", MANIFEST
    ),
    "manifest without files": Kind(
        edited(lambda content: content.pop("files")), "files missing", MANIFEST
    ),
    "manifest that omits a shard": Kind(
        edited(lambda content: content["files"].pop("resid_post/c/1/0")),
        "does not list resid_post/c/1/0",
        MANIFEST,
    ),
    "manifest of another format": Kind(
        edited(lambda content: content.update(schema="x")), "schema is x", MANIFEST
    ),
    "massive flags changed": Kind(
        at(
            "one.zarr/massive/c/0",
            lambda path: overwrite(path, 30, lambda old: bytes([1 - old[0]]), 1),
        ),
        "its SHA-256",
        "one.zarr/massive/c/0",
    ),
    "metadata changed": Kind(
        at("one.zarr/zarr.json", lambda path: overwrite(path, 5, flip, 1)),
        "its SHA-256",
        "one.zarr/zarr.json",
    ),
}
# Damage that only an int8s store can have.
SCALES = "one.zarr/row_scale/c/0"
KINDS_OF_INT8S = {
    "scales missing": Kind(at(SCALES, Path.unlink), "the file is missing", SCALES),
    "scales of NaN": Kind(
        small_array("row_scale", first_is(np.nan)), "it holds NaN or inf", "one.zarr/row_scale"
    ),
    "means of infinity": Kind(
        small_array("mean", first_is(np.inf)), "it holds NaN or inf", "one.zarr/mean"
    ),
    "scales changed": Kind(
        at(SCALES, lambda path: overwrite(path, 400, flip, 1)), "its SHA-256", SCALES
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[Storage, Path]:
    """An undamaged layer in each storage mode."""
    modes: list[Storage] = ["fp16", "int8s"]
    folders = {storage: tmp_path_factory.mktemp(storage) for storage in modes}
    for storage, folder in folders.items():
        for name in ROWS:
            job(folder, HEADER._replace(storage=storage), name)
    return folders


def opened(folder: Path) -> ActivationStore:
    return ActivationStore.open(
        [folder / f"{name}.zarr" for name in ROWS], [folder / f"{name}.json" for name in ROWS]
    )


def silent_reads(folder: Path, truth: npt.NDArray[np.float16]) -> int:
    """Number of chunks that are read without an error and differ from what was written."""
    try:
        store = opened(folder)
    except UserError:
        return 0
    wrong = 0
    for number in range(len(store.chunk_bounds) - 1):
        try:
            found = store.chunk(number)
        except UserError:
            continue
        start, stop = store.chunk_bounds[number : number + 2]
        wrong += not np.array_equal(found, truth[start:stop])
    return wrong


def bytes_of(folder: Path, name: str) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file of one store and its manifest."""
    paths = [folder / f"{name}.json", *(folder / f"{name}.zarr").rglob("*")]
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.is_file()
    }


@pytest.mark.parametrize(
    ("storage", "name"),
    [(storage, name) for storage in ("fp16", "int8s") for name in KINDS]
    + [("int8s", name) for name in KINDS_OF_INT8S],
)
def test_damage_is_never_read_is_reported_and_is_fixed_by_the_job_of_one_store(
    storage: Storage, name: str, sound: dict[Storage, Path], tmp_path: Path
) -> None:
    kind, header = {**KINDS, **KINDS_OF_INT8S}[name], HEADER._replace(storage=storage)
    truth = opened(sound[storage]).read()
    folder = Path(shutil.copytree(sound[storage], tmp_path / "layer"))
    kind.do(folder, header)

    with pytest.raises(UserError, match=kind.said) as caught:
        opened(folder).read()
    assert str(folder / kind.named) in str(caught.value)
    assert any(
        words in str(caught.value)
        for words in ("run again", "run the same command again", "then: snakemake")
    )
    assert silent_reads(folder, truth) == 0
    stores, manifests = (
        [folder / f"{each}.{ending}" for each in ROWS] for ending in ("zarr", "json")
    )
    problems = verification.check(
        verification.Group("layer", stores, manifests, whole=False)
    ).problems
    assert any(str(folder / kind.rewritten) in problem for problem in problems), problems

    (other,) = set(ROWS) - {kind.rewritten}
    before = bytes_of(folder, other)
    job(folder, header, kind.rewritten)
    opened(folder).verify()
    np.testing.assert_array_equal(opened(folder).read(), truth)
    assert bytes_of(folder, other) == before


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_two_writers_at_once_are_refused_and_the_first_one_s_store_is_sound(
    storage: Storage, tmp_path: Path
) -> None:
    header, values = HEADER._replace(storage=storage), make_rows(9_000)
    store, manifest = tmp_path / "one.zarr", tmp_path / "one.json"
    with StoreWriter(store, manifest, header, rows=9_000, d_model=WIDTH) as first:
        first.append(to_block(values[:5_000]))
        with pytest.raises(UserError, match=r"one\.zarr\.partial is in use by process"):
            write(tmp_path, values + 1, header, name="one")
        first.append(to_block(values[5_000:]))
    write(tmp_path / "alone", values, header, name="one", step=5_000)
    assert manifest.read_bytes() == (tmp_path / "alone/one.json").read_bytes()
    ActivationStore.open([store], [manifest]).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "one.json", "one.zarr"]
    assert not (store / "lock").exists()
