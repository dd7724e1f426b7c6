"""Weights in training form, and the result of a forward and backward pass over a batch."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """Weights in training form, or their gradients."""

    W_enc: Tensor  # (d_sae, d_model)
    W_dec: Tensor  # (d_sae, d_model), rows of unit norm
    b_enc: Tensor  # (d_sae,)
    b_dec: Tensor  # (d_model,)

    @classmethod
    def tied(
        cls,
        d_model: int,
        d_sae: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Random unit directions with the encoder equal to the decoder, and zero biases."""
        directions = torch.randn(d_sae, d_model, generator=generator, dtype=dtype)
        directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        zeros = torch.zeros(d_sae, dtype=dtype), torch.zeros(d_model, dtype=dtype)
        return cls(directions.clone(), directions, *zeros)

    def to(self, device: torch.device | str) -> "Parameters":
        """Copy to another device."""
        return Parameters(*(tensor.to(device) for tensor in self))


class Pass(NamedTuple):
    """One forward and backward pass over a batch, without AuxK. Sums of squares are float64."""

    # () mean over prefixes and rows of |xhat - x|^2 / d_model, plus the L0 penalty
    loss: Tensor
    residual_ss: Tensor  # () sum |xhat - x|^2, all features
    l0: Tensor  # () active features per row
    error: Tensor  # (batch, d_model) xhat - x, all features
    active_rows: Tensor  # (d_sae,) int64, rows in which each feature is active
    gradients: Parameters  # b_dec: as the decoder's bias only
    # (d_sae,) <gradient, W_dec> per decoder row: the radial component, which only changes its norm
    decoder_radial: Tensor
    threshold: Tensor | None  # (d_sae,) gradient of a learned threshold
    # (batch, dead) pre-activations of the dead features; None: not kept
    dead_pre: Tensor | None = None


def row_squares(x: Tensor) -> Tensor:
    """Sum of squares of each row: (..., columns) -> (...), float64.

    A sum over all rows at once runs sequentially in float32 and loses up to a few percent of a
    large batch.
    """
    squares: Tensor = torch.linalg.vector_norm(x, dim=-1).double().square()
    return squares
