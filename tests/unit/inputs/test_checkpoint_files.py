"""Damaged, incomplete or unsuitable model directories give one line with file and remedy."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import small_tokenizers
import torch
from safetensors.torch import load_file, save_file
from small_tokenizers import edit

from ghosttrack.errors import UserError
from ghosttrack.inputs import checkpoint_files, fetching, models
from ghosttrack.runtime.files import read_json
from ghosttrack.settings import DimensionSettings, SourceSettings

WEIGHTS = "model.safetensors"
TENSOR = "model.layers.0.mlp.up_proj.weight"
Change = Callable[[Path], Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    small_tokenizers.save("words", tmp_path / "source")
    return tmp_path / "source"


def fetch(source: Path, destination: Path) -> dict[str, Any]:
    return fetching.fetch(
        SourceSettings(kind="directory", id=str(source)),
        destination,
        dimensions=DimensionSettings(n_layers=1, d_model=8),
        seed=0,
    )


def config(**values: Any) -> Change:
    return lambda folder: edit(folder / "config.json", lambda content: content.update(values))


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def only(**values: Any) -> Change:
    return lambda folder: (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def become_a_file(folder: Path) -> None:
    empty(folder)
    folder.rmdir()
    folder.write_bytes(b"GGUF")


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def shards(folder: Path, lost: bool = False, cut_one: bool = False, map_of: Any = None) -> None:
    """Split the weights into two files; remove or truncate one, or write another weight_map."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = (
        {name: file for file, part in parts.items() for name in part} if map_of is None else map_of
    )
    text("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": where}))(folder)
    second = folder / "model-00002-of-00002.safetensors"
    if lost:
        second.unlink()
    if cut_one:
        second.write_bytes(second.read_bytes()[:-10])


def as_pickle(folder: Path, **more: Any) -> None:
    torch.save({**load_file(folder / WEIGHTS), **more}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut_pickle(folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-99])


def slow_tokenizer(folder: Path) -> None:
    remove("tokenizer.json")(folder)
    text("vocab.json", '{"a": 0}')(folder)
    text("merges.txt", "#version: 0.2\n")(folder)
    text("tokenizer_config.json", '{"tokenizer_class": "CTRLTokenizer"}')(folder)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def harmful_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))


def split_gguf(folder: Path) -> None:
    empty(folder)
    for number in (1, 2):
        (folder / f"m-0000{number}-of-00002.gguf").write_bytes(b"GGUF")


def two_gguf(folder: Path) -> None:
    empty(folder)
    for name in ("m-q4.gguf", "m-q8.gguf"):
        (folder / name).write_bytes(b"GGUF")


def damaged_gguf(folder: Path) -> None:
    empty(folder)
    (folder / "m.gguf").write_bytes(b"GGUF")


