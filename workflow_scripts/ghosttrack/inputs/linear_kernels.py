"""Linear layers on a CPU by oneDNN.

torch hands float32 products to MKL, and to oneDNN only what comes in oneDNN's form. On an AMD EPYC with AVX-512 oneDNN takes
.45 of the time, the way there and back included; on other processors the two were not compared.
"""

import os

# oneDNN keeps code and buffers for each shape of its last 1,024 products: hundreds of megabytes where texts differ in length.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import torch
from torch import Tensor
from torch.nn import functional

ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias: (..., in), (out, in), (out,) -> (..., out), as torch.nn.functional.linear.

    Float32 on a CPU goes to oneDNN. There each row of two and more comes out the same, to the last bit, whatever their number.
    A weight that is not contiguous is copied each time; a shape that is new costs a millisecond.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not ONEDNN:
        return functional.linear(x, weight, bias)
    # oneDNN takes a bias for contiguous without looking.
    return functional.linear(
        x.to_mkldnn(), weight, None if bias is None else bias.contiguous()
    ).to_dense()
