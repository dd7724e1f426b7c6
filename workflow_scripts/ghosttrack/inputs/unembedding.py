"""Final norm and unembedding of a fetched model, read without the rest of its weights."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ghosttrack.inputs import models

log = logging.getLogger("ghosttrack")

# Largest rounding error of a logit, as a fraction of the standard deviation of a token's logits.
_ROUNDING = 1e-3
# Scale of probe inputs that makes a norm's epsilon (at most 1e-5) negligible.
_PROBE = 1024.0


class Unembedding(NamedTuple):
    """The map from a residual stream h to logits: weight @ (gain * (h - mean h) / sigma).

    The mean is subtracted only if `centred`. sigma is the root mean square of the vector that it
    divides. Biases of norm and head are omitted.
    """

    weight: torch.Tensor  # (vocabulary, d_model) float32
    gain: torch.Tensor  # (d_model,) float32; ones if there is no final norm
    centred: bool


def read_unembedding(directory: Path) -> Unembedding | None:
    """Final norm and unembedding of a fetched model.

    None if the unembedding has another input width.
    """
    model = _outline(directory)
    head = model.get_output_embeddings()
    norm_name = _final_norm(model)
    width = model.config.get_text_config().hidden_size
    if getattr(head, "weight", None) is None or head.weight.shape[1:] != (width,):
        log.warning(
            "%s has no unembedding of the width of its blocks, so features get no output tokens",
            type(model).__name__,
        )
        return None
    # Tied embeddings are one tensor with two names, of which the file has one. If it has both, the
    # tensors may differ, and transformers unties them: the name in the head comes first.
    own = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    names = sorted(
        (
            name
            for name, weight in model.named_parameters(remove_duplicate=False)
            if weight is head.weight
        ),
        key=lambda name: name not in own,
    )
    norm = model.get_submodule(norm_name) if norm_name else None
    needed = (
        [f"{norm_name}.{name}" for name, _ in norm.named_parameters()] if norm is not None else []
    )
    with _tensors(directory, [names, *([name] for name in needed)]) as tensors:
        weight = next(tensors[name] for name in names if name in tensors).to(torch.float32)
        if norm is None:
            return Unembedding(weight, torch.ones(width), False)
        norm = norm.to_empty(device="cpu").to(torch.float32)
        norm.load_state_dict({name.removeprefix(f"{norm_name}."): tensors[name] for name in needed})
    return Unembedding(weight, *_probe_norm(norm, width))


def ranks_tokens(model: Any, residual: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether final norm and unembedding rank the vocabulary as the model does.

    They do not if the head has further layers (RoBERTa), or if another module lies between the last
    block and the norm. Scales and caps of logits, and constants added to all logits, keep the
    ranks.

    Args:
        model: with its weights.
        residual: outputs of the last block, (tokens, d_model).
        logits: of the model, or its log-probabilities, (tokens, vocabulary).
    """
    head, norm_name = model.get_output_embeddings(), _final_norm(model)
    if getattr(head, "weight", None) is None or head.weight.shape[1:] != residual.shape[1:]:
        return False
    norm = model.get_submodule(norm_name) if norm_name else None
    if norm is not None and any(weight.shape != residual.shape[1:] for weight in norm.parameters()):
        return False  # a norm of another input, e.g. of several streams
    normed = residual if norm is None else norm(residual)
    computed = head(normed.to(head.weight.dtype))
    logits = logits.float().to(computed.device)
    ranked = logits.gather(-1, computed.argsort(-1))  # ascending if the ranks are equal
    drop = ranked.cummax(-1).values - ranked
    allowed = _ROUNDING * logits.std(-1)
    if computed.dtype != torch.float32:
        # The logits are rounded to the data type of the model, twice where they are capped.
        allowed = allowed + 2 * torch.finfo(computed.dtype).eps * computed.float().abs().amax(-1)
    return bool((drop.amax(-1) <= allowed).all())


def _outline(directory: Path) -> Any:
    """The model on the meta device: its modules and tied tensors, without values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def _final_norm(model: nn.Module) -> str | None:
    """Name of the last norm among the siblings of the blocks.

    Earlier ones belong to the embedding.
    """
    first = models.blocks(model)[0]
    for name, holder in model.named_modules():
        for child in holder.children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                norms = [
                    sibling
                    for sibling, module in holder.named_children()
                    if "norm" in type(module).__name__.lower()
                ]
                return f"{name}.{norms[-1]}".removeprefix(".") if norms else None
    return None


@contextmanager
def _tensors(directory: Path, needed: list[list[str]]) -> Iterator[Mapping[str, torch.Tensor]]:
    """At least one tensor per list of names: from the file, or from the model if names differ."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as stored:
        present = set(stored.keys())
        if all(present.intersection(names) for names in needed):
            yield {
                name: stored.get_tensor(name)
                for names in needed
                for name in names
                if name in present
            }
            return
    yield models.load_model(directory).state_dict()


@torch.no_grad()
def _probe_norm(norm: nn.Module, width: int) -> tuple[torch.Tensor, bool]:
    """Gain (width,) of a norm, and whether it subtracts the mean.

    Both are computed from probe inputs, because some norms store their gain minus one.
    """
    sign = torch.ones(width)
    # With mean 0 and root mean square 1, LayerNorm and RMSNorm both return sign * gain + bias.
    sign[1::2] = -1.0
    plus, minus, shifted = norm(_PROBE * torch.stack([sign, -sign, sign + 1.0]))
    gain = (plus - minus) * sign / 2
    return gain, torch.allclose(shifted, plus, rtol=1e-3, atol=1e-6)
