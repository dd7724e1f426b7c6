"""Storage mode int8s: its error, its size, and its error in the manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from small_stores import HEADER, WIDTH, make_rows, open_one, write

from ghosttrack.activations import int8s, store
from ghosttrack.activations.store import to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.runtime import files


def heavy_rows(rows: int, width: int = 32) -> npt.NDArray[np.float32]:
    """As a residual stream: unequal channels, one with a large mean, and a massive row in 50."""
    values = make_rows(rows, seed=3, width=width) * np.geomspace(0.05, 20, width, dtype=np.float32)
    values[:, 20] += 9
    values[::50, 3] = 25_000
    return values


def test_int8s_rows_come_back_within_a_thousandth_of_their_variance_and_outliers_exactly(
    tmp_path: Path,
) -> None:
    values = heavy_rows(10_000)
    target, manifest = write(tmp_path, values, HEADER._replace(context=None, storage="int8s"))
    found = open_one(target, manifest)
    found.verify()
    back = found.read().astype(np.float32)
    np.testing.assert_array_equal(back[::50], values[::50].astype(np.float16))
    normal = np.arange(10_000) % 50 != 0
    error = np.square(back - values)[normal].mean(axis=0) / values[normal].var(axis=0)
    assert error.max() < 1e-3  # in the smallest channel too
    np.testing.assert_array_equal(found.read(4_000, 4_200), found.read()[4_000:4_200])
    np.testing.assert_array_equal(found.massive, ~normal)


def test_int8s_takes_half_the_bytes(tmp_path: Path) -> None:
    values = make_rows(65_536, width=64)
    sizes = []
    for storage in ("fp16", "int8s"):
        target, _ = write(
            tmp_path / storage, values, HEADER._replace(context=None, storage=storage), step=65_536
        )
        sizes.append(sum(path.stat().st_size for path in target.rglob("*") if path.is_file()))
    assert (
        sizes[1] < 0.56 * sizes[0]
    )  # 4 bytes a row of scales count for more in 64 channels than in 768


@pytest.mark.parametrize(
    "values", [np.zeros((100, WIDTH)), np.full((100, WIDTH), 3.5), np.eye(1, WIDTH) * 7]
)
def test_constant_rows_survive_int8s_exactly(
    values: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    rows = values.astype(np.float32)
    found = open_one(*write(tmp_path, rows, HEADER._replace(context=None, storage="int8s")))
    np.testing.assert_array_equal(found.read(), rows.astype(np.float16))


def test_rows_that_were_never_written_are_refused_in_int8s_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(values: Any) -> int8s.Coded:
        coded = encode(values)
        coded.levels[7] = int8s.UNWRITTEN
        return coded

    encode = int8s.encode
    monkeypatch.setattr(int8s, "encode", forgetful)
    with pytest.raises(UserError, match="chunk 0 holds rows that were never written"):
        open_one(*write(tmp_path, make_rows(5_000), HEADER._replace(storage="int8s"))).read()


def test_an_int8s_store_that_loses_its_scales_after_it_was_opened_reads_as_before(
    tmp_path: Path,
) -> None:
    target, manifest = write(tmp_path, make_rows(5_000), HEADER._replace(storage="int8s"))
    before = open_one(target, manifest).read()
    found = open_one(target, manifest)
    (target / "row_scale/c/0").unlink()
    np.testing.assert_array_equal(found.read(), before)


@pytest.mark.parametrize(("storage", "most"), [("fp16", 1e-5), ("int8s", 1e-3)])
def test_the_manifest_holds_the_storage_error(
    storage: store.Storage, most: float, tmp_path: Path
) -> None:
    values = heavy_rows(6_000)
    header = HEADER._replace(context=None, storage=storage)
    with StoreWriter(
        tmp_path / "a.zarr", tmp_path / "a.json", header, rows=6_000, d_model=32
    ) as writer:
        for at in range(0, 6_000, 1_000):
            part = values[at : at + 1_000]
            writer.append(to_block(part, exact=True))
    error = files.read_json(tmp_path / "a.json")["storage_error"]
    assert 0 < error["relative"] < most
    assert 0 < error["low_variance"] < most
    found = open_one(tmp_path / "a.zarr", tmp_path / "a.json")
    assert found.storage_error == error
    normal = np.arange(4_096) % 50 != 0
    exact, stored = (
        values[:4_096][normal].astype(np.float64),
        found.read(0, 4_096)[normal].astype(np.float64),
    )
    relative = np.square(stored - exact).sum() / np.square(exact - exact.mean(axis=0)).sum()
    assert error["relative"] == pytest.approx(relative, rel=1e-3)
