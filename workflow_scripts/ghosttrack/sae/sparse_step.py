"""The sparse back end: one dense product, four sparse ones, no graph of operations. For CPUs.

`sparse` has the kernels. The encoder runs a micro-batch at a time; what follows holds active entries only.
"""

import torch
from torch import Tensor

from ghosttrack.inputs.linear_kernels import linear
from ghosttrack.sae import sparse
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.encoder import MicroBatches
from ghosttrack.sae.parameters import Parameters, Pass, row_squares
from ghosttrack.sae.sparse import Code


class SparseBackEnd:
    """Passes whose cost is that of the encoder's product and of the active entries."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def encoder(
        self, parameters: Parameters, centred: Tensor, some: Tensor | None = None
    ) -> MicroBatches:
        """Pre-activations of centred (batch, d_model); those of the features `some` are kept."""
        return MicroBatches(parameters, centred, self.micro_batch, linear, some)

    def guess(self, parameters: Parameters, architecture: Architecture, x: Tensor) -> Tensor:
        """Code of x (batch, d_model) times decoder, no biases subtracted or added."""
        return sparse.decode(architecture.select(self.encoder(parameters, x)), parameters.W_dec)

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,
    ) -> Pass:
        """Loss and gradients for x (batch, d_model), and the pre-activations of the features `dead`."""
        W_dec, b_dec = parameters.W_dec, parameters.b_dec
        batch, d_model = x.shape
        parts = len(architecture.ends)
        centred = x - b_dec  # (batch, d_model)
        encoder = self.encoder(parameters, centred, dead)
        code = architecture.select(encoder)
        # A row with nested parts is as many rows, so that the same products serve; entries keep their order.
        split = sparse.split_rows(code, architecture.ends)
        transposed = sparse.transpose(code)
        by_part = transposed if parts == 1 else transposed._replace(row=split.row[transposed.order])
        scale = 2.0 / (batch * d_model * parts)  # of an error to its slope, d loss / d xhat
        slices = sparse.column_slices(W_dec, code.value.numel())
        squares, products = (
            torch.zeros(parts, dtype=torch.float64),
            sparse.PatternProducts(by_part, batch * parts),
        )
        scaled = transposed.value * scale
        last, to_encoder, to_decoder, to_bias = [], [], [], []  # slice by slice
        for columns in slices:
            decoder = W_dec[:, columns].contiguous()
            errors = sparse.decode(split, decoder).view(batch, parts, -1)
            errors[:, 0].sub_(centred[:, columns])
            for part in range(1, parts):
                errors[:, part].add_(
                    errors[:, part - 1]
                )  # xhat - x with all features up to the end of the part
            squares += row_squares(errors).sum(0)
            last.append(errors[:, -1])
            for part in range(parts - 1, 0, -1):
                errors[:, part - 1].add_(
                    errors[:, part]
                )  # a feature has a say in its own part and all after it
            to_bias.append(errors[:, 0].sum(0))
            errors = errors.view(batch * parts, -1)
            products.add(decoder, errors)
            to_decoder.append(sparse.transposed_product(by_part, scaled, errors))
        to_code = products.values().mul_(scale)  # (entries,), like all that follow by feature
        loss = squares.sum() / (batch * d_model * parts)
        l0, active_rows, to_pre, to_threshold = _counted(code), transposed.entries, to_code, None
        if (threshold := architecture.threshold) is not None:
            active = transposed.value > 0
            l0, active_rows = (
                active.sum().double() / batch,
                sparse.feature_sums(transposed, active.long()),
            )
            price, slope = threshold.penalty(l0)
            loss = loss + price
            own = threshold.value[transposed.column]
            every = threshold.gradient(own, to_code, (slope / batch).to(x.dtype))
            to_threshold = sparse.feature_sums(
                transposed, every * threshold.near_entries(transposed.value, own)
            )
            to_pre = to_code * active
        for columns in slices:
            to_encoder.append(
                sparse.transposed_product(transposed, to_pre, centred[:, columns].contiguous())
            )
        gradients = Parameters(
            W_enc=_joined(to_encoder),
            W_dec=_joined(to_decoder),
            b_enc=sparse.feature_sums(transposed, to_pre),
            b_dec=_joined(to_bias).mul_(scale),
        )
        # <gradient of a decoder row, the row> needs no new pass: it is a sum over the entries at hand.
        along = sparse.feature_sums(transposed, transposed.value * to_code)
        error = _joined(last)
        return Pass(
            loss,
            squares[-1],
            l0,
            error,
            active_rows,
            gradients,
            along,
            to_threshold,
            encoder.of_some,
        )


def _counted(code: Code) -> Tensor:
    return torch.tensor(code.value.numel() / code.rows, dtype=torch.float64)


def _joined(slices: list[Tensor]) -> Tensor:
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=-1)
