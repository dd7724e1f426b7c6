"""The modules that output a block's residual stream, its attention output and its MLP output.

`attn_out` and `mlp_out` are defined by their function, not by module names. In every block

    resid_post = resid_pre + attn_out + mlp_out

The modules are found numerically: the model reads a few tokens, and in every block the two modules
are chosen whose outputs satisfy this equation. This works without names for parallel and sequential
blocks, norms after a sublayer (Gemma 2), sums inside a sublayer (BLOOM, MPT) and in-place additions
(Falcon). A block without two such modules is refused.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import models

if TYPE_CHECKING:
    import torch
    from torch import nn

Site = Literal["resid_post", "mlp_out", "attn_out"]

# Relative rounding errors of float32 sums: of the residual stream, whose massive activations are
# thousands of times larger than the sublayer outputs, and of the sublayer outputs.
STREAM_ROUNDING, ADDED_ROUNDING = 1e-6, 1e-4
# Maximum number of tokens that the model reads.
TOKENS = 12


class Sublayers(NamedTuple):
    """Names, within a block, of the modules that output attn_out and mlp_out."""

    attn_out: str
    mlp_out: str


class _Output(NamedTuple):
    name: str  # within the block
    value: torch.Tensor  # (position, d_model), copied when the module returned


class _Pass(NamedTuple):
    """Input, output and module outputs (in execution order) of one block in one forward pass."""

    before: torch.Tensor
    after: torch.Tensor
    outputs: list[_Output]


def site_modules(model: Any, layers: Sequence[int], site: Site) -> list[nn.Module]:
    """The modules whose outputs are `site` of the given layers.

    Args:
        model: causal language model in evaluation mode.
        layers: 0-based, ascending.
        site: resid_post, mlp_out or attn_out.
    Returns:
        One module per layer. Its output, or its first output, is (batch, position, d_model).
    Raises:
        UserError: invalid layers, or a model without this site.
    """
    blocks = models.blocks(model)
    if (
        list(layers) != sorted(set(layers))
        or not layers
        or layers[0] < 0
        or layers[-1] >= len(blocks)
    ):
        raise UserError(
            f"activations.layers: {list(layers)} must be ascending within 0..{len(blocks) - 1}, "
            "the blocks of the model"
        )
    if site == "resid_post":
        return [blocks[layer] for layer in layers]
    sublayers = find_sublayers(model, layers)
    return [
        blocks[layer].get_submodule(getattr(names, site))
        for layer, names in zip(layers, sublayers, strict=True)
    ]


def find_sublayers(model: Any, layers: Sequence[int] | None = None) -> list[Sublayers]:
    """For each of the given layers (default: all), the modules that output attn_out and mlp_out.

    Raises:
        UserError: naming a block without two such modules.
    """
    import torch

    ids = _probe(model)
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % model.config.get_text_config().vocab_size
    chosen = range(len(models.blocks(model))) if layers is None else layers
    with torch.inference_mode():
        passes = _run(model, ids, exact=True)
        changed = _run(model, other, exact=True)
    pairs = {layer: _summands(passes[layer]) for layer in {0, *chosen}}
    for layer in chosen:
        if pairs[layer] is None:
            block = models.blocks(model)[layer]
            children = ", ".join(name for name, _ in block.named_children())
            raise UserError(
                f"activations.site: block {layer} of {type(model).__name__} "
                f"({type(block).__name__}: {children}) has no two modules whose outputs sum to "
                "what the block adds to the residual stream, so attn_out and mlp_out are "
                "undefined for it; use resid_post"
            )
    first = pairs[0]
    exchanged = first is not None and not _depends_on_first_token(first[0], passes[0], changed[0])
    return [
        Sublayers(*(pair[::-1] if exchanged and pair == first else pair))
        for pair in (pairs[layer] for layer in chosen)
        if pair is not None
    ]


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Compute the blocks of a model in half precision in float32, one at a time.

    In half precision, the sum of a block is rounded more coarsely than a sublayer's output. Between
    the blocks, the hidden states keep the data type of the model.
    """
    import torch

    if model.dtype == torch.float32:
        yield
        return
    kept: dict[nn.Module, list[tuple[Any, torch.Tensor]]] = {}

    def enter(block: nn.Module, arguments: Any, options: Any) -> Any:
        kept[block] = [
            (weight, weight.data)
            for weight in (*block.parameters(), *block.buffers())
            if weight.dtype in (torch.bfloat16, torch.float16)
        ]
        for weight, values in kept[block]:
            weight.data = values.float()
        return _converted((arguments, options), torch.float32)

    def leave(block: nn.Module, _arguments: Any, output: Any) -> Any:
        for weight, values in kept.pop(block, ()):
            weight.data = values
        return _converted(output, model.dtype)

    handles = []
    for block in models.blocks(model):
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weights in kept.values():
            for weight, values in weights:
                weight.data = values


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """`value` with the floating-point tensors in it, also in tuples and dictionaries, as `dtype`."""
    import torch

    if torch.is_tensor(value):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_converted(item, dtype) for item in value)
    if type(value) is dict:
        return {name: _converted(item, dtype) for name, item in value.items()}
    return value


