"""The way out of a fetched model: final norm and unembedding, read without the rest of its weights."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ghosttrack.inputs import models

log = logging.getLogger("ghosttrack")

# Largest difference of two logits that rounding explains, as a share of the standard deviation of a token's logits.
_ROUNDING = 1e-3
# A probe of this size leaves nothing of a norm's epsilon (1e-5 and below).
_PROBE = 1024.0


class Unembedding(NamedTuple):
    """From the residual stream h (d_model,) to logits: weight @ (gain * (h - mean h) / sigma), no mean if not `centred`.

    sigma is the root mean square of what it divides, and depends on h; biases of norm and head are left out.
    """

    weight: torch.Tensor  # (vocabulary, d_model) float32
    gain: torch.Tensor  # (d_model,) float32; ones without a final norm
    centred: bool


def read_unembedding(directory: Path) -> Unembedding | None:
    """Final norm and unembedding of a fetched model; None where they do not stand side by side in its architecture."""
    model = _outline(directory)
    head = model.get_output_embeddings()
    norm_name = _final_norm(model)
    width = model.config.get_text_config().hidden_size
    if getattr(head, "weight", None) is None or head.weight.shape[1:] != (width,):
        log.warning(
            "%s has no unembedding of the width of its blocks: no output tokens",
            type(model).__name__,
        )
        return None
    # Tied embeddings are one tensor with two names, and the file holds one of them.
    names = [
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight is head.weight
    ]
    norm = model.get_submodule(norm_name) if norm_name else None
    needed = (
        [f"{norm_name}.{name}" for name, _ in norm.named_parameters()] if norm is not None else []
    )
    with _tensors(directory, [names, *([name] for name in needed)]) as found:
        weight = next(found[name] for name in names if name in found).to(torch.float32)
        if norm is None:
            return Unembedding(weight, torch.ones(width), False)
        norm = norm.to_empty(device="cpu").to(torch.float32)
        norm.load_state_dict({name.removeprefix(f"{norm_name}."): found[name] for name in needed})
    return Unembedding(weight, *_asked(norm, width))


def ranks_tokens(model: Any, residual: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether final norm and unembedding, as `read_unembedding` finds them, rank the tokens as the model does.

    They do not where the head has further layers (RoBERTa), or another module comes between block and norm. Scales and
    caps of logits, and what is added to all logits of a token, keep the ranks.

    Args:
        residual: outputs of the last block, (tokens, d_model).
        logits: of the model, or its log-probabilities, (tokens, vocabulary).
    """
    head, norm_name = model.get_output_embeddings(), _final_norm(model)
    if getattr(head, "weight", None) is None or head.weight.shape[1:] != residual.shape[1:]:
        return False
    norm = model.get_submodule(norm_name) if norm_name else None
    if norm is not None and any(each.shape != residual.shape[1:] for each in norm.parameters()):
        return False  # a norm of something else, such as the words of several streams
    found = head(residual if norm is None else norm(residual))
    ranked = logits.float().gather(-1, found.argsort(-1))  # ascending if the ranks are equal
    fallen = ranked.cummax(-1).values - ranked
    return bool((fallen.amax(-1) <= _ROUNDING * logits.float().std(-1)).all())


def _outline(directory: Path) -> Any:
    """The model without its weights: modules, and which of them share a tensor."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def _final_norm(model: nn.Module) -> str | None:
    """Name of the last norm beside the blocks; the others, where there are any, belong to the embedding."""
    first = models.blocks(model)[0]
    for name, holder in model.named_modules():
        for child in holder.children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                norms = [
                    each
                    for each, module in holder.named_children()
                    if "norm" in type(module).__name__.lower()
                ]
                return f"{name}.{norms[-1]}".removeprefix(".") if norms else None
    return None


@contextmanager
def _tensors(directory: Path, needed: list[list[str]]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Tensors by name, of each list at least one; from the file, or from the whole model where it names them otherwise."""
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
def _asked(norm: nn.Module, width: int) -> tuple[torch.Tensor, bool]:
    """Gain (width,) of a norm, and whether it takes out the mean: asked by probes, for some keep their gain minus one."""
    sign = torch.ones(width)
    sign[
        1::2
    ] = -1.0  # mean 0 and root mean square 1, so either kind of norm gives it back times its gain, plus bias
    ahead, behind, shifted = norm(_PROBE * torch.stack([sign, -sign, sign + 1.0]))
    gain = (ahead - behind) * sign / 2
    return gain, torch.allclose(shifted, ahead, rtol=1e-3, atol=1e-6)
