"""The CPU back end: one dense product and four sparse ones, without autograd.

`sparse` has the kernels. The encoder's product runs one micro-batch at a time; all later products
touch active entries only.
"""

import torch
from torch import Tensor

from ghosttrack.inputs.linear_kernels import linear
from ghosttrack.sae import sparse
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.encoder import MicroBatches
from ghosttrack.sae.parameters import Parameters, Pass, row_squares


class SparseBackEnd:
    """Passes whose cost is that of the encoder's product and of the active entries."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def encoder(
        self, parameters: Parameters, centred: Tensor, selected: Tensor | None = None
    ) -> MicroBatches:
        """Pre-activations of centred (batch, d_model); keeps those of the features `selected`."""
        return MicroBatches(parameters, centred, self.micro_batch, linear, selected)

    def decode_without_bias(
        self, parameters: Parameters, architecture: Architecture, x: Tensor
    ) -> Tensor:
        """Code of x (batch, d_model) times decoder; no bias is subtracted or added."""
        return sparse.decode(architecture.select(self.encoder(parameters, x)), parameters.W_dec)

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,
    ) -> Pass:
        """Loss and gradients for x (batch, d_model), and pre-activations of the features `dead`."""
        W_dec, b_dec = parameters.W_dec, parameters.b_dec
        batch, d_model = x.shape
        prefixes = len(architecture.prefix_sizes)
        centred = x - b_dec  # (batch, d_model)
        encoder = self.encoder(parameters, centred, dead)
        code = architecture.select(encoder)
        # Each row becomes one row per prefix, so that the same products serve all architectures.
        # The order of the entries does not change.
        split = sparse.split_rows(code, architecture.prefix_sizes)
        transposed = sparse.transpose(code)
        by_prefix = (
            transposed if prefixes == 1 else transposed._replace(row=split.row[transposed.order])
        )
        scale = 2.0 / (batch * d_model * prefixes)  # d loss / d xhat = scale * error
        slices = sparse.column_slices(W_dec, code.value.numel())
        squares = torch.zeros(prefixes, dtype=torch.float64)
        products = sparse.PatternProducts(by_prefix, batch * prefixes)
        scaled = transposed.value * scale
        error, encoder_grad, decoder_grad, bias_grad = [], [], [], []  # slice by slice
        for columns in slices:
            decoder = W_dec[:, columns].contiguous()
            errors = sparse.decode(split, decoder).view(batch, prefixes, -1)
            errors[:, 0].sub_(centred[:, columns])
            # xhat - x of each prefix: the sum over its features.
            for prefix in range(1, prefixes):
                errors[:, prefix].add_(errors[:, prefix - 1])
            squares += row_squares(errors).sum(0)
            error.append(errors[:, -1])
            # A feature's gradient: the sum over the prefixes that contain it.
            for prefix in range(prefixes - 1, 0, -1):
                errors[:, prefix - 1].add_(errors[:, prefix])
            bias_grad.append(errors[:, 0].sum(0))
            errors = errors.view(batch * prefixes, -1)
            products.add(decoder, errors)
            decoder_grad.append(sparse.transposed_product(by_prefix, scaled, errors))
        code_grad = products.values().mul_(scale)  # (entries,), feature-major as all below
        loss = squares.sum() / (batch * d_model * prefixes)
        l0 = torch.tensor(code.value.numel() / code.rows, dtype=torch.float64)
        active_rows, pre_grad, threshold_grad = transposed.entries, code_grad, None
        if (threshold := architecture.threshold) is not None:
            active = transposed.value > 0
            l0 = active.sum().double() / batch
            active_rows = sparse.feature_sums(transposed, active.long())
            penalty, slope = threshold.penalty(l0)
            loss = loss + penalty
            thresholds = threshold.value[transposed.column]
            grads = threshold.gradient(thresholds, code_grad, (slope / batch).to(x.dtype))
            threshold_grad = sparse.feature_sums(
                transposed, grads * threshold.entries_in_kernel(transposed.value, thresholds)
            )
            pre_grad = code_grad * active
        for columns in slices:
            encoder_grad.append(
                sparse.transposed_product(transposed, pre_grad, centred[:, columns].contiguous())
            )
        gradients = Parameters(
            W_enc=_joined(encoder_grad),
            W_dec=_joined(decoder_grad),
            b_enc=sparse.feature_sums(transposed, pre_grad),
            b_dec=_joined(bias_grad).mul_(scale),
        )
        # <gradient of a decoder row, the row> is a sum over the entries: no other pass is needed.
        decoder_radial = sparse.feature_sums(transposed, transposed.value * code_grad)
        return Pass(
            loss,
            squares[-1],
            l0,
            _joined(error),
            active_rows,
            gradients,
            decoder_radial,
            threshold_grad,
            encoder.selected_pre,
        )


def _joined(slices: list[Tensor]) -> Tensor:
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=-1)
