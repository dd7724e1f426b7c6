"""A threshold that learns although the step it makes has no gradient.

Straight-through estimators with a rectangle of width `bandwidth` (Rajamanoharan et al., arXiv 2407.14435,
equations 9-12): for a pre-activation z and its threshold t,

    d (z H(z - t)) / dt = -t / bandwidth   and   d H(z - t) / dt = -1 / bandwidth   where |z - t| < bandwidth / 2

and 0 elsewhere. The threshold itself is learned, in fp32, not its logarithm: Adam's steps have a fixed length, and on
a logarithm they are too small to matter. L0 is held near its target by a quadratic price, coefficient * (L0 / target - 1)^2,
of the mean over the batch.
"""

import torch
from torch import Tensor

from ghosttrack.sae.encoder import Encoder, cut


class Threshold:
    """One threshold a feature, in the scale of the codes, never negative."""

    def __init__(self, d_sae: int, target: int, bandwidth: float, coefficient: float) -> None:
        self.target, self.bandwidth, self.coefficient = target, bandwidth, coefficient
        self.value = torch.zeros(d_sae)

    def start(self, encoder: Encoder) -> None:
        """The one number that leaves `target` features a row of the batch active."""
        self.value.copy_(cut(encoder, self.target))

    def penalty(self, l0: Tensor) -> tuple[Tensor, Tensor]:
        """The price of `l0` () active features a row, and its derivative."""
        excess = l0 / self.target - 1.0
        return self.coefficient * excess**2, 2.0 * self.coefficient / self.target * excess

    def near(self, pre: Tensor) -> Tensor:
        """Which pre-activations (chunk, d_sae) are near enough to teach their threshold."""
        return (pre - self.value).abs_() < 0.5 * self.bandwidth

    def near_entries(self, value: Tensor, threshold: Tensor) -> Tensor:
        """The same for the entries of a code that holds nothing below the rectangle, each with its threshold, (entries,)."""
        return value < threshold + 0.5 * self.bandwidth

    def gradient(self, threshold: Tensor, to_code: Tensor, price: Tensor) -> Tensor:
        """d loss / d threshold of near entries, from d loss / d code and the price of an active entry; any shape."""
        return (to_code * threshold + price).div_(-self.bandwidth)
