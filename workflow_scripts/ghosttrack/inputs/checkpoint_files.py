"""Checks of a model's files before transformers loads them, and of the converted weights.

transformers reacts to a damaged or unsuitable directory in many ways, such as a traceback or a
model with different weights. The checks here name the file and a remedy.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.inputs.models import first_line

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", *_INDEXES)
# JSON files that transformers reads for a model or a tokenizer.
_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    *_INDEXES,
)
# Floating-point types of safetensors files. Weights of other types are quantized.
_PLAIN = ("F64", "F32", "F16", "BF16")
# Causal models although their config.json has `is_decoder: false`.
_ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese")
# Number of values to check at a time, which bounds the memory.
_PART = 1 << 24


def gguf_file(directory: Path, name: str) -> str | None:
    """Name of the GGUF file to load; None if the directory has other weights or none.

    Raises:
        UserError: several GGUF files, or a GGUF file that is split into parts.
    """
    files = sorted(file.name for file in directory.glob("*.gguf"))
    if not files or any((directory / weights).is_file() for weights in _WEIGHTS):
        return None
    if any("-of-" in file for file in files):
        raise UserError(
            f"{name} holds a GGUF model in parts ({files[0]}), expected one file; join them with "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf, and keep only the whole file"
        )
    if len(files) > 1:
        raise UserError(
            f"{name} holds {len(files)} .gguf files ({', '.join(files)}), expected one; keep only "
            "the one to use"
        )
    return files[0]


def require_complete(directory: Path, name: str, gguf: str | None) -> None:
    """Check that transformers can load a causal language model from a directory.

    Args:
        directory: holds config.json, weights and a tokenizer, or the GGUF file `gguf`.
        name: the source, for errors.
        gguf: name of the GGUF file to load, if any.
    Raises:
        UserError: naming the file, its fault and a remedy.
    """
    _require_directory(directory, name)
    _require_no_pointer(directory, name)
    contents = {
        file: _json(directory / file, name) for file in _JSON if (directory / file).is_file()
    }
    if gguf is not None:
        return
    _require_no_adapter(directory, name)
    if "config.json" not in contents:
        raise UserError(
            f"{name} has no config.json; expected a directory written by save_pretrained"
        )
    _require_causal_model(directory, contents["config.json"], name)
    _require_weights(directory, contents, name)


def _require_directory(directory: Path, name: str) -> None:
    if directory.is_file():
        raise UserError(
            f"{name} is a file; expected a directory that holds config.json, weights and a "
            "tokenizer"
        )
    if not directory.is_dir():
        raise UserError(
            f"{name} does not exist; expected a directory with config.json, weights and a tokenizer"
        )
    if not any(directory.iterdir()):
        raise UserError(
            f"{name} is an empty directory; expected config.json, weights and a tokenizer in it"
        )


def _require_no_pointer(directory: Path, name: str) -> None:
    for path in sorted(directory.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise UserError(
                    f"{name}: {path.name} is a git-lfs pointer of {path.stat().st_size} bytes, not "
                    "the file itself; run `git lfs pull` in the directory, or download the model "
                    "again"
                )


def _json(path: Path, name: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: {path.name} is not JSON ({first_line(error)}); download the file again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{name}: {path.name} holds a JSON {type(content).__name__}, expected an object; "
            "download the file again"
        )
    return content


def _require_no_adapter(directory: Path, name: str) -> None:
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{name} holds an adapter (adapter_config.json), expected a complete model; load it "
            "with PEFT, call merge_and_unload() and save_pretrained(), and use the directory that "
            "this writes"
        )


def _require_causal_model(directory: Path, config: dict[str, Any], name: str) -> None:
    """Check by config.json that the model is a causal language model that transformers supports."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{name}: config.json has no model_type; download the file again")
    if kind not in CONFIG_MAPPING:
        remote = ", and custom code (auto_map) is never run" if "auto_map" in config else ""
        raise UserError(
            f"{name}: config.json has the model_type {kind!r}, which the installed transformers "
            f"does not know{remote}; use a model whose architecture is part of transformers"
        )
    try:
        parsed = CONFIG_MAPPING[kind].from_pretrained(directory, local_files_only=True)
    except Exception as error:  # every configuration class has its own checks
        raise UserError(
            f"{name}: config.json is not valid for the model_type {kind!r} "
            f"({' '.join(str(error).split())}); correct this value"
        ) from error
    if getattr(parsed, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder-decoder model ({kind}), expected a decoder-only causal language "
            "model"
        )
    if kind not in CAUSAL:
        raise UserError(
            f"{name} is a {kind} model, which is not a causal language model; use a decoder-only "
            "text model"
        )
    if reason := _bidirectional(parsed, kind):
        raise UserError(
            f"{name} is not a causal language model: {reason}, so a token attends to later tokens; "
            "use a decoder-only model"
        )
    _require_known_quantization(config, name)


def _bidirectional(config: Any, kind: str) -> str | None:
    if getattr(config, "is_decoder", None) is False and kind not in _ALWAYS_CAUSAL:
        return f"config.json of this {kind} model does not set is_decoder"
    if kind == "xlnet":
        return "XLNet is trained on permuted texts"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "config.json sets use_bidirectional_attention"
    for key in ("is_causal", "causal"):
        if getattr(config, key, None) is False:
            return f"config.json sets {key} to false"
    return None