def truncated_gguf(folder: Path) -> None:
    empty(folder)
    path = folder / "weights.gguf"
    small_models.save_gguf(small_models.make_model("llama"), small_models.make_tokenizer(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def codes(folder: Path, dtype: torch.dtype = torch.int8) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[TENSOR] = weights[TENSOR].to(dtype)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def wrong_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[TENSOR] = weights[TENSOR][:4].clone()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights[TENSOR]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def fp8_config(folder: Path) -> None:
    codes(folder, torch.float8_e4m3fn)
    config(quantization_config={"quant_method": "fbgemm_fp8", "modules_to_not_convert": []})(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
SEQ2SEQ = {"model_type": "t5", "d_model": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 400}
VISION = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 400,
}

REFUSED: dict[str, tuple[Change, str]] = {
    "a file": (become_a_file, r"is a file; expected a directory"),
    "empty directory": (empty, r"is an empty directory"),
    "no config.json": (remove("config.json"), r"has no config\.json"),
    "config.json is not JSON": (
        text("config.json", "{,"),
        r"config\.json is not JSON .*download the file again",
    ),
    "config.json is a list": (text("config.json", "[]"), r"config\.json holds a JSON list"),
    "config.json is binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        r"config\.json is not JSON",
    ),
    "no model_type": (only(hidden_size=8), r"has no model_type"),
    "unknown model_type": (config(model_type="nonesuch"), r"model_type 'nonesuch'.*does not know"),
    "custom code": (
        config(model_type="nonesuch", auto_map={"AutoModelForCausalLM": "m.M"}),
        r"auto_map.* never run",
    ),
    "a value of a wrong type": (
        config(hidden_size="eight"),
        r"config\.json is not valid .*hidden_size",
    ),
    "encoder": (only(**BERT, model_type="bert"), r"not a causal language model: .*is_decoder"),
    "encoder, roberta": (
        only(**BERT, model_type="roberta"),
        r"not a causal language model: .*is_decoder",
    ),
    "permuted": (
        only(model_type="xlnet", d_model=8, n_layer=1, n_head=1),
        r"XLNet is trained on permuted texts",
    ),
    "bidirectional": (
        config(model_type="gemma3_text", use_bidirectional_attention=True),
        r"use_bidirectional_attention",
    ),
    "seq2seq": (only(**SEQ2SEQ), r"encoder-decoder model \(t5\)"),
    "vision": (only(**VISION), r"is a vit model, which is not a causal language model"),
    "no weights": (remove(WEIGHTS), r"no weights that transformers can load"),
    "weights of another framework": (
        lambda f: (f / WEIGHTS).rename(f / "tf_model.h5"),
        r"\(found tf_model\.h5\); expected model\.safetensors",
    ),
    "git-lfs pointer for weights": (
        text(WEIGHTS, POINTER),
        r"model\.safetensors is a git-lfs pointer .*git lfs pull",
    ),
    "git-lfs pointer for the tokenizer": (
        text("tokenizer.json", POINTER),
        r"tokenizer\.json is a git-lfs pointer",
    ),
    "truncated weights": (
        cut,
        r"model\.safetensors is damaged or truncated .*download this file again",
    ),
    "empty weights": (
        lambda f: (f / WEIGHTS).write_bytes(b""),
        r"model\.safetensors is damaged or truncated",
    ),
    "truncated shard": (
        lambda f: shards(f, cut_one=True),
        r"model-00002-of-00002\.safetensors is damaged or truncated",
    ),
    "missing shard": (
        lambda f: shards(f, lost=True),
        r"1 are missing, the first is model-00002-of-00002",
    ),
    "index without a map": (lambda f: shards(f, map_of={}), r"index\.json has no weight_map"),
    "index with a strange map": (
        lambda f: shards(f, map_of={"a": 3}),
        r"index\.json has no weight_map",
    ),
    "index is not JSON": (
        both(shards, text("model.safetensors.index.json", "{")),
        r"index\.json is not JSON",
    ),
    "truncated pickle": (
        both(as_pickle, cut_pickle),
        r"pytorch_model\.bin is damaged or contains .*download this file again",
    ),
    "pickle with code": (
        harmful_pickle,
        r"pytorch_model\.bin is damaged or contains objects other than tensors, which are never loaded",
    ),
    "a tensor is missing": (
        lose_a_tensor,
        r"1 tensors are missing from its weights, the first is .*up_proj",
    ),
    "a tensor of another shape": (
        wrong_shape,
        r"1 tensors have another shape .*up_proj\.weight.*4, 8.*8, 8.*use the config\.json",
    ),
    "adapter": (
        both(empty, text("adapter_config.json", '{"peft_type": "LORA"}')),
        r"an adapter .*merge_and_unload",
    ),
    "adapter beside weights": (text("adapter_config.json", "{}"), r"an adapter .*merge_and_unload"),
    "GGUF in parts": (
        split_gguf,
        r"GGUF model in parts \(m-00001-of-00002\.gguf\).*llama-gguf-split --merge",
    ),
    "two GGUF files": (two_gguf, r"2 \.gguf files \(m-q4\.gguf, m-q8\.gguf\), expected one"),
    "damaged GGUF": (damaged_gguf, r"m\.gguf cannot be read .*download the file again"),
    "integers as weights": (
        codes,
        r"tensor model\.layers\.0\.mlp\.up_proj\.weight of .* has the type I8.*dequantize",
    ),
    "fp8 without a config": (
        lambda f: codes(f, torch.float8_e4m3fn),
        r"has the type F8_E4M3.*dequantize",
    ),
    "fp8": (fp8_config, r"; use the model's weights in float32.*dequantize"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"bitsandbytes.*dequantize",
    ),
    "gptq": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"; use the model's weights in float32",
    ),
    "awq": (
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        r"; use the model's weights in float32",
    ),
    "mlx": (
        config(quantization={"group_size": 64, "bits": 4}),
        r"a quantization without its quant_method, which transformers does not read",
    ),
    "exl2": (
        config(quantization_config={"quant_method": "exl2"}),
        r"quantization 'exl2'.*dequantize",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        r"has no tokenizer; expected tokenizer\.json",
    ),
    "tokenizer.json is not JSON": (
        text("tokenizer.json", "{"),
        r"tokenizer\.json is not JSON .*download the file again",
    ),
    "tokenizer.json is another JSON": (
        text("tokenizer.json", "{}"),
        r"tokenizer\.json cannot be read .*save_pretrained",
    ),
    "tokenizer_config.json is not JSON": (
        text("tokenizer_config.json", "{"),
        r"tokenizer_config\.json is not JSON",
    ),
    "generation_config.json is not JSON": (
        text("generation_config.json", "{"),
        r"generation_config\.json is not JSON",
    ),
    "tokenizer with custom code": (
        text(
            "tokenizer_config.json",
            '{"auto_map": {"AutoTokenizer": ["t.T", null]}, "tokenizer_class": "T"}',
        ),
        r"tokenizer needs custom code .*never run",
    ),
    "has no fast tokenizer": (slow_tokenizer, r"has no fast tokenizer"),
    "truncated GGUF": (truncated_gguf, r"weights\.gguf cannot be read .*download the file again"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_directory_that_cannot_be_read_gives_an_error_of_one_line(
    case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[case]
    change(source)
    with pytest.raises(UserError, match=message) as caught:
        fetch(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("source.id: ")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


def own_code(folder: Path) -> None:
    REFUSED["tokenizer with custom code"][0](folder)
    text(
        "tokenizer_config.json",
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}',
    )(folder)


def test_weights_that_transformers_keeps_quantized_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "is_quantized", True, raising=False)
    with pytest.raises(
        UserError, match=r"holds quantized weights; use the model's weights in float32"
    ):
        fetch(source, tmp_path / "out")


def fp8_with_scales(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    for name in [name for name in weights if name.endswith("proj.weight")]:
        weights[name] = torch.full(weights[name].shape, 2.0).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.full((1, 1), 0.005)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    about = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config(quantization_config=about)(folder)


READ: dict[str, Change] = {
    "shards": shards,
    "pickle": as_pickle,
    "fp8 that transformers dequantizes": fp8_with_scales,
    "other files beside it": text("training_args.json", "not JSON"),
    "a tokenizer without the code that it asked for": own_code,
    "sampling that contradicts itself": text(
        "generation_config.json", '{"temperature": 0.6, "do_sample": false}'
    ),
    "auto_map of an architecture that transformers holds": config(
        auto_map={"AutoModelForCausalLM": "m.M"}
    ),
}


@pytest.mark.parametrize("case", READ)
def test_other_forms_of_the_same_weights_give_the_same_model(
    case: str, source: Path, tmp_path: Path
) -> None:
    READ[case](source)
    fetch(source, tmp_path / "out")
    for name, weight in load_file(tmp_path / "out" / WEIGHTS).items():
        torch.testing.assert_close(weight, torch.full_like(weight, 0.01), rtol=0, atol=0, msg=name)


def test_a_directory_with_one_gguf_file_needs_no_config_json(tmp_path: Path) -> None:
    model = small_models.make_model("llama")
    (tmp_path / "source").mkdir()
    small_models.save_gguf(
        model, small_models.make_tokenizer(), tmp_path / "source" / "weights.gguf"
    )
    manifest = fetching.fetch(
        SourceSettings(kind="directory", id=str(tmp_path / "source")),
        tmp_path / "out",
        dimensions=DimensionSettings(n_layers=small_models.LAYERS, d_model=small_models.WIDTH),
        seed=0,
    )
    assert manifest["vocab_size"] == 400


def test_a_gguf_head_that_differs_from_the_embedding_is_kept(tmp_path: Path) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    tokenizer = small_models.make_tokenizer()
    with torch.random.fork_rng():
        model = FalconForCausalLM(
            FalconConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                bias=False,
                bos_token_id=0,
                eos_token_id=0,
                initializer_range=0.3,
            )
        ).requires_grad_(False)
        # transformers ties the head of every Falcon and BLOOM, whatever their file holds.
        head = torch.randn_like(model.lm_head.weight)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    (tmp_path / "source").mkdir()
    small_models.save_gguf(model, tokenizer, tmp_path / "source" / "weights.gguf")
    fetching.fetch(
        SourceSettings(kind="directory", id=str(tmp_path / "source")),
        tmp_path / "out",
        dimensions=DimensionSettings(n_layers=2, d_model=16),
        seed=0,
    )
    ids = torch.arange(3, 20)[None]
    found = models.load_model(tmp_path / "out")
    torch.testing.assert_close(found(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    "config",
    [
        {**BERT, "model_type": "bert", "is_decoder": True},
        {"model_type": "gpt_neox"},
        # As save_pretrained writes infinity.
        {"model_type": "mamba2", "time_step_limit": [0.0, {"__float__": "Infinity"}]},
    ],
)
def test_an_encoder_that_is_set_up_as_a_decoder_and_others_are_causal_models(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint_files._require_causal_model(tmp_path, config, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinite_weights_are_refused_with_the_tensors_name(
    dtype: torch.dtype, value: float, source: Path, tmp_path: Path
) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(source / WEIGHTS).items()}
    weights[TENSOR][-1, -1] = value
    save_file(weights, source / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"up_proj\.weight holds 1 NaN or infinite of 64 values.* download the model again",
    ):
        fetch(source, tmp_path / "out")


def test_nan_is_found_in_every_part_of_a_large_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "_PART", 4)
    for place in range(10):
        weight = torch.zeros(10)
        weight[place] = float("nan")
        save_file({"a": torch.zeros(3, dtype=torch.int64), "b": weight}, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match="tensor b holds 1 NaN or infinite of 10"):
            checkpoint_files.require_finite(tmp_path / "w.safetensors", "x")
    save_file({"b": torch.zeros(10)}, tmp_path / "w.safetensors")
    checkpoint_files.require_finite(tmp_path / "w.safetensors", "x")


def test_the_rows_of_the_embedding_are_those_that_were_written(source: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    assert checkpoint_files.embedding_rows(model, source / WEIGHTS) == small_tokenizers.ROWS
    weights = load_file(source / WEIGHTS)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:7].clone()
    save_file(weights, source / WEIGHTS)
    assert checkpoint_files.embedding_rows(model, source / WEIGHTS) == 7
