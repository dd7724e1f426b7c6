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
from ghosttrack.activations import shards, store
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.activations.store import Header, StoreWriter, to_block
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
        "from ghosttrack.activations.store import Header, StoreWriter, to_block\n"
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


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write(folder, make_rows(70_000), total=90_000, name="one", step=70_000)
    write(folder, make_rows(20_000, seed=1), start=70_000, total=90_000, name="two", step=20_000)
    return folder


@pytest.fixture
def pair(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pair"))


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
    assert "run again" in str(caught.value)
    write(pair, make_rows(70_000), total=90_000, name="one", step=70_000)
    open_pair(pair).verify()


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
