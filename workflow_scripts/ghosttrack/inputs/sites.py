"""The modules whose outputs are a block's residual stream, and what its attention and its MLP add to it.

`attn_out` and `mlp_out` are defined by what they do, not by a module's name: within every block

    resid_post = resid_pre + attn_out + mlp_out

The modules are therefore searched for by numbers: the model reads a few tokens, and of every block the two modules are
taken whose outputs add up. Parallel and sequential blocks, norms behind a sublayer (Gemma 2), sums inside the sublayer
(BLOOM, MPT) and additions in place (Falcon) need no names that way. A block without two such modules is refused.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import models

if TYPE_CHECKING:
    import torch
    from torch import nn

Site = Literal["resid_post", "mlp_out", "attn_out"]

# Rounding of float32 sums: of the stream, whose massive activations are thousands of times larger than what is added,
# and of what is added.
STREAM_ROUNDING, ADDED_ROUNDING = 1e-6, 1e-4
# Tokens of the search, at most.
TOKENS = 12


class Sublayers(NamedTuple):
    """Names, within a block, of the modules whose outputs its attention and its MLP add to the residual stream."""

    attn_out: str
    mlp_out: str


class _Output(NamedTuple):
    name: str  # within the block
    value: torch.Tensor  # (position, d_model) as it was when the module returned


class _Pass(NamedTuple):
    """One block of one forward pass: what entered it, what left it, and what its modules returned, in running order."""

    before: torch.Tensor
    after: torch.Tensor
    outputs: list[_Output]


def site_modules(model: Any, layers: Sequence[int], site: Site) -> list[nn.Module]:
    """The modules whose outputs are `site` of some blocks.

    Args:
        model: causal language model in evaluation mode.
        layers: 0-based, ascending.
        site: resid_post, or what is added to it: mlp_out or attn_out.
    Returns:
        One module a layer; its output, or the first of its outputs, is (batch, position, d_model).
    Raises:
        UserError: no such layers, or a model whose blocks do not give the site.
    """
    blocks = models.blocks(model)
    if (
        list(layers) != sorted(set(layers))
        or not layers
        or layers[0] < 0
        or layers[-1] >= len(blocks)
    ):
        raise UserError(
            f"activations.layers: {list(layers)} must be ascending within 0..{len(blocks) - 1}, the model's blocks"
        )
    if site == "resid_post":
        return [blocks[layer] for layer in layers]
    sublayers = find_sublayers(model, layers)
    return [
        blocks[layer].get_submodule(getattr(names, site))
        for layer, names in zip(layers, sublayers, strict=True)
    ]


def find_sublayers(model: Any, layers: Sequence[int] | None = None) -> list[Sublayers]:
    """The two modules of each of some blocks, or of all, whose outputs add up to what the block adds to the stream.

    Raises:
        UserError: naming a block that has no two such modules.
    """
    import torch

    ids = _probe(model)
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % model.config.get_text_config().vocab_size
    chosen = range(len(models.blocks(model))) if layers is None else layers
    with torch.inference_mode():
        passes = _run(model, ids)
        changed = _run(model, other)
    pairs = {layer: _add_up(passes[layer]) for layer in {0, *chosen}}
    for layer in chosen:
        if pairs[layer] is None:
            block = models.blocks(model)[layer]
            children = ", ".join(name for name, _ in block.named_children())
            raise UserError(
                f"activations.site: block {layer} of {type(model).__name__} ({type(block).__name__}: {children}) has no two "
                "modules whose outputs are all that it adds to the residual stream, so attn_out and mlp_out are not "
                "defined for it; use resid_post"
            )
    first = pairs[0]
    exchanged = first is not None and not _reached(first[0], passes[0], changed[0])
    return [
        Sublayers(*(pair[::-1] if exchanged and pair == first else pair))
        for pair in (pairs[layer] for layer in chosen)
        if pair is not None
    ]


def require_stream(model: Any) -> None:
    """Refuse a model whose blocks do not hand one residual stream on, each to the next.

    Raises:
        UserError: naming the first block that does not read what the one below returned.
    """
    import torch

    with torch.inference_mode():
        passes = _run(model, _probe(model))
    for layer, (below, above) in enumerate(itertools.pairwise(passes), start=1):
        if not torch.allclose(below.after, above.before, rtol=1e-5, atol=1e-6):
            raise UserError(
                f"{type(model).__name__}: block {layer} does not read what block {layer - 1} returns, so its blocks hold no "
                "residual stream; choose another model"
            )


def _probe(model: Any) -> torch.Tensor:
    """Token ids of the search, (1, tokens)."""
    import torch

    tokens = min(TOKENS, models.max_context(model.config.to_dict()))
    return torch.arange(1, 1 + tokens)[None] * 7 % int(model.config.get_text_config().vocab_size)


def _run(model: Any, ids: torch.Tensor) -> list[_Pass]:
    """Every block's input, output and its modules' outputs on one sequence, copied before anything adds to them in place."""
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
            tensor[0].detach().double().clone()
            if torch.is_tensor(tensor) and tensor.shape == shape
            else None
        )

    def enter(layer: int, arguments: Any, options: Any) -> None:
        entered[layer] = next(
            (
                tensor
                for each in (*arguments, *options.values())
                if (tensor := copied(each)) is not None
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
        model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    passes = []
    for layer, (before, after) in enumerate(zip(entered, left, strict=True)):
        if before is None or after is None:
            raise UserError(
                f"{type(model).__name__}: block {layer} does not take and return one vector of {width} for each token, so "
                "there is no residual stream to read; choose another model"
            )
        passes.append(_Pass(before, after, outputs[layer]))
    return passes


def _add_up(one: _Pass) -> tuple[str, str] | None:
    """The first two modules in running order whose outputs add up; of modules with equal outputs the outermost."""
    import torch

    added = one.after - one.before
    allowed = STREAM_ROUNDING * (
        one.before.norm(dim=1) + one.after.norm(dim=1)
    ) + ADDED_ROUNDING * added.norm(dim=1)
    runs = Counter(output.name for output in one.outputs)
    usable = [each for each in one.outputs if runs[each.name] == 1 and bool(each.value.any())]
    fitting = [
        (first.name, second.name)
        for first, second in itertools.combinations(usable, 2)
        if bool(
            (torch.linalg.vector_norm(first.value + second.value - added, dim=1) <= allowed).all()
        )
    ]
    return min(fitting, key=lambda pair: sum(name.count(".") for name in pair), default=None)


def _reached(name: str, one: _Pass, changed: _Pass) -> bool:
    """Whether a change of the first token reaches what a module of block 0 returns for later tokens.

    It reaches them through attention alone. Sequential blocks run attention first, and in a parallel block the MLP does
    not see the first token, so the first of two sublayers is attention if, and only if, it is reached.
    """
    import torch

    before, after = (
        next(each.value[1:] for each in found.outputs if each.name == name)
        for found in (one, changed)
    )
    return not torch.allclose(before, after, rtol=1e-6, atol=1e-9)
