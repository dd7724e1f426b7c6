"""Loading a fetched model and finding one's way inside it, whatever its architecture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttrack.errors import UserError
from ghosttrack.runtime.files import read_json, sha256_file

if TYPE_CHECKING:
    import torch
    from torch import nn

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "seq_len",
    "max_target_positions",
    "model_max_length",
    "context_length",
)
# Their positions begin behind the id of the padding token: of 514 positions, 512 hold tokens.
_POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
# Names of the class that takes a tokenizer.json as it is.
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(directory: Path) -> Any:
    """The fast tokenizer of a fetched model."""
    if not (Path(directory) / "tokenizer.json").is_file():
        raise UserError(
            f"{directory} has no tokenizer.json: delete the directory and run again, its job remakes it"
        )
    require_unchanged(Path(directory))
    return tokenizer_in(Path(directory))


def tokenizer_in(directory: Path, **options: Any) -> Any:
    """The tokenizer that the files of `directory` describe.

    Many classes of transformers take only the vocabulary from tokenizer.json and build the rest themselves.
    A tokenizer_config.json that names PreTrainedTokenizerFast asks for tokenizer.json as it is; AutoTokenizer
    ignores it for some architectures (Qwen2, Phi-3).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = directory / "tokenizer_config.json"
    named = read_json(config).get("tokenizer_class") if config.is_file() else None
    as_it_is = named in _AS_IT_IS and (directory / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if as_it_is else AutoTokenizer
    return loader.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **options
    )


def load_model(directory: Path, device: str = "cpu") -> Any:
    """The causal language model of a fetched model: float32, evaluation mode, no gradients.

    float32 because half precision is 65 times slower on CPUs without it, and so that every device
    computes the same thing up to rounding.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from ghosttrack.inputs.dense_layers import quicken

    require_unchanged(Path(directory))
    transformers_logging.disable_progress_bar()
    loading: dict[str, Any] = {
        "dtype": torch.float32,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="sdpa", **loading
            )
        except ValueError:  # the few architectures without it
            model = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="eager", **loading
            )
    except Exception as error:
        raise UserError(
            f"{Path(directory) / 'model.safetensors'} cannot be loaded ({first_line(error)}): "
            "delete its directory and run again, its job remakes it"
        ) from error
    model = model.requires_grad_(False).eval().to(device)
    if model.device.type == "cpu":
        quicken(model)
    return model


def require_unchanged(directory: Path) -> None:
    """Check a fetched model's files, but for its weights, against the digests that its source.json holds.

    The weights are checked where a job begins (`ghosttrack.runtime.records`) and where a detector is loaded. A directory
    without a source.json is not a fetched model, and is not checked.

    Raises:
        UserError: naming the file that differs or is missing.
    """
    manifest = directory / "source.json"
    if not manifest.is_file():
        return
    for name, digest in read_json(manifest).get("files_sha256", {}).items():
        path = directory / name
        if name != "model.safetensors" and (not path.is_file() or sha256_file(path) != digest):
            raise UserError(
                f"{path} is not what fetch_model wrote (damaged, edited or deleted): delete the directory and run "
                "again, its job makes it anew"
            )


def separator(tokenizer: Any) -> int:
    """The token that starts every model input and separates documents: bos, else eos.

    ASSUME: bos is right also where documents were joined with another token in training. Measured on
    SmolLM2-135M (bos <|im_start|>, joined with <|endoftext|>): both separate 96 true from 96 false capital
    statements equally well by answer log-probability (AUROC .972 and .977, asked the other way round .927
    and .916); packed text is predicted better after bos (-3.79 against -4.07 nats a token), and only
    <|endoftext|> turns every separator inside a context into a massive activation.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    others = {key: getattr(tokenizer, key, None) for key in ("cls_token", "sep_token", "pad_token")}
    known = ", ".join(f"{key} {token!r}" for key, token in others.items() if token is not None)
    raise UserError(
        f"the tokenizer names neither bos_token nor eos_token (it has {known or 'no cls_token, sep_token or pad_token'}); "
        "set bos_token in its tokenizer_config.json to the token that began each text in training"
    )


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a causal language model, first to last.

    They are the ModuleList of length n_layers; of several, the one that holds the most parameters.
    """
    from torch import nn

    config: Any = model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists: list[nn.ModuleList] = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise UserError(
            f"{type(model).__name__} keeps its {n_layers} blocks in no ModuleList; this architecture is not supported"
        )
    return list(sorted(lists, key=_size)[-1])


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def backbone(model: Any) -> Any:
    """The model without its head; returns final hidden states."""
    if model.base_model is not model:
        return model.base_model
    first = blocks(model)[0]  # the library's name for it is wrong, as Llama 4's
    return next(
        child for child in model.children() if any(each is first for each in child.modules())
    )


def first_tensor(output: torch.Tensor | Sequence[Any]) -> torch.Tensor:
    """A hooked module's main output: some architectures return a bare tensor, others a tuple or a list."""
    tensor: Any = output[0] if isinstance(output, tuple | list) else output
    return tensor  # type: ignore[no-any-return]


def with_first(output: torch.Tensor | Sequence[Any], tensor: torch.Tensor) -> Any:
    """A hooked module's output with another main output."""
    return type(output)((tensor, *output[1:])) if isinstance(output, tuple | list) else tensor


def max_context(model_config: Path | dict[str, Any]) -> int:
    """Longest input in tokens that a model takes, from its config.json (the path or the content).

    A model that states no limit (relative positions only) has none: sys.maxsize. Some files state "no limit" as null,
    0 or -1.

    Raises:
        TypeError, ValueError, OverflowError: a limit is no number.
    """
    about = model_config if isinstance(model_config, dict) else read_json(Path(model_config))
    inner = about.get("text_config")
    about = inner if isinstance(inner, dict) else about
    limits = (int(about[key]) for key in _CONTEXT_KEYS if about.get(key))
    limit = next((limit for limit in limits if limit > 0), sys.maxsize)
    if about.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = about.get("pad_token_id")
        return limit - (1 if padding is None else int(padding)) - 1
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) == "dynamic":
        # Beyond the length of training it rescales positions by the longest text so far: texts would depend on their order.
        return min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def takes_out_means(model_config: Path) -> bool:
    """Whether the norms of a model take out each token's mean (LayerNorm) or not (RMSNorm), from its config.json."""
    about = read_json(Path(model_config))
    return "rms_norm_eps" not in about.get("text_config", about)


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message, for a UserError that takes its place."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
