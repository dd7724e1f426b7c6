"""The sparse back end: one dense product, four sparse ones, no graph of operations. For CPUs.

`sparse` has the kernels. The encoder runs a micro-batch at a time; what follows holds active entries only.
"""

import torch
from torch import Tensor

from ghosttrack.sae import sparse
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.encoder import MicroBatches, exact_product
from ghosttrack.sae.parameters import Parameters, Pass
from ghosttrack.sae.sparse import Code


class SparseBackEnd:
    """Passes whose cost is that of the encoder's product and of the active entries."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def encoder(self, parameters: Parameters, centred: Tensor) -> MicroBatches:
        """Pre-activations of centred (batch, d_model)."""
        return MicroBatches(parameters, centred, self.micro_batch, exact_product)

    def guess(self, parameters: Parameters, architecture: Architecture, x: Tensor) -> Tensor:
        """Code of x (batch, d_model) times decoder, no biases subtracted or added."""
        return sparse.decode(architecture.select(self.encoder(parameters, x)), parameters.W_dec)

    def backward(self, parameters: Parameters, architecture: Architecture, x: Tensor) -> Pass:
        """Loss and gradients for x (batch, d_model)."""
        W_dec, b_dec = parameters.W_dec, parameters.b_dec
        batch, d_model = x.shape
        parts = len(architecture.ends)
        centred = x - b_dec  # (batch, d_model)
        code = architecture.select(self.encoder(parameters, centred))
        # A row with nested parts is as many rows, so that the same products serve; entries keep their order.
        split = sparse.split_rows(code, architecture.ends)
        errors = sparse.decode(split, W_dec).view(batch, parts, d_model)
        errors[:, 0].add_(b_dec).sub_(x)
        for part in range(1, parts):
            errors[:, part].add_(errors[:, part - 1])  # xhat - x with all features up to the end of the part
        squares = [errors[:, part].pow(2).sum().double() for part in range(parts)]
        residual = -errors[:, -1]
        errors.mul_(2.0 / (batch * d_model * parts))  # d loss / d xhat of each part
        for part in range(parts - 1, 0, -1):
            errors[:, part - 1].add_(errors[:, part])  # a feature has a say in its own part and all after it
        slopes = errors.view(batch * parts, d_model)
        transposed = sparse.transpose(code)
        of_slopes = transposed if parts == 1 else transposed._replace(row=split.row[transposed.order])
        to_code = sparse.products_on_pattern(of_slopes, slopes, W_dec)  # (entries,), like all that follow by feature
        loss = torch.stack(squares).sum() / (batch * d_model * parts)
        l0, active_rows, to_pre, to_threshold = _counted(code), transposed.entries, to_code, None
        if (threshold := architecture.threshold) is not None:
            active = transposed.value > 0
            l0, active_rows = active.sum().double() / batch, sparse.feature_sums(transposed, active.long())
            price, slope = threshold.penalty(l0)
            loss = loss + price
            own = threshold.value[transposed.column]
            every = threshold.gradient(own, to_code, (slope / batch).to(x.dtype))
            to_threshold = sparse.feature_sums(transposed, every * threshold.near_entries(transposed.value, own))
            to_pre = to_code * active
        gradients = Parameters(
            W_enc=sparse.transposed_product(transposed, to_pre, centred),
            W_dec=sparse.transposed_product(of_slopes, transposed.value, slopes),
            b_enc=sparse.feature_sums(transposed, to_pre),
            b_dec=errors[:, 0].sum(0),
        )
        # <gradient of a decoder row, the row> needs no new pass: it is a sum over the entries at hand.
        along = sparse.feature_sums(transposed, transposed.value * to_code)
        return Pass(loss, squares[-1], l0, residual, active_rows, gradients, along, to_threshold)


def _counted(code: Code) -> Tensor:
    return torch.tensor(code.value.numel() / code.rows, dtype=torch.float64)
