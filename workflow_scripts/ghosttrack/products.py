"""Matrix products on a CPU, by the faster of the two libraries that torch comes with.

torch hands float32 products to MKL, which is fast on the processors of its maker only, and to oneDNN what comes in oneDNN's
form. On an AMD EPYC with AVX-512 that takes .45 of the time, the way there and back included.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Multiplications from which on the way there and back is worth it, and those from which on it is where each call may bring a
# new shape, which costs oneDNN a millisecond once.
WORTH, WORTH_ONCE = 2**22, 2**27
_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias: (..., in), (out, in), (out,) -> (..., out), as torch.nn.functional.linear.

    Of two rows and more each comes out the same, to the last bit, whatever their number.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _ONEDNN:
        return functional.linear(x, weight, bias)
    return functional.linear(x.to_mkldnn(), weight, bias).to_dense()


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right: (rows, inner), (inner, columns) -> (rows, columns). For shapes that change."""
    return linear(left, right.t()) if left.numel() * right.shape[1] >= WORTH_ONCE else torch.mm(left, right)


def quicken(model: nn.Module) -> None:
    """Let a model's dense layers, those of GPT-2's own kind too, multiply as `linear` does where it is worth it."""
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module, module.forward, transposed=False)  # type: ignore[method-assign]
        elif type(module) is Conv1D:
            module.forward = partial(_forward, module, module.forward, transposed=True)


def _forward(layer: Any, usual: Any, x: Tensor, *, transposed: bool) -> Tensor:
    weight: Tensor = layer.weight.t() if transposed else layer.weight
    return linear(x, weight, layer.bias) if x.numel() * len(weight) >= WORTH else usual(x)
