"""Linear layers on a CPU with oneDNN.

torch computes float32 matrix products with MKL, unless a tensor has oneDNN's layout. On an AMD EPYC
with AVX-512, oneDNN is 2.2 times faster, conversion included. Other processors have not been
measured.
"""

import os

# By default oneDNN caches code and buffers for the last 1,024 shapes: hundreds of megabytes if
# texts differ in length.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import torch
from torch import Tensor
from torch.nn import functional

ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]

# The same product without copies of x and of the result; it has no gradient.
_DIRECT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if ONEDNN else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias: (..., in), (out, in), (out,) -> (..., out), as functional.linear.

    Float32 on a CPU is computed by oneDNN. With two or more rows, a row's result is bitwise
    independent of their number. A weight that is not contiguous is copied at every call, and a new
    shape costs a millisecond.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not ONEDNN:
        return functional.linear(x, weight, bias)
    # oneDNN assumes that weight and bias are contiguous.
    bias = None if bias is None else bias.contiguous()
    if _DIRECT is not None and not _needs_gradient(x, weight, bias):
        product: Tensor = _DIRECT(x, weight.contiguous(), bias, "none", [], "")
        return product
    return functional.linear(x.to_mkldnn(), weight, bias).to_dense()


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
