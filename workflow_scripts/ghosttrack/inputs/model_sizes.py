"""Sizes of a model from its config.json.

The Snakefile imports this module, so it does not import torch.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.models import first_line, max_context
from ghosttrack.settings import names

# Keys of the number of blocks and of the width in all causal language models of transformers. If a
# file has several of them, the first one counts (a test compares this order with transformers).
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "layers",
    "decoder_layers",
)
_WIDTH = ("n_embed", "hidden_size", "n_embd", "d_model", "embed_dim", "dim", "emb_dim")
# Architectures whose number of blocks differs from these keys; transformers determines it.
_COMPUTED = ("longcat_flash",)
# Architectures whose checkpoints store the matrices of dense layers as (inputs, outputs).
_TRANSPOSED = ("ctrl", "gpt2", "imagegpt", "openai-gpt")


class ModelSizes(NamedTuple):
    """Sizes of a model."""

    n_layers: int
    d_model: int
    max_context: int  # longest input in tokens; sys.maxsize: no limit
    vocab_size: int | None  # None: not stated
    # Whether the dense layers are stored transposed: `models.load_model` makes a copy of each.
    transposed: bool


def read_sizes(path: Path, key: str) -> ModelSizes:
    """The sizes in a config.json, under any of the keys that architectures use.

    transformers is imported only if the file has none of these keys.

    Args:
        path: the config.json. key: the settings key that names it, for errors.
    Raises:
        UserError: the file cannot be read, or gives no number of layers or no width.
    """
    about = _read(path, key)
    sizes = None if about.get("model_type") in _COMPUTED else _stated(about)
    if sizes is None:
        sizes = _from_transformers(path, key, about)
    vocabulary = _text_part(about).get("vocab_size")
    stated = vocabulary if type(vocabulary) is int and vocabulary > 0 else None
    transposed = about.get("model_type") in _TRANSPOSED
    return ModelSizes(*sizes, _limit(about, path, key), stated, transposed)


def read_limit(path: Path, key: str) -> int:
    """Longest input in tokens, from a config.json.

    It is sys.maxsize if there is no limit. Errors as in `read_sizes`.
    """
    return _limit(_read(path, key), path, key)


def require_context(context: int, limit: int, model: str) -> None:
    """Check that `corpus.context` is at most `limit`, the longest input of a model in tokens."""
    if context > limit:
        raise UserError(
            f"corpus.context: {context:,} tokens are more than {model} allows; set corpus.context "
            f"to at most {limit}"
        )


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{key}: {path} cannot be read: {error}; copy config.json from the model again"
        ) from None
    if not isinstance(about, dict):
        raise UserError(
            f"{key}: {path} holds {names.short(about)}, expected an object as written by "
            "save_pretrained; copy config.json from the model again"
        )
    return about


def _text_part(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, in a config.json that describes several models."""
    inner = about.get("text_config")
    return inner if isinstance(inner, dict) else about


def _stated(about: Mapping[str, Any]) -> tuple[int, int] | None:
    """Number of layers and width in a configuration; None if one of them is missing."""
    part = _text_part(about)
    sizes = [
        next((part[key] for key in keys if part.get(key) is not None), None)
        for keys in (_LAYERS, _WIDTH)
    ]
    if all(type(size) is int and size > 0 for size in sizes):
        return int(str(sizes[0])), int(str(sizes[1]))
    return None


def _from_transformers(path: Path, key: str, about: Mapping[str, Any]) -> tuple[int, int]:
    part = _text_part(about)
    stated = {name: part[name] for name in (*_LAYERS, *_WIDTH) if name in part}
    expected = (
        f"expected {_LAYERS[0]} and {_WIDTH[1]} as whole numbers above 0, or a model_type that "
        "transformers knows"
    )
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False
        )
        text = config.get_text_config()
        sizes = (text.num_hidden_layers, text.hidden_size)
    except Exception as error:  # every architecture has its own errors
        raise UserError(
            f"{key}: {path} gives {names.short(stated) if stated else 'no size of the model'}; "
            f"{expected} ({first_line(error)})"
        ) from None
    if not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(f"{key}: {path} gives {names.short(stated)}; {expected}")
    return sizes


def _limit(about: Mapping[str, Any], path: Path, key: str) -> int:
    try:
        limit = max_context(dict(about))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{key}: {path} has an invalid longest input: {error}; expected a whole number"
        ) from None
    return limit if limit > 0 else sys.maxsize
