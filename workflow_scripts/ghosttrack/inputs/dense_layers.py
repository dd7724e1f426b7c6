"""A model's dense layers by oneDNN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ghosttrack.inputs.linear_kernels import linear

# Weights from which on the way to oneDNN and back is worth it. Not a number of rows: a row's rounding would depend on the batch.
WORTH = 2**18


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Conv1D(Conv1D):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.t(), self.bias)


def quicken(model: nn.Module) -> None:
    """Let the large dense layers of a model, and those of GPT-2's own kind, multiply as `products.linear` does.

    They stay what they are, weights, names and hooks included.
    """
    module: Any
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or module.weight.numel() < WORTH:
            continue
        if type(module) is Conv1D:
            # (in, out) as before, stored the other way round: oneDNN would copy it at every call.
            module.weight.data = module.weight.data.t().contiguous().t()
        module.__class__ = _Linear if type(module) is nn.Linear else _Conv1D


@contextmanager
def unquickened(model: nn.Module) -> Iterator[None]:
    """Within, the dense layers multiply as the library's own do."""
    modules: list[Any] = [
        module for module in model.modules() if type(module) in (_Linear, _Conv1D)
    ]
    kinds = [type(module) for module in modules]
    for module in modules:
        module.__class__ = nn.Linear if type(module) is _Linear else Conv1D
    try:
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind
