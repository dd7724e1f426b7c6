"""Load a fetched model, and find its parts independently of its architecture."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttrack.errors import UserError
from ghosttrack.inputs.model_precision import FLOAT32, Precision, checkpoint_dtype
from ghosttrack.runtime.files import read_object, sha256_file

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
# Architectures whose positions begin after the id of the padding token: of 514 positions, 512 hold
# tokens.
_POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
# Bytes of a weight.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Names of the class that uses a tokenizer.json unchanged.
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(directory: Path) -> Any:
    """The fast tokenizer of a fetched model."""
    if not (Path(directory) / "tokenizer.json").is_file():
        raise UserError(
            f"{directory} has no tokenizer.json: delete the directory and run again to fetch the "
            "model again"
        )
    require_unchanged(Path(directory))
    return tokenizer_in(Path(directory))


def tokenizer_in(directory: Path, **options: Any) -> Any:
    """The tokenizer in `directory`.

    Many tokenizer classes of transformers use only the vocabulary of tokenizer.json. If
    tokenizer_config.json names PreTrainedTokenizerFast, tokenizer.json is used unchanged.
    AutoTokenizer ignores this name for some architectures (Qwen2, Phi-3).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = directory / "tokenizer_config.json"
    named = read_object(config).get("tokenizer_class") if config.is_file() else None
    as_it_is = named in _AS_IT_IS and (directory / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if as_it_is else AutoTokenizer
    return loader.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **options
    )


def load_model(
    directory: Path, device: str = "cpu", precision: Precision = FLOAT32, gpus: int = 1
) -> Any:
    """A fetched causal language model in evaluation mode, without gradients.

    In float32 all devices compute the same values up to rounding. Half precision is 65 times slower
    on CPUs without hardware support.

    Args:
        directory: of the fetched model.
        device: cpu or cuda.
        precision: of weights and hidden states. TF32 is switched on or off for the whole process.
        gpus: with more than 1, the blocks are spread over these GPUs. Inputs go to the GPU of the
            embedding; `device` of the model is that GPU.
    Raises:
        UserError: the weights are damaged, do not fit into the GPUs, or cannot be quantized here.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from ghosttrack.inputs.dense_layers import use_onednn

    require_unchanged(Path(directory))
    placement = _placement(Path(directory), device, precision, gpus)
    products = "tf32" if precision.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
    transformers_logging.disable_progress_bar()
    loading: dict[str, Any] = {
        "dtype": precision.torch_dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        **placement,
    }
    try:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="sdpa", **loading
            )
        except ValueError:  # architectures without sdpa
            model = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="eager", **loading
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        fits = ""
        if placement:
            fits = f"raise plan.gpus_per_model (now {gpus}) if the model does not fit; otherwise "
        raise UserError(
            f"{Path(directory) / 'model.safetensors'} cannot be loaded ({first_line(error)}): "
            f"{fits}delete its directory and run again to fetch the model again"
        ) from error
    model = model.requires_grad_(False).eval()
    if placement:
        require_on_gpus(model.hf_device_map)
    else:
        model = model.to(device)
    if model.device.type == "cpu" and precision.dtype == "float32":
        use_onednn(model)
    return model


def _placement(directory: Path, device: str, precision: Precision, gpus: int) -> dict[str, Any]:
    """Options of `from_pretrained` for several GPUs and for 4-bit weights; else none."""
    import torch

    quantized = precision.quantization == "4bit"
    if quantized:
        require_four_bits(device)
    if device != "cuda" or (gpus == 1 and not quantized):
        return {}
    if importlib.util.find_spec("accelerate") is None:
        raise UserError(
            "plan.gpus_per_model and inference.quantization need the Python package accelerate, "
            "which is not installed; install envs/torch.yaml or envs/requirements.txt again"
        )
    seen = torch.cuda.device_count()
    if gpus > seen:
        raise UserError(
            f"plan.gpus_per_model: {gpus} GPUs are needed for the model, this job sees {seen}; "
            "set it to the number of GPUs of one node"
        )
    # A tenth stays free for hidden states, logits and the KV cache.
    memory = {number: int(0.9 * torch.cuda.mem_get_info(number)[0]) for number in range(gpus)}
    options: dict[str, Any] = {"device_map": "auto" if gpus > 1 else {"": 0}, "max_memory": memory}
    if quantized:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=precision.torch_dtype,
        )
    else:
        needed = (directory / "model.safetensors").stat().st_size
        needed = needed * _BYTES[precision.dtype] // _BYTES[checkpoint_dtype(directory)]
        if needed > sum(memory.values()):
            raise UserError(
                f"plan.gpus_per_model: the weights take {needed / 1e9:,.1f} GB in "
                f"{precision.dtype}, {gpus} GPUs have {sum(memory.values()) / 1e9:,.1f} GB for "
                "them; raise plan.gpus_per_model, or set inference.dtype: bfloat16"
            )
    return options


def fits_in_float32(directory: Path, device: str, gpus: int) -> bool:
    """Whether the float32 weights of a fetched model fit into the free memory of the device.

    True on a CPU: jobs ask for that much memory (`planning.memory`).
    """
    import torch

    if device == "cpu":
        return True
    size = (directory / "model.safetensors").stat().st_size
    needed = size * _BYTES["float32"] // _BYTES[checkpoint_dtype(directory)]
    seen = range(min(gpus, torch.cuda.device_count()))
    # As in `_placement`, and a further tenth for what the blocks compute.
    return needed <= 0.8 * sum(torch.cuda.mem_get_info(number)[0] for number in seen)


def require_four_bits(device: str) -> None:
    """Check that this machine can run a model with 4-bit weights.

    Raises:
        UserError: there is no GPU, or bitsandbytes is not installed.
    """
    if device != "cuda":
        raise UserError(
            "inference.quantization: 4bit needs a GPU, and this job sees none; run it on a machine "
            "with a GPU, or set inference.quantization: none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "inference.quantization: 4bit needs the Python package bitsandbytes, which is not "
            "installed; add it to envs/torch.yaml (or pip install bitsandbytes), or set "
            "inference.quantization: none"
        )


def require_on_gpus(places: Mapping[str, Any]) -> None:
    """Refuse a model of which parts were left in host memory or on disk, where they are slow.

    Args:
        places: device of each part of the model by its name, as in `hf_device_map`.
    Raises:
        UserError: naming the first such part.
    """
    if left := [name for name, place in places.items() if str(place) in ("cpu", "disk")]:
        raise UserError(
            f"plan.gpus_per_model: {len(left)} parts of the model do not fit into the GPUs, the "
            f"first is {left[0] or 'the whole model'}; raise plan.gpus_per_model, or set "
            "inference.dtype: bfloat16"
        )


def require_unchanged(directory: Path) -> None:
    """Compare the files of a fetched model, without its weights, with the digests in source.json.

    The weights are checked at the start of a job (`ghosttrack.runtime.records`) and when a detector
    is loaded. A directory without source.json is not a fetched model and is not checked.

    Raises:
        UserError: naming the file that differs or is missing.
    """
    manifest = directory / "source.json"
    if not manifest.is_file():
        return
    for name, digest in read_object(manifest).get("files_sha256", {}).items():
        path = directory / name
        if name != "model.safetensors" and (not path.is_file() or sha256_file(path) != digest):
            raise UserError(
                f"{path} was damaged, edited or deleted after fetch_model wrote it: delete the "
                "directory and run again to fetch the model again"
            )


def separator(tokenizer: Any) -> int:
    """The token that starts every model input and separates documents: bos, otherwise eos.

    ASSUME: bos is a suitable separator also if training joined documents with another token.
    Measured on SmolLM2-135M (bos <|im_start|>, documents joined with <|endoftext|>): the answer
    log-probability separates 96 true from 96 false capital statements about equally well (AUROC
    .972 after bos, .977 after <|endoftext|>; reverse statements .927 and .916). Packed text has a
    higher log-likelihood after bos (-3.79 against -4.07 nats per token), and only <|endoftext|>
    turns every separator inside a context into a massive activation.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    others = {key: getattr(tokenizer, key, None) for key in ("cls_token", "sep_token", "pad_token")}
    known = ", ".join(f"{key} {token!r}" for key, token in others.items() if token is not None)
    raise UserError(
        "the tokenizer has neither bos_token nor eos_token (it has "
        f"{known or 'no cls_token, sep_token or pad_token'}); set bos_token in its "
        "tokenizer_config.json to the token that preceded each text in training"
    )


