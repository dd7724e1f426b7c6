"""Forward hooks: capture outputs, end a forward pass early, and replace what modules compute."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ghosttrack.inputs import models


class _HighestLayerReached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """Raised by the last hook, caught by the caller of the model."""


@contextmanager
def captured(modules: Sequence[nn.Module], *, stop: bool) -> Iterator[list[torch.Tensor]]:
    """Collect copies of the modules' outputs, (batch, position, d_model), in a list.

    Every pass refills the list. Copies, because some blocks add to a module's output in place. All
    copies are on the device of the first module's output, also if the model is spread over several.
    `stop`: see `on_output`.
    """
    outputs: list[torch.Tensor] = [torch.empty(0)] * len(modules)

    def take(index: int, output: torch.Tensor) -> None:
        device = outputs[0].device if index else output.device
        outputs[index] = output.to(device, copy=True)

    with on_output(modules, take, stop=stop):
        yield outputs


@contextmanager
def on_output(
    modules: Sequence[nn.Module], take: Callable[[int, torch.Tensor], None], *, stop: bool
) -> Iterator[None]:
    """Call `take` with the index of each module and its main output as soon as the module has run.

    `take` must copy what it keeps: the model may add to the output in place.
    With `stop`, a forward pass ends after the last module. Give the modules in the order in which
    they run, and call the model through `run_to_highest`.
    """

    def hook(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def give(_module: nn.Module, _arguments: Any, output: Any) -> None:
            take(index, models.first_tensor(output))
            if stop and index == len(modules) - 1:
                raise _HighestLayerReached

        return give

    handles = [module.register_forward_hook(hook(index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_to_highest(model: Any, ids: torch.Tensor) -> None:
    """One forward pass under `on_output(..., stop=True)`, up to the last module."""
    try:
        model(input_ids=ids, use_cache=False)
    except _HighestLayerReached:
        return
    raise RuntimeError("the forward pass never reached the module it should stop at")


@contextmanager
def last_output(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Record the raw output of the last block as the only item of a list; None without blocks."""
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
def forward_replaced(modules: Iterable[nn.Module], output: Callable[[], Any]) -> Iterator[None]:
    """Within, the modules compute nothing: each forward call returns `output()`.

    To skip the first blocks of a model, give the result of `last_output` on the same tokens. Later
    blocks must read the skipped ones through the output of the last alone.
    """
    replaced = list(modules)
    # Without a forward of its own, a module has that of its class. A module of a model that is
    # spread over several devices has one: it moves inputs to the module's device.
    own = [vars(module).get("forward") for module in replaced]
    for module in replaced:
        module.forward = lambda *_arguments, **_options: output()
    try:
        yield
    finally:
        for module, forward in zip(replaced, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
