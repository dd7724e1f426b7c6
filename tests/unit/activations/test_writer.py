"""The writer: atomic, locked, and resumed after the last complete shard file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disk_spy import Disk, run_until
from small_stores import (
    CONTEXT,
    HEADER,
    WIDTH,
    Damage,
    empty,
    flip,
    make_rows,
    open_one,
    overwrite,
    truncate,
    write,
)

from ghosttrack.activations import store
from ghosttrack.activations.layout import CHUNK_ROWS, HALF_MAX, SHARD_ROWS
from ghosttrack.activations.store import Header, Storage, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError


def write_half(folder: Path, error: Exception | None = None) -> None:
    with StoreWriter(
        folder / "a.zarr", folder / "a.json", HEADER, rows=100, d_model=WIDTH
    ) as writer:
        writer.append(to_block(make_rows(50)))
        if error is not None:
            raise error


def test_nothing_is_published_when_writing_fails(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(100))
    with pytest.raises(RuntimeError):
        write_half(tmp_path, RuntimeError())
    assert target.exists()
    assert not manifest.exists()
    assert not list(tmp_path.glob("*.partial"))


def test_rows_that_are_missing_at_the_end_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="50 rows appended, 100 expected"):
        write_half(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused_on_writing(
    tmp_path: Path, value: float
) -> None:
    values = make_rows(100)
    values[42, 0] = value
    with pytest.raises(UserError, match="resid_post of layer 3: row 42 holds NaN or infinity"):
        write(tmp_path, values)


def test_a_killed_writer_leaves_no_valid_store_and_the_next_one_deletes_the_rest(
    tmp_path: Path,
) -> None:
    script = (
        "import os, sys, numpy as np; from pathlib import Path\n"
        "from ghosttrack.activations.store import Header, to_block\n"
        "from ghosttrack.activations.writer import StoreWriter\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"with StoreWriter(folder / 'a.zarr', folder / 'a.json', Header(*{tuple(HEADER)!r}), rows=9000, d_model={WIDTH}) as writer:\n"
        f"    writer.append(to_block(np.ones((5000, {WIDTH}), np.float32)))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}
    assert (
        subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode
        == -9
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.partial"]
    values = make_rows(9_000)
    np.testing.assert_array_equal(
        open_one(*write(tmp_path, values)).read(), values.astype(np.float16)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.zarr"]


# ---- resuming
def start_writing(folder: Path, rows: int, code: str = "v1", header: Header = HEADER) -> None:
    """Write `rows` rows of 150,000 and fail."""
    with StoreWriter(
        folder / "a.zarr", folder / "a.json", header, rows=150_000, d_model=WIDTH, resume=code
    ) as writer:
        writer.append(to_block(make_rows(150_000)[:rows]))
        raise InterruptedError


def finish_writing(
    folder: Path, code: str = "v1", header: Header = HEADER, at_most: int | None = None
) -> int:
    """Write the missing rows; returns the number of rows that were reused."""
    with StoreWriter(
        folder / "a.zarr", folder / "a.json", header, rows=150_000, d_model=WIDTH, resume=code
    ) as writer:
        kept = writer.finished_rows if at_most is None else at_most
        writer.resume_after(kept)
        writer.append(to_block(make_rows(150_000)[kept:]))
    return kept


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize(
    ("written", "kept"), [(50_000, 0), (70_000, 65_536), (131_072, 131_072), (140_000, 131_072)]
)
def test_complete_shard_files_of_a_failed_writer_are_reused_and_the_store_is_the_same(
    storage: store.Storage, written: int, kept: int, tmp_path: Path
) -> None:
    header = HEADER._replace(storage=storage)
    finish_writing(tmp_path / "whole", header=header)
    with pytest.raises(InterruptedError):
        start_writing(tmp_path / "cut", written, header=header)
    assert finish_writing(tmp_path / "cut", header=header) == kept
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


def test_fewer_than_all_complete_shard_files_can_be_reused(tmp_path: Path) -> None:
    finish_writing(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        start_writing(tmp_path / "cut", 140_000)
    assert finish_writing(tmp_path / "cut", at_most=SHARD_ROWS) == SHARD_ROWS
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda partial: overwrite(partial / "resid_post/c/1/0", 9_000, flip, 1),
        lambda partial: truncate(partial / "progress/0001.npz"),
        lambda partial: empty(partial / "progress/0001.npz"),
        lambda partial: (partial / "resid_post/c/1/0").unlink(),
        lambda partial: (partial / "progress/0001.npz").unlink(),
    ],
)
def test_a_damaged_shard_file_is_written_again(spoil: Damage, tmp_path: Path) -> None:
    finish_writing(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        start_writing(tmp_path / "cut", 140_000)
    spoil(tmp_path / "cut" / "a.zarr.partial")
    assert finish_writing(tmp_path / "cut") == SHARD_ROWS
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


def test_shard_files_of_other_code_or_other_rows_are_not_reused(tmp_path: Path) -> None:
    for change in (
        {"code": "v2"},
        {"header": HEADER._replace(tokens_sha256="x")},
        {"header": HEADER._replace(layer=4)},
    ):
        with pytest.raises(InterruptedError):
            start_writing(tmp_path, 140_000)
        assert finish_writing(tmp_path, **change) == 0


def test_finishing_several_stores_before_any_is_published_loses_none_to_a_failure(
    tmp_path: Path,
) -> None:
    def finish_and_fail() -> None:
        with StoreWriter(
            tmp_path / "a.zarr",
            tmp_path / "a.json",
            HEADER,
            rows=70_000,
            d_model=WIDTH,
            resume="v1",
        ) as writer:
            writer.append(to_block(make_rows(70_000)))
            writer.finish()
            raise InterruptedError  # as if another layer's store could not be finished

    with pytest.raises(InterruptedError):
        finish_and_fail()
    assert not (tmp_path / "a.json").exists()
    with StoreWriter(
        tmp_path / "a.zarr", tmp_path / "a.json", HEADER, rows=70_000, d_model=WIDTH, resume="v1"
    ) as writer:
        assert writer.finished_rows == 70_000
    open_one(tmp_path / "a.zarr", tmp_path / "a.json").verify()


@pytest.mark.parametrize("rows", [0, -1])
def test_a_store_without_rows_is_refused(rows: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"a store needs at least one row, found {rows}"):
        StoreWriter(tmp_path / "a.zarr", tmp_path / "a.json", HEADER, rows=rows, d_model=WIDTH)
    assert open_one(*write(tmp_path, make_rows(1))).rows == 1


# ---- kills and power losses
def write_store(
    folder: Path, storage: store.Storage, seed: int = 0, resume: str | None = "v1"
) -> None:
    header = HEADER._replace(storage=storage)
    with StoreWriter(
        folder / "a.zarr", folder / "a.json", header, rows=5_000, d_model=WIDTH, resume=resume
    ) as writer:
        writer.resume_after(writer.finished_rows)
        writer.append(to_block(make_rows(5_000, seed)[writer.finished_rows :]))


@pytest.mark.parametrize("resume", ["v1", None])
@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_a_store_is_on_disk_before_its_name_and_its_name_before_its_manifest(
    storage: store.Storage,
    replaced: bool,
    resume: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if replaced:
        write_store(tmp_path, storage, seed=1)
    disk = Disk(monkeypatch)
    write_store(tmp_path, storage, resume=resume)
    assert disk.renamed == [tmp_path / "a.zarr", tmp_path / "a.json"]
    assert not disk.lost


@pytest.mark.parametrize("replaced", [True, False])
def test_a_kill_at_any_file_operation_leaves_no_manifest_beside_another_store(
    replaced: bool, tmp_path: Path
) -> None:
    before, whole = tmp_path / "before", tmp_path / "whole"
    before.mkdir()
    if replaced:
        write_store(before, "fp16", seed=1)
    shutil.copytree(before, whole)
    operations = run_until(None, lambda: write_store(whole, "fp16"))
    assert operations > 10
    for operation in range(operations):
        folder = Path(shutil.copytree(before, tmp_path / str(operation)))
        run_until(operation, lambda folder=folder: write_store(folder, "fp16"))  # type: ignore[misc]
        if (folder / "a.json").exists():
            open_one(folder / "a.zarr", folder / "a.json").verify()
            left = {
                name: content
                for name, content in content_of(folder).items()
                if ".partial/" not in name
            }
            assert left in (content_of(before), content_of(whole)), operation
        write_store(folder, "fp16")
        assert content_of(folder) == content_of(whole), operation


# ---- clipped values
@pytest.mark.parametrize(
    "row", [0, CHUNK_ROWS - 1, CHUNK_ROWS, SHARD_ROWS - 1, SHARD_ROWS, SHARD_ROWS + 4_463]
)
@pytest.mark.parametrize(
    ("value", "clipped"), [(65_505.0, 1), (-66_000.0, 1), (3e5, 1), (65_000.0, 0)]
)
def test_a_value_just_beyond_half_precision_is_counted_in_any_row(
    row: int, value: float, clipped: int, tmp_path: Path
) -> None:
    values = np.zeros((SHARD_ROWS + 4_464, 2), np.float32)
    values[row, 1] = value
    _, manifest = write(tmp_path, values, step=CHUNK_ROWS)
    assert json.loads(manifest.read_text())["clipped"] == clipped


def test_a_long_row_of_values_within_half_precision_has_none_clipped(tmp_path: Path) -> None:
    values = np.full((3, WIDTH), HALF_MAX / 2, np.float32)
    assert np.linalg.norm(values[0]) > HALF_MAX
    assert json.loads(write(tmp_path, values)[1].read_text())["clipped"] == 0


@pytest.mark.parametrize("value", [65_488.0, 65_504.0, -65_504.0])
def test_the_largest_values_of_half_precision_are_not_counted_as_clipped(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.full((30, 2), value, np.float32)
    assert json.loads(write(tmp_path, values)[1].read_text())["clipped"] == 0
    assert not caplog.text


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize("context", [CONTEXT, None])
@pytest.mark.parametrize("rows", [CHUNK_ROWS // 2, SHARD_ROWS + CHUNK_ROWS])
@pytest.mark.parametrize("share", ["one", "all"])
def test_a_value_beyond_half_precision_is_refused_in_an_included_row(
    storage: Storage, context: int | None, rows: int, share: str, tmp_path: Path
) -> None:
    values = np.tile(np.array([9_000.0, 1.0], np.float32), (rows, 1))
    at = rows - 6  # neither massive nor, in contexts of 10, the first of its context
    values[at if share == "one" else slice(None), 0] = 70_000.0
    values[at, 0] = -80_000.0
    header = HEADER._replace(storage=storage, context=context)
    # If every row is too large, the first shard file is enough to refuse the store.
    largest = "80,000" if share == "one" or rows < SHARD_ROWS else "70,000"
    with pytest.raises(
        UserError,
        match=rf"resid_post of layer 3: .*the largest is {largest} in row .*activations\.site",
    ) as caught:
        write(tmp_path, values, header, step=CHUNK_ROWS)
    if share == "one":
        assert f"1 of {rows:,} rows hold" in str(caught.value)
        assert f"in row {at:,}." in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_clipped_rows_are_remembered_by_a_writer_that_resumes(tmp_path: Path) -> None:
    values = np.ones((SHARD_ROWS + 5_000, 2), np.float32)
    values[[3, SHARD_ROWS - 1, SHARD_ROWS + 3]] = 1e5
    place = (tmp_path / "a.zarr", tmp_path / "a.json", HEADER)

    def go_on(error: Exception | None) -> int:
        with StoreWriter(*place, rows=len(values), d_model=2, resume="code") as out:
            kept = out.finished_rows
            out.append(to_block(values[kept:]))  # one block over the end of the shard file
            if error is not None:
                raise error
        return kept

    with pytest.raises(RuntimeError):
        go_on(RuntimeError())
    assert go_on(None) >= SHARD_ROWS
    assert json.loads((tmp_path / "a.json").read_text())["clipped"] == 6
