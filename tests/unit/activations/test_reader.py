"""The reader refuses stores that do not fit together; test_damage tests damaged files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import HEADER, WIDTH, flip, make_rows, open_one, overwrite, write, zero

from ghosttrack.activations import shards
from ghosttrack.activations.reader import ActivationStore, finite, require_same_rows
from ghosttrack.activations.store import Header
from ghosttrack.errors import UserError

SHARD = "one.zarr/resid_post/c/1/0"


def write_pair(folder: Path, header: Header) -> Path:
    write(folder, make_rows(70_000), header, total=90_000, name="one", step=70_000)
    write(
        folder,
        make_rows(20_000, seed=1),
        header,
        start=70_000,
        total=90_000,
        name="two",
        step=20_000,
    )
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("sound"), HEADER)


@pytest.fixture
def pair(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pair"))


def open_pair(folder: Path, names: tuple[str, ...] = ("one", "two")) -> ActivationStore:
    return ActivationStore.open(
        [folder / f"{name}.zarr" for name in names], [folder / f"{name}.json" for name in names]
    )


def read_everything(folder: Path, names: tuple[str, ...] = ("one", "two")) -> None:
    open_pair(folder, names).read()


def test_a_damaged_chunk_does_not_prevent_reading_others(pair: Path) -> None:
    overwrite(pair / SHARD, 4096, zero, 4096)
    found = open_pair(pair)
    assert found.read(0, 65_536).shape == (65_536, WIDTH)
    for _ in range(2):  # a refused chunk stays refused
        with pytest.raises(UserError, match="rows from 65536 on are damaged"):
            found.read(65_000, 66_000)


def test_the_manifest_of_another_run_is_refused(pair: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other", make_rows(70_000, seed=9), total=90_000, name="one", step=70_000
    )
    shutil.copy(other[1], pair / "one.json")
    with pytest.raises(UserError, match=r"one\.zarr.*chunk 0 has checksum"):
        read_everything(pair)
    foreign = write(
        tmp_path / "foreign",
        make_rows(70_000),
        HEADER._replace(tokens_sha256="x"),
        total=90_000,
        name="one",
    )
    shutil.copy(foreign[1], pair / "one.json")
    with pytest.raises(
        UserError, match=r"comes from another run: its tokens_sha256 is tokens.* has x"
    ):
        read_everything(pair)
    whole, elsewhere = (
        write(tmp_path / "whole", make_rows(50)),
        write(tmp_path / "b", make_rows(50), HEADER._replace(layer=7)),
    )
    with pytest.raises(UserError, match=r"a\.zarr.zarr\.json: its SHA-256"):
        open_one(whole[0], elsewhere[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "x"), ("weights_sha256", "x"), ("layer", 4), ("tokens_sha256", "x")],
)
def test_a_store_of_another_model_layer_or_corpus_is_refused(
    pair: Path, field: str, value: Any
) -> None:
    header = HEADER._replace(**{field: value})
    write(pair, make_rows(20_000), header, start=70_000, total=90_000, name="two", step=20_000)
    with pytest.raises(UserError, match=rf"two\.zarr comes from another run: its {field} is"):
        read_everything(pair)
    with pytest.raises(UserError, match=rf"its {field} is {value}, this job expects"):
        ActivationStore.open(
            [pair / "two.zarr"], [pair / "two.json"], {field: getattr(HEADER, field)}
        )


def test_a_row_range_in_two_stores_is_refused(pair: Path) -> None:
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


def test_verification_finds_damaged_padding_that_no_read_reaches(pair: Path) -> None:
    index = 16 * 16 + 4
    overwrite(pair / SHARD, -(index + 2), flip, 1)  # the stored checksum after the last chunk
    with pytest.raises(UserError, match="its SHA-256 is not the one"):
        open_pair(pair).verify()


def test_layers_with_other_tokens_are_refused(tmp_path: Path) -> None:
    one = open_one(*write(tmp_path, make_rows(50), name="a"))
    two = open_one(*write(tmp_path, make_rows(50), HEADER._replace(layer=4), name="b"))
    require_same_rows([one, two])
    three = open_one(
        *write(tmp_path, make_rows(50), HEADER._replace(layer=5, tokens_sha256="x"), name="c")
    )
    with pytest.raises(UserError, match="layers 4 and 5 hold different rows: tokens_sha256"):
        require_same_rows([one, two, three])


def test_a_shard_file_too_short_for_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="too short"):
        shards.MappedShard(tmp_path / "shard", 4096, WIDTH, 16)


def test_every_float16_that_is_not_finite_is_recognised() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    among = np.array([0x8000, 0, 0x0000, 0xFBFF, 0x7BFF], dtype=np.uint16).view(np.float16)
    for value, expected in zip(values, np.isfinite(values), strict=True):
        among[1] = value
        assert finite(among) == expected, hex(int(value.view(np.uint16)))