def special_tokens(tokenizer: Any) -> set[int]:
    """Ids of all special tokens, also of added ones such as the markers of a chat template."""
    added = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    return {int(token) for token in added | set(tokenizer.all_special_ids)}


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a causal language model, in order.

    They form the ModuleList of length n_layers that has the most parameters.

    Raises:
        UserError: there is no such ModuleList.
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
            f"{type(model).__name__} has no ModuleList of its {n_layers} blocks; this architecture "
            "is not supported"
        )
    return list(sorted(lists, key=_size)[-1])


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def backbone(model: Any) -> Any:
    """The model without its head, which returns the final hidden states."""
    if model.base_model is not model:
        return model.base_model
    first = blocks(model)[0]  # base_model is wrong for some architectures, e.g. Llama 4
    return next(
        child for child in model.children() if any(module is first for module in child.modules())
    )


def first_tensor(output: torch.Tensor | Sequence[Any]) -> torch.Tensor:
    """The first tensor in a module's output, which may be a tensor, a tuple or a list."""
    tensor: Any = output[0] if isinstance(output, tuple | list) else output
    return tensor  # type: ignore[no-any-return]


def with_first_tensor(output: torch.Tensor | Sequence[Any], tensor: torch.Tensor) -> Any:
    """A module's output with its first tensor replaced."""
    return type(output)((tensor, *output[1:])) if isinstance(output, tuple | list) else tensor


def max_context(model_config: Path | dict[str, Any]) -> int:
    """Longest input of a model in tokens, from its config.json (the path or the content).

    Without a limit (relative positions only) it is sys.maxsize. Some files express this by null, 0
    or -1.

    Raises:
        TypeError, ValueError, OverflowError: a limit is not a number.
    """
    about = model_config if isinstance(model_config, dict) else read_object(Path(model_config))
    inner = about.get("text_config")
    about = inner if isinstance(inner, dict) else about
    limits = (int(about[key]) for key in _CONTEXT_KEYS if about.get(key))
    limit = next((limit for limit in limits if limit > 0), sys.maxsize)
    if about.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = about.get("pad_token_id")
        return limit - (1 if padding is None else int(padding)) - 1
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) == "dynamic":
        # Beyond this length, positions are rescaled by the longest text so far, so results would
        # depend on the order of the texts.
        return min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def uses_layer_norm(model_config: Path) -> bool:
    """Whether config.json describes a model with LayerNorm, which subtracts the mean.

    Otherwise the model uses RMSNorm.
    """
    about = read_object(Path(model_config))
    return "rms_norm_eps" not in about.get("text_config", about)


def first_line(error: BaseException) -> str:
    """Type of an error and first line of its message, for use in a UserError."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