def require_stream(model: Any) -> None:
    """Check that the input of every block is the output of the previous block.

    Raises:
        UserError: naming the first block with another input.
    """
    import torch

    with torch.inference_mode():
        passes = _run(model, _probe(model), exact=False)
    for layer, (below, above) in enumerate(itertools.pairwise(passes), start=1):
        if not torch.allclose(below.after, above.before, rtol=1e-5, atol=1e-6):
            raise UserError(
                f"{type(model).__name__}: the input of block {layer} is not the output of block "
                f"{layer - 1}, so the model has no residual stream; choose another model"
            )


def _probe(model: Any) -> torch.Tensor:
    """Token ids that the model reads, (1, tokens)."""
    import torch

    tokens = min(TOKENS, models.max_context(model.config.to_dict()))
    return torch.arange(1, 1 + tokens)[None] * 7 % int(model.config.get_text_config().vocab_size)


def _run(model: Any, ids: torch.Tensor, *, exact: bool) -> list[_Pass]:
    """Inputs, outputs and module outputs of all blocks, copied before in-place changes.

    Args:
        exact: compute the blocks in float32, also those of a model in half precision.
    """
    import torch

    width = model.config.get_text_config().hidden_size
    shape = (1, ids.shape[1], width)
    blocks = models.blocks(model)
    entered: list[torch.Tensor | None] = [None] * len(blocks)
    left: list[torch.Tensor | None] = [None] * len(blocks)
    outputs: list[list[_Output]] = [[] for _ in blocks]

    def copied(value: Any) -> torch.Tensor | None:
        tensor = models.first_tensor(value)
        return (
            # Blocks of a model that is spread over GPUs enter on one and leave on another.
            tensor[0].detach().to("cpu", torch.float64, copy=True)
            if torch.is_tensor(tensor) and tensor.shape == shape
            else None
        )

    def enter(layer: int, arguments: Any, options: Any) -> None:
        entered[layer] = next(
            (
                tensor
                for argument in (*arguments, *options.values())
                if (tensor := copied(argument)) is not None
            ),
            None,
        )

    def note(layer: int, name: str, output: Any) -> None:
        value = copied(output)
        if not name:
            left[layer] = value
        elif value is not None:
            outputs[layer].append(_Output(name, value))

    handles = []
    for layer, block in enumerate(blocks):
        handles.append(
            block.register_forward_pre_hook(
                lambda _module, arguments, options, layer=layer: enter(layer, arguments, options),
                with_kwargs=True,
            )
        )
        for name, module in block.named_modules():
            handles.append(
                module.register_forward_hook(
                    lambda _module, _arguments, output, layer=layer, name=name: note(
                        layer, name, output
                    )
                )
            )
    try:
        # Its hooks run after those above, so they round what was already copied.
        with _in_float32(model) if exact else nullcontext():
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    passes = []
    for layer, (before, after) in enumerate(zip(entered, left, strict=True)):
        if before is None or after is None:
            raise UserError(
                f"{type(model).__name__}: block {layer} does not map one vector of {width} per "
                "token to another, so the model has no residual stream; choose another model"
            )
        passes.append(_Pass(before, after, outputs[layer]))
    return passes


def _summands(block: _Pass) -> tuple[str, str] | None:
    """The first two modules whose outputs sum to what the block adds.

    Of modules with equal outputs it is the outermost.
    """
    import torch

    added = block.after - block.before
    allowed = STREAM_ROUNDING * (
        block.before.norm(dim=1) + block.after.norm(dim=1)
    ) + ADDED_ROUNDING * added.norm(dim=1)
    runs = Counter(output.name for output in block.outputs)
    usable = [
        output for output in block.outputs if runs[output.name] == 1 and bool(output.value.any())
    ]
    fitting = [
        (first.name, second.name)
        for first, second in itertools.combinations(usable, 2)
        if bool(
            (torch.linalg.vector_norm(first.value + second.value - added, dim=1) <= allowed).all()
        )
    ]
    return min(fitting, key=lambda pair: sum(name.count(".") for name in pair), default=None)


def _depends_on_first_token(name: str, original: _Pass, changed: _Pass) -> bool:
    """Whether a change of the first token changes a module's output for later tokens, in block 0.

    Only attention mixes tokens. Sequential blocks run attention first. In a parallel block the MLP
    does not depend on other tokens. Therefore the first of the two sublayers is attention if and
    only if its output for later tokens changes.
    """
    import torch

    before, after = (
        next(output.value[1:] for output in block.outputs if output.name == name)
        for block in (original, changed)
    )
    return not torch.allclose(before, after, rtol=1e-6, atol=1e-9)
