"""Compute a model's dense layers with oneDNN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ghosttrack.inputs.linear_kernels import linear

# Minimum number of weights of a layer for which oneDNN is faster, conversion included. There is no
# minimum number of rows, because the rounding of a row would then depend on the batch.
MINIMUM_WEIGHTS = 2**18


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Conv1D(Conv1D):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.t(), self.bias)


def use_onednn(model: nn.Module) -> None:
    """Compute large dense layers, including GPT-2's Conv1D, with `linear_kernels.linear`.

    Weights, names and hooks of the layers stay the same.
    """
    module: Any
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or module.weight.numel() < MINIMUM_WEIGHTS:
            continue
        if type(module) is Conv1D:
            # Still (in, out), but stored transposed: otherwise oneDNN would copy it at every call.
            module.weight.data = module.weight.data.t().contiguous().t()
        module.__class__ = _Linear if type(module) is nn.Linear else _Conv1D


@contextmanager
def without_onednn(model: nn.Module) -> Iterator[None]:
    """Context in which the dense layers are computed as in the original model."""
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
