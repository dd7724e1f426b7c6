"""Random and damaged inputs: a right result or one clear error, never a traceback."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import safetensors.torch
import small_stores
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.cli import status
from ghosttrack.inputs import checkpoint_files, fetching
from ghosttrack.planning import traps
from ghosttrack.planning.configuration import load
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.sae.checkpoints import Checkpoint, Checkpoints
from ghosttrack.sae.model import CFG_NAME, WEIGHTS_NAME, save
from ghosttrack.settings import Settings, section_type
from tests.conftest import ROOT

CONFIG = ROOT / "config"


# ---- manifests and stores
@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_stores.write(tmp_path_factory.mktemp("store"), small_stores.make_rows(40))


def unscaled(target: Path, manifest: Path) -> np.ndarray[Any, Any]:
    """All rows of a store without its scale; a damage is found when it is opened, or when it is read."""
    found = ActivationStore.open([target], [manifest])
    return np.asarray(found.read() / found.scale)


@fuzzing.common
@given(st.data())
def test_a_changed_manifest_gives_the_same_rows_or_one_error(
    store: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    target, manifest = store
    rows = ActivationStore.open([target], [manifest]).read()
    content = data.draw(fuzzing.changed(json.loads(manifest.read_text())))
    other = tmp_path / manifest.name
    other.write_text(json.dumps(content))
    found, refusal = fuzzing.outcome(lambda: unscaled(target, other))
    assert "\n" not in refusal
    assert refusal or np.array_equal(found, rows)


@fuzzing.common
@given(fuzzing.EDITS)
def test_a_damaged_manifest_gives_the_same_rows_or_one_error(
    store: tuple[Path, Path], tmp_path: Path, edits: list[tuple[float, int, bytes]]
) -> None:
    target, manifest = store
    rows = ActivationStore.open([target], [manifest]).read()
    other = tmp_path / manifest.name
    other.write_bytes(fuzzing.edited(manifest.read_bytes(), edits))
    found, refusal = fuzzing.outcome(lambda: unscaled(target, other))
    assert refusal or np.array_equal(found, rows)


# ---- settings and command lines
def keys(section: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every setting as its keys from the top."""
    found: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        inner = section_type(field.annotation)
        found += [(*prefix, name)] if inner is None else keys(inner, (*prefix, name))
    return found


KEYS = keys(Settings)


def nested(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(place):
        value = {key: value}
    return dict(value)


@fuzzing.common
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), fuzzing.VALUES), min_size=1, max_size=3),
    st.sampled_from(["tiny-gpt2", "gpt2-small", "smollm2-135m"]),
)
def test_any_settings_are_taken_or_refused_in_words(
    chosen: list[tuple[tuple[str, ...], Any]], model: str
) -> None:
    config: dict[str, Any] = {"model": model}
    for place, value in chosen:
        config.update(nested(place, value))
    found, refusal = fuzzing.outcome(lambda: load(config, CONFIG))
    assert refusal or all(isinstance(each, Settings) for each in found.values())
    assert "Traceback" not in refusal
    if found:  # what was taken means the same when it is written down and read again
        for each in found.values():
            assert Settings.model_validate(each.model_dump()) == each


WORDS = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from([".".join(place) for place in KEYS] + [place[0] for place in KEYS])
        | st.text(max_size=5),
        st.sampled_from(["=", "=", "=", "", "=="]),
        st.sampled_from(["{k: 32}", "[1, 2", "{a: {b: c}}", "32", "all", "1e400", "!!python/x y"])
        | st.text(max_size=8),
    ),
    max_size=3,
)


@fuzzing.common
@given(WORDS)
def test_any_words_of_a_command_line_are_taken_or_refused_in_words(
    tmp_path: Path, words: list[str]
) -> None:
    empty = tmp_path / "config.yaml"
    empty.write_text("{}", encoding="utf-8")
    assert isinstance(traps.refused_arguments(["--config", *words]), str)
    assert "\n" not in traps.refused_settings([word.replace("\n", " ") for word in words])
    found, refusal = fuzzing.outcome(
        lambda: load({"model": "tiny-gpt2", **status.read_config(empty, words)}, CONFIG)
    )
    assert refusal or all(isinstance(each, Settings) for each in found.values())


# ---- checkpoints of training
def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(5)}


