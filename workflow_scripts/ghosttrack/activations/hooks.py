"""Hooks on a running model: what its modules return, an early end of a pass, and blocks that need not run again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ghosttrack.inputs import models


class _HighestLayerReached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """Raised by the last hook, caught by the caller of the model."""


@contextmanager
def captured(modules: Sequence[nn.Module], *, stop: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the main output of each module, (batch, position, d_model), in a list that every pass refills.

    Each is a copy: some blocks add to a module's output in place after it has returned. `stop` as in `handed_over`.
    """
    outputs: list[torch.Tensor] = [torch.empty(0)] * len(modules)
    with handed_over(
        modules, lambda place, output: outputs.__setitem__(place, output.clone()), stop=stop
    ):
        yield outputs


@contextmanager
def handed_over(
    modules: Sequence[nn.Module], take: Callable[[int, torch.Tensor], None], *, stop: bool
) -> Iterator[None]:
    """Call `take` with the place of each module in `modules` and its main output as soon as it has run.

    `take` copies what it keeps: the model may add to the output in place afterwards.
    With `stop`, a forward pass ends as soon as the last module has run: give the modules in the
    order in which they run, and call the model through `run_to_highest`.
    """

    def hook(place: int) -> Callable[[nn.Module, Any, Any], None]:
        def give(_module: nn.Module, _arguments: Any, output: Any) -> None:
            take(place, models.first_tensor(output))
            if stop and place == len(modules) - 1:
                raise _HighestLayerReached

        return give

    handles = [module.register_forward_hook(hook(place)) for place, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_to_highest(model: Any, ids: torch.Tensor) -> None:
    """One forward pass under `handed_over(..., stop=True)`; nothing above the last module is computed."""
    try:
        model(input_ids=ids, use_cache=False)
    except _HighestLayerReached:
        return
    raise RuntimeError("the forward pass never reached the module it should stop at")


@contextmanager
def keeping(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Within, what the last of the blocks puts out, as it is, takes the place of the only item of a list."""
    last: list[Any] = [None]
    handles = [
        block.register_forward_hook(lambda _block, _arguments, output: last.__setitem__(0, output))
        for block in blocks[-1:]
    ]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def standing_in(blocks: Sequence[nn.Module], last: Sequence[Any]) -> Iterator[None]:
    """Within, none of the first blocks of a model computes anything: each puts out what the last of them did before.

    Args:
        blocks: consecutive, from the first on, which nothing above them reads but through the last one's output.
        last: from `keeping`, on the same tokens.
    """
    for block in blocks:
        block.forward = lambda *_arguments, **_options: last[0]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again
