"""The store: written rows are read back, also by other tools."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from small_stores import CONTEXT, HEADER, WIDTH, make_rows, open_one, write
from zarr.codecs import Crc32cCodec

from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.precision import storage_error
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Storage, smallest_float, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime import files


def test_rows_come_back_rounded_to_half_precision(tmp_path: Path) -> None:
    values = make_rows(9_000)
    found = open_one(*write(tmp_path, values))
    assert (found.rows, found.d_model, found.layer, found.site, found.context) == (
        9_000,
        WIDTH,
        3,
        "resid_post",
        CONTEXT,
    )
    np.testing.assert_array_equal(found.read(), values.astype(np.float16))
    np.testing.assert_array_equal(found.read(4_090, 8_200), values[4_090:8_200].astype(np.float16))
    assert found.read(5, 5).shape == (0, WIDTH)
    found.verify()


def test_reading_the_mapped_file_equals_reading_through_zarr(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(70_000))
    through_zarr = zarr.open_group(target, mode="r")["resid_post"][:]
    np.testing.assert_array_equal(open_one(target, manifest).read(), through_zarr)


def test_shard_files_are_byte_for_byte_what_zarr_writes(tmp_path: Path) -> None:
    values = make_rows(70_000)
    target, _ = write(tmp_path, values)
    array = zarr.create_array(
        tmp_path / "zarr",
        shape=values.shape,
        dtype="float16",
        chunks=(4096, WIDTH),
        shards=(65_536, WIDTH),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
    )
    array[:] = values.astype(np.float16)
    for shard in ("c/0/0", "c/1/0"):
        assert (target / "resid_post" / shard).read_bytes() == (
            tmp_path / "zarr" / shard
        ).read_bytes()


def test_xarray_opens_a_store_with_named_dimensions(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    values = make_rows(5_000)
    target, _ = write(tmp_path, values)
    with xarray.open_zarr(target, consolidated=False) as dataset:
        assert dataset["resid_post"].dims == ("row", "channel")
        assert dataset["massive"].dims == ("row",)
        assert dataset.attrs["layer"] == 3
        np.testing.assert_array_equal(dataset["resid_post"].values, values.astype(np.float16))


def test_values_beyond_half_precision_of_excluded_rows_are_clipped_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = make_rows(100)
    values[3, 2], values[5, 1] = 1e6, -7e4  # massive
    values[50, :2] = 8e4  # position 0
    target, manifest = write(tmp_path, values, step=7)
    assert json.loads(manifest.read_text())["clipped"] == 4
    assert (
        "4 values in 3 massive or first rows were clipped to 65,504, the largest is 1,000,000"
        in caplog.text
    )
    found = open_one(target, manifest)
    assert (found.read()[3, 2], found.read()[5, 1]) == (65504, -65504)
    assert found.excluded[[3, 5, 50]].all()


def test_massive_rows_and_first_positions_are_excluded(tmp_path: Path) -> None:
    values = make_rows(200)
    values[::CONTEXT] *= 1000  # position 0 is large and does not count for the median
    values[17] *= 500
    found = open_one(*write(tmp_path, values))
    massive = np.zeros(200, dtype=bool)
    massive[::CONTEXT] = massive[17] = True
    np.testing.assert_array_equal(found.massive, massive)
    np.testing.assert_array_equal(
        np.flatnonzero(~found.excluded), [row for row in range(200) if row % 10 and row != 17]
    )


def test_rows_of_examples_have_no_first_position(tmp_path: Path) -> None:
    found = open_one(*write(tmp_path, make_rows(50), HEADER._replace(context=None)))
    assert not found.excluded.any()


def test_several_stores_read_as_one_in_row_order(tmp_path: Path) -> None:
    values = make_rows(9_000)
    first = write(tmp_path, values[:5_000], total=9_000, name="one")
    second = write(tmp_path, values[5_000:], start=5_000, total=9_000, name="two")
    found = ActivationStore.open([second[0], first[0]], [second[1], first[1]])
    np.testing.assert_array_equal(found.read(4_000, 6_000), values[4_000:6_000].astype(np.float16))
    assert found.chunk_bounds.tolist() == [0, 4096, 5000, 9000]
    assert found.excluded.sum() == 900


def test_the_storage_error_is_measured_on_the_first_rows(tmp_path: Path) -> None:
    values, made = make_rows(3 * 500), []
    header = HEADER._replace(storage="int8s")
    for number, size in enumerate([1.0, 30.0, 900.0]):
        target, manifest = tmp_path / f"{number}.zarr", tmp_path / f"{number}.json"
        part = values[number * 500 : (number + 1) * 500] ** 3 * size
        with StoreWriter(
            target,
            manifest,
            header,
            rows=500,
            d_model=WIDTH,
            row_start=number * 500,
            total_rows=1500,
        ) as out:
            out.append(to_block(part, exact=True))
        made.append((target, manifest))
    errors = [files.read_json(manifest)["storage_error"] for _, manifest in made]
    assert errors[0] not in errors[1:]
    stores, manifests = ([pair[place] for pair in made[::-1]] for place in (0, 1))
    found = ActivationStore.open(stores, manifests)
    assert found.storage_error == errors[0]


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_the_storage_error_is_measured_on_included_rows(
    size: float, storage: Storage, tmp_path: Path
) -> None:
    exact = make_rows(5_000) * size
    massive = [16, 401]
    exact[massive] *= 1_000
    target, manifest = tmp_path / "a.zarr", tmp_path / "a.json"
    header = HEADER._replace(storage=storage)
    with StoreWriter(
        target, manifest, header, rows=5_000, d_model=WIDTH, row_start=3, total_rows=5_003
    ) as out:
        for at in range(0, 5_000, 1_000):
            out.append(to_block(exact[at : at + 1_000], exact=True))
    rows = np.arange(CHUNK_ROWS)  # of the first chunk alone
    normal = rows[((rows + 3) % CONTEXT != 0) & ~np.isin(rows, massive)]
    # Rows from 3 on, as in the store: the reader takes only a whole layer.
    write(tmp_path, exact[:3], header, total=5_003, name="b")
    stored = ActivationStore.open(
        [tmp_path / "b.zarr", target], [tmp_path / "b.json", manifest]
    ).read(3)
    expected = storage_error(exact[normal], stored[normal])
    assert expected is not None
    assert files.read_json(manifest)["storage_error"] == pytest.approx(expected._asdict(), rel=1e-6)


def test_the_same_rows_give_the_same_bytes_in_blocks_of_any_size(tmp_path: Path) -> None:
    values = make_rows(9_000)
    one, other = write(tmp_path / "x", values, step=9_000), write(tmp_path / "y", values, step=77)
    assert one[1].read_bytes() == other[1].read_bytes()
    assert open_one(*one).fingerprint() == open_one(*other).fingerprint()
    different = write(tmp_path / "z", values + 1)
    assert open_one(*different).fingerprint() != open_one(*one).fingerprint()


def test_a_manifest_holds_no_path_and_lists_every_file(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(5_000))
    content = files.read_json(manifest)
    assert str(tmp_path) not in manifest.read_text()
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert present == set(content["files"])


def test_values_beyond_half_precision_are_stored_as_float32() -> None:
    small, large = (np.array([1.0, np.nan, -end], dtype=np.float32) for end in (65_504.0, 1e6))
    assert smallest_float(small).dtype == np.float16
    np.testing.assert_array_equal(smallest_float(small), small)
    np.testing.assert_array_equal(smallest_float(large), large)