@fuzzing.common
@given(st.lists(st.tuples(st.sampled_from([3, 5]), fuzzing.EDITS), min_size=1, max_size=3))
def test_a_damaged_checkpoint_is_whole_or_not_used(
    tmp_path: Path, damage: list[tuple[int, list[tuple[float, int, bytes]]]]
) -> None:
    known = Checkpoints(tmp_path, "run")
    for step in (3, 5):
        known.save(Checkpoint(step, tensors(step)))
    for step, edits in damage:
        path = tmp_path / f"step_{step:09d}.checkpoint"
        path.write_bytes(fuzzing.edited(path.read_bytes(), edits))
    found = Checkpoints(tmp_path, "run").latest()
    if found is not None:
        assert found.step in (3, 5)
        assert all(
            torch.equal(found.tensors[name], each) for name, each in tensors(found.step).items()
        )


# ---- safetensors and GGUF
def header_of(content: bytes) -> tuple[Any, bytes]:
    """Header and data of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sae") / layer_name(0)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    made = sae.Sae(random(3, 5), random(5), random(5, 3), random(3), random(5).abs())
    save(made, folder / WEIGHTS_NAME, folder / CFG_NAME, hook_name="h", model_name="m")
    return folder


def same_or_refused(folder: Path, weights: Path, cfg: Path) -> None:
    original = sae.load(folder)
    found, refusal = fuzzing.outcome(lambda: sae.load_files(weights, cfg))
    if not refusal:
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
            assert torch.equal(getattr(found, name), getattr(original, name)), name


# Byte offsets may exchange two tensors of one size: only the records of a run notice.
UNSEEN = ("data_offsets",)


DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U32", "I16", "U8", "I8", "BOOL", "F8_E4M3"]


@fuzzing.common
@given(st.data(), st.sampled_from([*DTYPES, ""]))
def test_a_changed_header_of_an_sae_gives_the_same_sae_or_one_error(
    sae_folder: Path, tmp_path: Path, data: st.DataObject, dtype: str
) -> None:
    header, body = header_of((sae_folder / WEIGHTS_NAME).read_bytes())
    if dtype:
        new = {**header, "W_dec": {**header["W_dec"], "dtype": dtype}}
    else:
        new = data.draw(fuzzing.changed(header))
    weights = tmp_path / WEIGHTS_NAME
    weights.write_bytes(with_header(new, body))
    if not exchanged(header, new):
        same_or_refused(sae_folder, weights, sae_folder / CFG_NAME)


def exchanged(one: Mapping[str, Any], other: Any) -> bool:
    """Whether a tensor has the bytes of another one."""
    return isinstance(other, dict) and any(
        isinstance(entry, dict)
        and isinstance(one.get(name), dict)
        and any(entry.get(key) != one[name].get(key) for key in UNSEEN)
        for name, entry in other.items()
    )


@fuzzing.common
@given(fuzzing.EDITS)
def test_a_damaged_sae_configuration_is_read_or_refused(
    sae_folder: Path, tmp_path: Path, edits: list[tuple[float, int, bytes]]
) -> None:
    cfg = tmp_path / CFG_NAME
    cfg.write_bytes(fuzzing.edited((sae_folder / CFG_NAME).read_bytes(), edits))
    fuzzing.outcome(lambda: sae.load_files(sae_folder / WEIGHTS_NAME, cfg))


@fuzzing.common
@given(st.data())
def test_a_changed_sae_configuration_is_read_or_refused(
    sae_folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    cfg = tmp_path / CFG_NAME
    content = json.loads((sae_folder / CFG_NAME).read_text())
    cfg.write_text(json.dumps(data.draw(fuzzing.changed(content))))
    found, refusal = fuzzing.outcome(lambda: sae.load_files(sae_folder / WEIGHTS_NAME, cfg))
    assert refusal or found.W_enc.shape == (3, 5)


@fuzzing.common
@given(st.data(), fuzzing.EDITS, st.booleans())
def test_a_model_directory_is_complete_or_refused_by_file(
    tmp_path: Path, data: st.DataObject, edits: list[tuple[float, int, bytes]], whole: bool
) -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 16}
    content = safetensors.torch.save({"wte.weight": torch.ones(16, 8), "ln_f.bias": torch.ones(8)})
    header, body = header_of(content)
    if whole:
        content = with_header(data.draw(fuzzing.changed(header)), body)
    else:
        content = fuzzing.edited(content, edits)
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(data.draw(fuzzing.changed(config))))
    _, refusal = fuzzing.outcome(lambda: checkpoint_files.require_complete(tmp_path, "mine", None))
    assert not refusal or "mine" in refusal


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.ones((3, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@fuzzing.common
@given(fuzzing.EDITS)
def test_a_damaged_gguf_header_is_read_or_refused_by_file(
    tmp_path: Path, gguf_bytes: bytes, edits: list[tuple[float, int, bytes]]
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(fuzzing.edited(gguf_bytes, edits))
    _, refusal = fuzzing.outcome(lambda: fetching._load_tokenizer(tmp_path, "mine", "a.gguf"))
    assert not refusal or "mine" in refusal
