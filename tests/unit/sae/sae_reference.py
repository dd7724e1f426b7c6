"""Reference losses of all architectures, as in the papers, with dense matrices and autograd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghosttrack.sae.parameters import Parameters

AUX = 1 / 32


class Kind(NamedTuple):
    """An architecture and the numbers that go with it."""

    name: str
    k: int
    prefix_sizes: tuple[int, ...] = ()
    bandwidth: float = 0.0
    coefficient: float = 0.0


class _Jump(torch.autograd.Function):
    """z where z exceeds t, else 0; the threshold's pseudo-derivative is a rectangle."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.bandwidth = bandwidth
        return z * (z > t)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        z, t = ctx.saved_tensors
        inside = ((z - t) / ctx.bandwidth).abs() < 0.5
        return (z > t) * grads[0], (-t / ctx.bandwidth * inside * grads[0]).sum(0), None


class _Step(torch.autograd.Function):
    """1 where z exceeds t, else 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.bandwidth = bandwidth
        return (z > t).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        z, t = ctx.saved_tensors
        inside = ((z - t) / ctx.bandwidth).abs() < 0.5
        return None, (inside * grads[0] / -ctx.bandwidth).sum(0), None


def code_of(kind: Kind, pre: Tensor, threshold: Tensor) -> Tensor:
    """The code (rows, d_sae) by a full sort, or by the thresholds."""
    if kind.name == "jumprelu":
        jumped: Tensor = _Jump.apply(pre, threshold, kind.bandwidth)  # type: ignore[no-untyped-call]
        return jumped
    flat, count = (pre, kind.k) if kind.name == "topk" else (pre.reshape(1, -1), kind.k * len(pre))
    top = flat.topk(count, dim=1)
    return torch.zeros_like(flat).scatter(1, top.indices, top.values.relu()).reshape_as(pre)


def loss_of(
    kind: Kind, parameters: Parameters, threshold: Tensor, x: Tensor, dead: Tensor
) -> Tensor:
    """The whole loss, (); gradients flow to the parameters and the threshold."""
    W_enc, W_dec, b_enc, b_dec = parameters
    d_model = x.shape[1]
    pre = (x - b_dec.detach()) @ W_enc.t() + b_enc
    code = code_of(kind, pre, threshold)
    sizes = kind.prefix_sizes or (len(W_dec),)
    errors = [code[:, :end] @ W_dec[:end] + b_dec - x for end in sizes]
    loss = torch.stack([error.pow(2).sum(1).mean() / d_model for error in errors]).mean()
    if kind.name == "jumprelu":
        l0 = _Step.apply(pre, threshold, kind.bandwidth).sum(1).mean()  # type: ignore[no-untyped-call]
        loss = loss + kind.coefficient * (l0 / kind.k - 1) ** 2
    if dead.numel():
        residual = -errors[-1].detach()
        rest = pre[:, dead]
        strongest = rest.topk(min(d_model // 2, dead.numel()), dim=1)
        rest = torch.zeros_like(rest).scatter(1, strongest.indices, strongest.values)
        total_ss = (residual - residual.mean(0)).pow(2).sum(1).mean()
        loss = loss + AUX * (rest @ W_dec[dead] - residual).pow(2).sum(1).mean() / total_ss
    return loss
