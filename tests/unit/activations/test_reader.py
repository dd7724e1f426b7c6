"""No damage goes unseen: two stores of 70,000 and 20,000 rows, one thing wrong, every read refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import HEADER, WIDTH, Damage, empty, flip, make_rows, open_one, overwrite, truncate, write, zero

from ghosttrack.activations import shards
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError

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