def _require_known_quantization(config: dict[str, Any], name: str) -> None:
    """Refuse a quantization that transformers ignores, using the codes as weights."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    settings = config.get("quantization_config") or config.get("quantization")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    bitsandbytes = isinstance(settings, dict) and (
        settings.get("load_in_8bit") or settings.get("load_in_4bit")
    )
    if method not in (*AUTO_QUANTIZER_MAPPING, "bitsandbytes") and not bitsandbytes:
        named = (
            f"the quantization {method!r}" if method else "a quantization without its quant_method"
        )
        raise quantized(f"{name}: config.json has {named}, which transformers does not read")


def quantized(problem: str) -> UserError:
    """The error for quantized weights; its message begins with `problem`."""
    return UserError(
        f"{problem}; use the model's weights in float32, float16 or bfloat16, or convert them with "
        "model.dequantize() and save_pretrained() where the quantization library is installed"
    )


def _require_weights(directory: Path, contents: dict[str, Any], name: str) -> None:
    present = [file for file in _WEIGHTS if (directory / file).is_file()]
    if not present:
        others = sorted(
            path.name for path in directory.iterdir() if path.suffix not in (".json", ".txt", ".md")
        )
        found = f"found {', '.join(others[:4])}" if others else "found none"
        raise UserError(
            f"{name} has no weights that transformers can load ({found}); expected "
            f"{' or '.join(_WEIGHTS[:2])}"
        )
    files = (
        [present[0]]
        if present[0] not in _INDEXES
        else _shards(directory, contents[present[0]], present[0], name)
    )
    for file in files:
        _require_readable(
            directory / file, name, plain="quantization_config" not in contents["config.json"]
        )


def _shards(directory: Path, index: dict[str, Any], file: str, name: str) -> list[str]:
    where = index.get("weight_map")
    if (
        not isinstance(where, dict)
        or not where
        or not all(isinstance(shard, str) for shard in where.values())
    ):
        raise UserError(
            f"{name}: {file} has no weight_map from tensor names to files; download the file again"
        )
    shards = sorted(set(where.values()))
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise UserError(
            f"{name}: {file} lists {len(shards)} files with weights, but {len(missing)} are "
            f"missing, the first is {missing[0]}; download the missing files"
        )
    return shards


def _require_readable(path: Path, name: str, plain: bool) -> None:
    """Check that a file with weights can be read.

    `plain`: config.json names no quantization, so refuse weights that are not floating-point
    numbers.
    """
    try:
        kinds = _safetensors_types(path) if path.suffix == ".safetensors" else _pickle_types(path)
    except Exception as error:  # each format has its own error types
        why = (
            "truncated"
            if path.suffix == ".safetensors"
            else "contains objects other than tensors, which are never loaded"
        )
        raise UserError(
            f"{name}: {path.name} is damaged or {why} ({type(error).__name__}, "
            f"{path.stat().st_size} bytes); download this file again, or the model's safetensors "
            "files"
        ) from error
    for tensor, kind in kinds.items():
        if plain and tensor.endswith("weight") and kind not in _PLAIN:
            raise quantized(
                f"{name}: tensor {tensor} of {path.name} has the type {kind}, expected "
                "floating-point numbers"
            )


def _safetensors_types(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {tensor: file.get_slice(tensor).get_dtype() for tensor in sorted(file.keys())}


def _pickle_types(path: Path) -> dict[str, str]:
    import torch

    plain = dict(
        zip((torch.float64, torch.float32, torch.float16, torch.bfloat16), _PLAIN, strict=True)
    )
    tensors = torch.load(path, map_location="meta", weights_only=True)
    return {name: plain.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()}


def require_finite(path: Path, name: str) -> None:
    """Check that weights contain no NaN and no infinity, one tensor at a time.

    Args:
        path: safetensors file.
        name: the source, for errors.
    Raises:
        UserError: naming the first tensor with such a value.
    """
    import torch

    for tensor, values in _tensors(path):
        flat = values.reshape(-1)
        bad = (
            sum(int((~torch.isfinite(part)).sum()) for part in flat.split(_PART))
            if values.is_floating_point()
            else 0
        )
        if bad:
            raise UserError(
                f"{name}: tensor {tensor} holds {bad} NaN or infinite of {flat.numel()} values, "
                "expected finite numbers; its weights are damaged: download the model again, or "
                "choose another revision (source.id, source.revision)"
            )


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for tensor in sorted(file.keys()):
            yield tensor, file.get_tensor(tensor)


def embedding_rows(model: Any, path: Path) -> int:
    """Rows of the embedding in the safetensors file `path`, at most those of the unembedding."""
    from safetensors import safe_open

    tables = [
        table.weight
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
        if table is not None
    ]
    names = {
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if any(weight is table for table in tables)
    }
    with safe_open(path, framework="pt") as file:
        written = [file.get_slice(name).get_shape()[0] for name in names.intersection(file.keys())]
    return int(min([*(len(table) for table in tables), *written]))
