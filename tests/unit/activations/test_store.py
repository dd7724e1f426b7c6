"""The store: what is written comes back, other tools can read it, and no damage goes unseen."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from ghosttrack import files
from ghosttrack.activations import int8s, shards, store
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError

WIDTH = 8
CONTEXT = 10
HEADER = Header("tiny", "weights", 3, "resid_post", CONTEXT, "tokens")


def make_rows(rows: int, seed: int = 0, width: int = WIDTH) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def write(
    folder: Path, values: npt.NDArray[np.float32], header: Header = HEADER, start: int = 0, total: int | None = None,
    name: str = "a", step: int = 1000,
) -> tuple[Path, Path]:  # fmt: skip
    target, manifest = folder / f"{name}.zarr", folder / f"{name}.json"
    writer = StoreWriter(
        target, manifest, header, rows=len(values), d_model=values.shape[1], row_start=start, total_rows=total
    )
    with writer:
        for at in range(0, len(values), step):
            writer.append(to_block(values[at : at + step]))
    return target, manifest


def open_one(target: Path, manifest: Path) -> ActivationStore:
    return ActivationStore.open([target], [manifest])


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
        tmp_path / "zarr", shape=values.shape, dtype="float16", chunks=(4096, WIDTH), shards=(65_536, WIDTH),
        compressors=[Crc32cCodec()], filters=None, fill_value=float("nan"), config={"write_empty_chunks": True},
    )  # fmt: skip
    array[:] = values.astype(np.float16)
    for shard in ("c/0/0", "c/1/0"):
        assert (target / "resid_post" / shard).read_bytes() == (tmp_path / "zarr" / shard).read_bytes()


def test_xarray_opens_a_store_with_named_dimensions(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    values = make_rows(5_000)
    target, _ = write(tmp_path, values)
    with xarray.open_zarr(target, consolidated=False) as dataset:
        assert dataset["resid_post"].dims == ("row", "channel")
        assert dataset["massive"].dims == ("row",)
        assert dataset.attrs["layer"] == 3
        np.testing.assert_array_equal(dataset["resid_post"].values, values.astype(np.float16))


def test_values_beyond_half_precision_are_clipped_and_counted(tmp_path: Path) -> None:
    values = make_rows(100)
    values[3, 2], values[5, 1] = 1e6, -7e4
    target, manifest = write(tmp_path, values)
    assert json.loads(manifest.read_text())["clipped"] == 2
    found = open_one(target, manifest).read()
    assert (found[3, 2], found[5, 1]) == (65504, -65504)


def test_massive_rows_and_first_positions_are_excluded(tmp_path: Path) -> None:
    values = make_rows(200)
    values[::CONTEXT] *= 1000  # position 0: huge, and not allowed to move the median
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


def test_the_same_rows_give_the_same_bytes_whatever_the_blocks(tmp_path: Path) -> None:
    values = make_rows(9_000)
    one, other = write(tmp_path / "x", values, step=9_000), write(tmp_path / "y", values, step=77)
    assert one[1].read_bytes() == other[1].read_bytes()
    assert open_one(*one).fingerprint() == open_one(*other).fingerprint()
    different = write(tmp_path / "z", values + 1)
    assert open_one(*different).fingerprint() != open_one(*one).fingerprint()


def write_half(folder: Path, error: Exception | None = None) -> None:
    with StoreWriter(folder / "a.zarr", folder / "a.json", HEADER, rows=100, d_model=WIDTH) as writer:
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
    with pytest.raises(ValueError, match="50 rows given, 100 announced"):
        write_half(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused_on_writing(tmp_path: Path, value: float) -> None:
    values = make_rows(100)
    values[42, 0] = value
    with pytest.raises(UserError, match="resid_post of layer 3: row 42 holds NaN or infinity"):
        write(tmp_path, values)


def test_a_second_writer_of_a_store_is_refused_and_the_first_finishes(tmp_path: Path) -> None:
    values = make_rows(100)
    with StoreWriter(tmp_path / "a.zarr", tmp_path / "a.json", HEADER, rows=100, d_model=WIDTH) as writer:
        with pytest.raises(UserError, match=r"a\.zarr\.partial is in use"):
            write(tmp_path, values)
        writer.append(to_block(values))
    np.testing.assert_array_equal(open_one(tmp_path / "a.zarr", tmp_path / "a.json").read(), values.astype(np.float16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.zarr"]
    assert not (tmp_path / "a.zarr" / "lock").exists()


def test_a_killed_writer_leaves_nothing_that_counts_and_the_next_one_sweeps_it(tmp_path: Path) -> None:
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
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.partial"]
    values = make_rows(9_000)
    np.testing.assert_array_equal(open_one(*write(tmp_path, values)).read(), values.astype(np.float16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.zarr"]


# ---- the damage matrix: two stores of 70,000 and 20,000 rows, one thing wrong, every read refused
Damage = Callable[[Path], None]


def overwrite(path: Path, at: int, change: Callable[[bytes], bytes], size: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        old = stream.read(size)
        stream.seek(-len(old), os.SEEK_CUR)
        stream.write(change(old))


def flip(old: bytes) -> bytes:
    return bytes([old[0] ^ 16]) + old[1:]


def zero(old: bytes) -> bytes:
    return bytes(len(old))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SHARD = "one.zarr/resid_post/c/1/0"
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "shard missing": (SHARD, Path.unlink, "the file is missing"),
    "shard empty": (SHARD, empty, "it has 0 bytes"),
    "shard truncated by a byte": (SHARD, truncate, "bytes, its manifest says"),
    "bit flipped in the data": (SHARD, lambda path: overwrite(path, 70_001, flip, 1), "chunk 1 has checksum"),
    "bit flipped in the index": (SHARD, lambda path: overwrite(path, -200, flip, 1), "checksum of its index"),
    "page zeroed": (SHARD, lambda path: overwrite(path, 4096, zero, 4096), "chunk 0 has checksum"),
    "page zeroed at the end": (SHARD, lambda path: overwrite(path, -4096, zero, 4096), "checksum of its index"),
    "store missing": ("one.zarr", shutil.rmtree, "the file is missing"),
    "manifest missing": ("one.json", Path.unlink, "is missing"),
    "manifest empty": ("one.json", empty, "is not valid JSON"),
    "manifest truncated": ("one.json", lambda path: os.truncate(path, 200), "is not valid JSON"),
    "manifest without files": ("one.json", lambda path: edit(path, lambda content: content.pop("files")), "files missing"),
    "manifest that omits a shard": (
        "one.json", lambda path: edit(path, lambda content: content["files"].pop("resid_post/c/1/0")), "does not list resid_post/c/1/0",
    ),
    "manifest of another format": ("one.json", lambda path: edit(path, lambda content: content.update(schema="x")), "schema is x"),
    "massive flags changed": (
        "one.zarr/massive/c/0", lambda path: overwrite(path, 30, lambda old: bytes([1 - old[0]]), 1), "its SHA-256",
    ),
    "metadata changed": ("one.zarr/zarr.json", lambda path: overwrite(path, 5, flip, 1), "its SHA-256"),
}  # fmt: skip


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_pair(folder: Path, header: Header) -> Path:
    write(folder, make_rows(70_000), header, total=90_000, name="one", step=70_000)
    write(folder, make_rows(20_000, seed=1), header, start=70_000, total=90_000, name="two", step=20_000)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("sound"), HEADER)


@pytest.fixture
def pair(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pair"))


@pytest.fixture(scope="module")
def sound_int8s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("int8s"), HEADER._replace(storage="int8s"))


def open_pair(folder: Path, names: tuple[str, ...] = ("one", "two")) -> ActivationStore:
    return ActivationStore.open(
        [folder / f"{name}.zarr" for name in names], [folder / f"{name}.json" for name in names]
    )


def read_everything(folder: Path, names: tuple[str, ...] = ("one", "two")) -> None:
    open_pair(folder, names).read()


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_detected_named_and_repaired_by_writing_that_store_again(name: str, pair: Path) -> None:
    place, damage, message = DAMAGES[name]
    damage(pair / place)
    with pytest.raises(UserError, match=message) as caught:
        read_everything(pair)
    assert str(pair / "one") in str(caught.value)
    assert "run again" in str(caught.value) or "then: snakemake" in str(caught.value)
    write(pair, make_rows(70_000), total=90_000, name="one", step=70_000)
    open_pair(pair).verify()


@pytest.mark.parametrize("name", [*DAMAGES, "scales missing", "scales changed"])
def test_the_same_damage_to_an_int8s_store_is_detected(name: str, sound_int8s: Path, tmp_path: Path) -> None:
    scales = "one.zarr/row_scale/c/0"
    damages = {
        **DAMAGES,
        "manifest without files": ("one.json", lambda path: edit(path, lambda content: content.pop("files")), "files missing"),
        "bit flipped in the data": (SHARD, lambda path: overwrite(path, 35_001, flip, 1), "chunk 1 has checksum"),
        "scales missing": (scales, Path.unlink, "the file is missing"),
        "scales changed": (scales, lambda path: overwrite(path, 400, flip, 1), "its SHA-256"),
    }  # fmt: skip
    folder = Path(shutil.copytree(sound_int8s, tmp_path / "pair"))
    place, damage, message = damages[name]
    damage(folder / place)
    with pytest.raises(UserError, match=message):
        read_everything(folder)


def test_a_damaged_chunk_does_not_stop_the_reading_of_others(pair: Path) -> None:
    overwrite(pair / SHARD, 4096, zero, 4096)
    found = open_pair(pair)
    assert found.read(0, 65_536).shape == (65_536, WIDTH)
    for _ in range(2):  # a refused chunk stays refused
        with pytest.raises(UserError, match="rows from 65536 on cannot be trusted"):
            found.read(65_000, 66_000)


def test_the_manifest_of_another_run_is_refused(pair: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", make_rows(70_000, seed=9), total=90_000, name="one", step=70_000)
    shutil.copy(other[1], pair / "one.json")
    with pytest.raises(UserError, match=r"one\.zarr.*chunk 0 has checksum"):
        read_everything(pair)
    foreign = write(
        tmp_path / "foreign", make_rows(70_000), HEADER._replace(tokens_sha256="x"), total=90_000, name="one"
    )
    shutil.copy(foreign[1], pair / "one.json")
    with pytest.raises(UserError, match=r"comes from another run: its tokens_sha256 is tokens.* has x"):
        read_everything(pair)
    whole, elsewhere = (
        write(tmp_path / "whole", make_rows(50)),
        write(tmp_path / "b", make_rows(50), HEADER._replace(layer=7)),
    )
    with pytest.raises(UserError, match=r"a\.zarr.zarr\.json: its SHA-256"):
        open_one(whole[0], elsewhere[1])


def test_nan_rows_are_refused_even_with_sound_checksums(pair: Path) -> None:
    block = to_block(make_rows(70_000))
    block.values[69_999] = np.nan  # behind the writer's back, which looks at the norms
    paths = pair / "one.zarr", pair / "one.json"
    with StoreWriter(*paths, HEADER, rows=70_000, d_model=WIDTH, total_rows=90_000) as writer:
        writer.append(block)
    with pytest.raises(UserError, match=r"one\.zarr.resid_post.c.1.0: .*holds NaN"):
        read_everything(pair)


@pytest.mark.parametrize(
    ("field", "value"), [("model", "x"), ("weights_sha256", "x"), ("layer", 4), ("tokens_sha256", "x")]
)
def test_a_store_of_another_model_layer_or_corpus_is_refused(pair: Path, field: str, value: Any) -> None:
    header = HEADER._replace(**{field: value})
    write(pair, make_rows(20_000), header, start=70_000, total=90_000, name="two", step=20_000)
    with pytest.raises(UserError, match=rf"two\.zarr comes from another run: its {field} is"):
        read_everything(pair)
    with pytest.raises(UserError, match=rf"its {field} is {value}, this job expects"):
        ActivationStore.open([pair / "two.zarr"], [pair / "two.json"], {field: getattr(HEADER, field)})


def test_a_row_range_held_twice_is_refused(pair: Path) -> None:
    write(pair, make_rows(20_000), start=60_000, total=90_000, name="two", step=20_000)
    with pytest.raises(UserError, match=r"one\.zarr and .*two\.zarr both hold row 60000"):
        read_everything(pair)
    with pytest.raises(UserError, match="both hold row 0"):
        read_everything(pair, ("one", "one"))


def test_missing_rows_are_refused(pair: Path) -> None:
    with pytest.raises(UserError, match="ends at row 70000, the layer has 90000"):
        read_everything(pair, ("one",))
    with pytest.raises(UserError, match=r"no store holds rows 0\.\.69999"):
        read_everything(pair, ("two",))
    with pytest.raises(UserError, match="2 activation stores with 1 manifests"):
        ActivationStore.open([pair / "one.zarr", pair / "two.zarr"], [pair / "one.json"])


def test_verifying_finds_a_damaged_padding_that_no_read_would_touch(pair: Path) -> None:
    index = 16 * 16 + 4
    overwrite(pair / SHARD, -(index + 2), flip, 1)  # the stored crc behind the last chunk
    with pytest.raises(UserError, match="its SHA-256 is not the one"):
        open_pair(pair).verify()


def test_layers_with_other_tokens_are_refused(tmp_path: Path) -> None:
    one = open_one(*write(tmp_path, make_rows(50), name="a"))
    two = open_one(*write(tmp_path, make_rows(50), HEADER._replace(layer=4), name="b"))
    require_same_rows([one, two])
    three = open_one(*write(tmp_path, make_rows(50), HEADER._replace(layer=5, tokens_sha256="x"), name="c"))
    with pytest.raises(UserError, match="layers 4 and 5 do not belong together: tokens_sha256"):
        require_same_rows([one, two, three])


def test_a_shard_file_too_short_for_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="too short"):
        shards.MappedShard(tmp_path / "shard", 4096, WIDTH, 16)


def test_a_manifest_holds_no_path_and_vouches_for_every_file(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(5_000))
    content = files.read_json(manifest)
    assert str(tmp_path) not in manifest.read_text()
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert present == set(content["files"])


# ---- storage modes
def heavy_rows(rows: int, width: int = 32) -> npt.NDArray[np.float32]:
    """Like a residual stream: channels of very different size, one off centre, and every 50th row hundreds of times larger."""
    values = make_rows(rows, seed=3, width=width) * np.geomspace(0.05, 20, width, dtype=np.float32)
    values[:, 20] += 9
    values[::50, 3] = 25_000
    return values


def test_int8s_rows_come_back_within_a_thousandth_of_their_variance_and_outliers_exactly(tmp_path: Path) -> None:
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
        target, _ = write(tmp_path / storage, values, HEADER._replace(context=None, storage=storage), step=65_536)
        sizes.append(sum(path.stat().st_size for path in target.rglob("*") if path.is_file()))
    assert sizes[1] < 0.56 * sizes[0]  # 4 bytes a row of scales count for more in 64 channels than in 768


@pytest.mark.parametrize("values", [np.zeros((100, WIDTH)), np.full((100, WIDTH), 3.5), np.eye(1, WIDTH) * 7])
def test_constant_rows_survive_int8s_exactly(values: npt.NDArray[np.float64], tmp_path: Path) -> None:
    rows = values.astype(np.float32)
    found = open_one(*write(tmp_path, rows, HEADER._replace(context=None, storage="int8s")))
    np.testing.assert_array_equal(found.read(), rows.astype(np.float16))


def test_rows_that_were_never_written_are_refused_in_int8s_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(values: Any) -> int8s.Coded:
        coded = encode(values)
        coded.levels[7] = int8s.UNWRITTEN
        return coded

    encode = int8s.encode
    monkeypatch.setattr(int8s, "encode", forgetful)
    with pytest.raises(UserError, match="chunk 0 holds rows that were never written"):
        open_one(*write(tmp_path, make_rows(5_000), HEADER._replace(storage="int8s"))).read()


def test_an_int8s_store_that_loses_its_scales_after_it_was_opened_reads_as_before(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(5_000), HEADER._replace(storage="int8s"))
    before = open_one(target, manifest).read()
    found = open_one(target, manifest)
    (target / "row_scale/c/0").unlink()
    np.testing.assert_array_equal(found.read(), before)


@pytest.mark.parametrize(("storage", "most"), [("fp16", 1e-5), ("int8s", 1e-3)])
def test_the_manifest_says_what_the_storage_mode_costs(storage: store.Storage, most: float, tmp_path: Path) -> None:
    values = heavy_rows(6_000)
    header = HEADER._replace(context=None, storage=storage)
    with StoreWriter(tmp_path / "a.zarr", tmp_path / "a.json", header, rows=6_000, d_model=32) as writer:
        for at in range(0, 6_000, 1_000):
            part = values[at : at + 1_000]
            writer.append(to_block(part)._replace(exact=part))
    error = files.read_json(tmp_path / "a.json")["storage_error"]
    assert 0 < error["relative"] < most
    assert 0 < error["low_variance"] < most
    found = open_one(tmp_path / "a.zarr", tmp_path / "a.json")
    assert found.storage_error == error
    normal = np.arange(4_096) % 50 != 0
    exact, stored = values[:4_096][normal].astype(np.float64), found.read(0, 4_096)[normal].astype(np.float64)
    relative = np.square(stored - exact).sum() / np.square(exact - exact.mean(axis=0)).sum()
    assert error["relative"] == pytest.approx(relative, rel=1e-3)


# ---- resuming
SHARD_ROWS = 65_536


def start_writing(folder: Path, rows: int, code: str = "v1", header: Header = HEADER) -> None:
    """Write `rows` rows of 150,000 and fail."""
    with StoreWriter(folder / "a.zarr", folder / "a.json", header, rows=150_000, d_model=WIDTH, resume=code) as writer:
        writer.append(to_block(make_rows(150_000)[:rows]))
        raise InterruptedError


def finish_writing(folder: Path, code: str = "v1", header: Header = HEADER, at_most: int | None = None) -> int:
    """Write what is missing; gives the rows that were kept."""
    with StoreWriter(folder / "a.zarr", folder / "a.json", header, rows=150_000, d_model=WIDTH, resume=code) as writer:
        kept = writer.kept_rows if at_most is None else at_most
        writer.keep(kept)
        writer.append(to_block(make_rows(150_000)[kept:]))
    return kept


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize(("written", "kept"), [(50_000, 0), (70_000, 65_536), (131_072, 131_072), (140_000, 131_072)])
def test_a_failed_writer_s_finished_shard_files_are_kept_and_the_store_is_the_same(
    storage: store.Storage, written: int, kept: int, tmp_path: Path
) -> None:
    header = HEADER._replace(storage=storage)
    finish_writing(tmp_path / "whole", header=header)
    with pytest.raises(InterruptedError):
        start_writing(tmp_path / "cut", written, header=header)
    assert finish_writing(tmp_path / "cut", header=header) == kept
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


def test_fewer_shard_files_than_were_finished_can_be_kept(tmp_path: Path) -> None:
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
def test_a_damaged_leftover_is_written_again(spoil: Damage, tmp_path: Path) -> None:
    finish_writing(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        start_writing(tmp_path / "cut", 140_000)
    spoil(tmp_path / "cut" / "a.zarr.partial")
    assert finish_writing(tmp_path / "cut") == SHARD_ROWS
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


def test_leftovers_of_other_code_or_other_rows_are_not_gone_on_with(tmp_path: Path) -> None:
    for change in (
        {"code": "v2"},
        {"header": HEADER._replace(tokens_sha256="x")},
        {"header": HEADER._replace(layer=4)},
    ):
        with pytest.raises(InterruptedError):
            start_writing(tmp_path, 140_000)
        assert finish_writing(tmp_path, **change) == 0


def test_finishing_several_stores_before_any_is_published_loses_none_to_a_failure(tmp_path: Path) -> None:
    def finish_and_fail() -> None:
        with StoreWriter(
            tmp_path / "a.zarr", tmp_path / "a.json", HEADER, rows=70_000, d_model=WIDTH, resume="v1"
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
        assert writer.kept_rows == 70_000
    open_one(tmp_path / "a.zarr", tmp_path / "a.json").verify()
