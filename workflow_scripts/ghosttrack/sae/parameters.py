"""Weights in training form, and what one pass over a batch finds out about them."""

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
        """Random unit directions, the encoder equal to the decoder, biases zero."""
        directions = torch.randn(d_sae, d_model, generator=generator, dtype=dtype)
        directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        zeros = torch.zeros(d_sae, dtype=dtype), torch.zeros(d_model, dtype=dtype)
        return cls(directions.clone(), directions, *zeros)

    def to(self, device: torch.device | str) -> "Parameters":
        """The same on another device."""
        return Parameters(*(tensor.to(device) for tensor in self))


class Pass(NamedTuple):
    """One batch forward and backward, without AuxK. Sums of squares are float64, nothing waits for the device."""

    loss: Tensor  # () mean over the nested parts of the mean of |xhat - x|^2 / d_model, and the L0 penalty
    squared: Tensor  # () sum |xhat - x|^2, all features
    l0: Tensor  # () active features a row
    error: Tensor  # (batch, d_model) xhat - x, all features
    active_rows: Tensor  # (d_sae,) int64, in how many rows each feature was active
    gradients: Parameters  # b_dec: as the decoder's bias only
    along: Tensor  # (d_sae,) <gradient, W_dec> of each decoder row: the part that only changes its norm
    threshold: Tensor | None  # (d_sae,) gradient of a learned threshold
    dead_pre: Tensor | None = (
        None  # (batch, dead) pre-activations of the dead features; None: not kept
    )


def row_squares(x: Tensor) -> Tensor:
    """Sum of squares of each row (..., columns) -> (...), float64. Over all rows at once torch would add up in float32, one after
    the other, and lose up to percents of a large batch.
    """
    squares: Tensor = torch.linalg.vector_norm(x, dim=-1).double().square()
    return squares
