"""Learned thresholds: pseudo-gradients of a step function, and the L0 penalty.

Straight-through estimators with a rectangular kernel of width `bandwidth` (Rajamanoharan et al.,
arXiv 2407.14435, equations 9-12). For a pre-activation z and its threshold t,

    d (z H(z - t)) / dt = -t / bandwidth   and   d H(z - t) / dt = -1 / bandwidth

where |z - t| < bandwidth / 2, and 0 elsewhere. The fp32 threshold itself is learned, not its
logarithm: Adam's steps have a fixed length, which is too small on a logarithm to have an effect.
A quadratic penalty, coefficient * (L0 / target - 1)^2 of the mean L0 of the batch, holds L0 near
its target.
"""

import torch
from torch import Tensor

from ghosttrack.sae.batch_threshold import batch_threshold
from ghosttrack.sae.encoder import Encoder


class Threshold:
    """One threshold per feature, in the scale of the codes, never negative."""

    def __init__(self, d_sae: int, target: int, bandwidth: float, coefficient: float) -> None:
        self.target, self.bandwidth, self.coefficient = target, bandwidth, coefficient
        self.value = torch.zeros(d_sae)

    def initialise(self, encoder: Encoder) -> None:
        """Set all thresholds to the value with `target` active features per row on average."""
        self.value.copy_(batch_threshold(encoder, self.target))

    def penalty(self, l0: Tensor) -> tuple[Tensor, Tensor]:
        """The L0 penalty of `l0` () active features per row, and its derivative."""
        excess = l0 / self.target - 1.0
        return self.coefficient * excess**2, 2.0 * self.coefficient / self.target * excess

    def in_kernel(self, pre: Tensor) -> Tensor:
        """Which pre-activations (chunk, d_sae) are in the kernel around their threshold."""
        return (pre - self.value).abs_() < 0.5 * self.bandwidth

    def entries_in_kernel(self, value: Tensor, threshold: Tensor) -> Tensor:
        """The same for the entries (entries,) of a code that has no entry below the kernel."""
        return value < threshold + 0.5 * self.bandwidth

    def gradient(self, threshold: Tensor, code_grad: Tensor, penalty_grad: Tensor) -> Tensor:
        """d loss / d threshold of entries in the kernel, any shape.

        Args:
            threshold: of the entries.
            code_grad: d loss / d code.
            penalty_grad: d L0 penalty / d number of active entries.
        """
        return (code_grad * threshold + penalty_grad).div_(-self.bandwidth)
