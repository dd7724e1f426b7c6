"""One optimizer step with a hand-written backward pass, in one of two back ends.

    pre  = (x - b_dec) W_enc^T + b_enc    b_dec is held constant here
    code = active entries of pre          as the architecture selects
    xhat = code W_dec + b_dec             for each prefix of the dictionary
    loss = mean over prefixes and rows of |xhat - x|^2 / d_model + coefficient * AuxK + L0 penalty

b_dec gets its gradient as the decoder's bias only. With the encoder's part of the gradient, the FVU
is 2 % higher after 1,746 steps on a real layer and equal after 1,164; the median FVU of a token is
1 and 4 % lower (four seeds each).

x is centred and scaled so that the mean of |x|^2 is d_model: the first term of the loss is the
fraction of variance unexplained. AuxK (Gao et al., arXiv 2406.04093): the dead features alone
reconstruct the residual r = x - xhat, which is held constant, with the loss
|rhat - r|^2 / |r - mean r|^2. Their largest pre-activations count, whatever their sign: a feature
that is negative on every row would otherwise never recover. Both weights are stored
(d_sae, d_model), one row per feature, so that a gather reads whole rows.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.sae.adam import Adam
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.dense_step import CudaGraph, DenseBackEnd, Precision
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import largest
from ghosttrack.sae.parameters import Parameters, Pass, row_squares
from ghosttrack.sae.sparse_step import SparseBackEnd

# Every gradient is scaled to about this norm before the decoder's projection. The large gradients
# of the first steps would otherwise shrink all later steps for as long as Adam's second moment
# remembers them (FVU .131 instead of .121 after 1,200 steps on a real layer, with the usual memory
# of a thousand steps).
GRADIENT_NORM = 1.0
# Every eighth row of a matrix is sampled for the gradient norm. All rows take 2 % of a step and did
# not change the FVU (four seeds).
NORM_ROW_STRIDE = 8
# Learning rate of the thresholds relative to the weights. An Adam step moves a pre-activation by
# the learning rate times the sum of |x|, a threshold by the learning rate alone, so a threshold
# needs larger steps. Of 1, 3, 10 and 30, 3 left the fewest dead features at an equal FVU (planted
# directions and a real layer).
THRESHOLD_RATE_FACTOR = 3.0
# AuxK is divided by the total sum of squares of the residuals. If that is below this fraction of
# their uncentred sum of squares, only rounding is left of it, and AuxK is 0.
MIN_TOTAL_SS = 1e-5
# Rows per chunk of AuxK. Not the micro-batch: a sum over other chunks rounds differently.
AUXILIARY_ROWS = 1024


class BackEnd(Protocol):
    """How a pass over one batch is computed. Results of back ends differ by rounding only."""

    micro_batch: int

    def encoder(self, parameters: Parameters, centred: Tensor) -> Encoder:
        """Pre-activations of centred (batch, d_model)."""

    def decode_without_bias(
        self, parameters: Parameters, architecture: Architecture, x: Tensor
    ) -> Tensor:
        """Code of x (batch, d_model) times decoder; no bias is subtracted or added."""

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,
    ) -> Pass:
        """Loss and gradients for x (batch, d_model), without AuxK.

        The result may keep the pre-activations of the features `dead`, which AuxK needs.
        """


def back_end(device: torch.device, micro_batch: int, precision: Precision = "tf32") -> BackEnd:
    """The back end for the device: dense on a GPU, sparse on a CPU."""
    return (
        DenseBackEnd(micro_batch, precision)
        if device.type == "cuda"
        else SparseBackEnd(micro_batch)
    )


class StepResult(NamedTuple):
    """Metrics of one step."""

    loss: float  # all terms
    fvu: float  # sum |xhat - x|^2 / sum |x|^2 of the batch
    l0: float  # active features per row
    dead: int  # dead features


class Engine:
    """Parameters, Adam and the dead-feature counters of one dictionary; `step` advances them.

    Args:
        parameters: changed in place, and never moved in memory.
        architecture: the activation rule; learned thresholds are changed in place too.
        aux_coefficient: weight of AuxK.
        dead_after_tokens: a feature that was silent for this many tokens is dead.
        back_end: sparse or dense.
        beta2: decay of Adam's second moment.
        cuda_graph: on a GPU, run the pass as one CUDA graph. All batches must have the same size.
        frozen_decoder: keep the decoder's rows as they are, and learn only encoder and biases.
    """

    def __init__(
        self,
        parameters: Parameters,
        architecture: Architecture,
        *,
        aux_coefficient: float,
        dead_after_tokens: int,
        back_end: BackEnd,
        beta2: float = 0.999,
        cuda_graph: bool = False,
        frozen_decoder: bool = False,
    ) -> None:
        self.parameters = parameters
        self.frozen_decoder = frozen_decoder
        self.architecture = architecture
        self.aux_coefficient = aux_coefficient
        self.dead_after_tokens = dead_after_tokens
        self.back_end = back_end
        W_enc = parameters.W_enc
        self.tokens_silent = torch.zeros(len(W_enc), dtype=torch.int64, device=W_enc.device)
        groups = [(parameters._asdict(), 1.0)]
        if (threshold := architecture.threshold) is not None:
            threshold.value = threshold.value.to(W_enc)
            groups.append(({"threshold": threshold.value}, THRESHOLD_RATE_FACTOR))
        self._adam = Adam(groups, beta2)
        # Not a method of this object: in a cycle of references, the memory of the graph would be kept
        # until Python collects garbage.
        backward = partial(back_end.backward, parameters, architecture)
        self._graph = CudaGraph(backward) if cuda_graph and W_enc.is_cuda else None

    @torch.no_grad()
    def step(self, x: Tensor, learning_rate: float) -> StepResult:
        """One Adam step on x (batch, d_model), centred and scaled."""
        dead = self.dead_features()
        result = self.backward(x, dead)
        self.tokens_silent += x.shape[0]
        self.tokens_silent.masked_fill_(result.active_rows > 0, 0)
        self._update(result, learning_rate)
        fvu = result.residual_ss / row_squares(x).sum().clamp(min=torch.finfo(x.dtype).tiny)
        return StepResult(float(result.loss), float(fvu), float(result.l0), dead.numel())

    def dead_features(self) -> Tensor:
        """Indices of the features that were silent for at least `dead_after_tokens` tokens."""
        return (self.tokens_silent >= self.dead_after_tokens).nonzero().squeeze(1)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Fit the encoder's scale and a learned threshold to the first batch x (batch, d_model).

        The biases are zero. The gain g minimises |x - g xhat|^2. Random directions overlap, so the
        reconstruction of a tied encoder is several times too large. The gain saves the training
        steps that would shrink it.
        """
        threshold = self.architecture.threshold
        if threshold is not None:
            threshold.initialise(self.back_end.encoder(self.parameters, x))
        xhat = self.back_end.decode_without_bias(self.parameters, self.architecture, x)
        norm2 = float(xhat.pow(2).sum())
        if norm2 > 0.0:
            gain = float((xhat * x).sum()) / norm2
            self.parameters.W_enc.mul_(gain)
            if threshold is not None:
                threshold.value.mul_(gain)

    @torch.no_grad()
    def warm_start(self, threshold: Tensor) -> None:
        """Copy another autoencoder's thresholds (d_sae,), if thresholds are learned.

        Its weights are the engine's `parameters` already.
        """
        if self.architecture.threshold is not None:
            self.architecture.threshold.value.copy_(threshold)

    @torch.no_grad()
    def backward(self, x: Tensor, dead: Tensor) -> Pass:
        """Loss and gradients for x (batch, d_model), with AuxK over the features `dead`."""
        auxiliary = bool(dead.numel() and self.aux_coefficient)
        result = (
            self._graph(x)
            if self._graph
            else self.back_end.backward(
                self.parameters, self.architecture, x, dead if auxiliary else None
            )
        )
        if auxiliary:
            result = result._replace(loss=result.loss + self._add_auxiliary(result, x, dead))
        return result

    def _add_auxiliary(self, result: Pass, x: Tensor, dead: Tensor) -> Tensor:
        """Add AuxK over the features `dead` to the gradients; return its term of the loss, ()."""
        error, gradients, b_dec = result.error, result.gradients, self.parameters.b_dec
        # sum |r - mean r|^2
        total_ss = result.residual_ss - len(error) * error.mean(0).pow(2).sum().double()
        total_ss = total_ss.clamp(min=0.0)
        weight = torch.where(
            total_ss > MIN_TOTAL_SS * result.residual_ss, self.aux_coefficient / total_ss, 0.0
        )
        W_dec = self.parameters.W_dec.index_select(0, dead)  # (dead, d_model)
        # Gao et al. use about d_model / 2 dead features: enough to span much of the residual.
        width = max(x.shape[1] // 2, 1)
        slope = (2.0 * weight).to(x.dtype)
        residual_ss = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, len(x), AUXILIARY_ROWS):
            rows = slice(start, start + AUXILIARY_ROWS)
            centred = x[rows] - b_dec
            pre = (
                self._encode(centred, dead) if result.dead_pre is None else result.dead_pre[rows]
            )  # (chunk, dead)
            active = largest(pre, width)
            difference = torch.addmm(error[rows], active, W_dec)  # (chunk, d_model) rhat - r
            residual_ss += row_squares(difference).sum()
            pre_grad = torch.mm(difference, W_dec.t())  # (chunk, dead), without the slope
            if active is not pre:
                pre_grad.mul_(active != 0)
            decoder_grad = torch.mm(active.t(), difference).mul_(slope)  # (dead, d_model)
            gradients.W_dec.index_add_(0, dead, decoder_grad)
            gradients.W_enc.index_add_(0, dead, torch.mm(pre_grad.t(), centred).mul_(slope))
            gradients.b_enc.index_add_(0, dead, pre_grad.sum(0).mul_(slope))
            result.decoder_radial.index_add_(0, dead, decoder_grad.mul_(W_dec).sum(1))
        return weight * residual_ss

    def _encode(self, centred: Tensor, features: Tensor) -> Tensor:
        W_enc, b_enc = (
            tensor.index_select(0, features)
            for tensor in (self.parameters.W_enc, self.parameters.b_enc)
        )
        return torch.addmm(b_enc, centred, W_enc.t())

    def _update(self, result: Pass, learning_rate: float) -> None:
        """Take an Adam step on the gradient, scaled to one global norm.

        The decoder's gradient is projected. Afterwards decoder rows are set to unit norm, and
        negative thresholds to zero. A frozen decoder's gradient is 0.
        """
        W_dec, threshold = self.parameters.W_dec, self.architecture.threshold
        if self.frozen_decoder:
            result.gradients.W_dec.zero_()
        gradients = list(result.gradients)
        if result.threshold is not None:
            gradients.append(result.threshold)
        norm = _gradient_norm(gradients)
        if not math.isfinite(norm):
            raise UserError(
                f"training diverged: at a learning rate of {learning_rate:.3g} the gradient norm "
                f"is {norm}. Lower sae.learning_rate and run again; this step was discarded"
            )
        if not self.frozen_decoder:
            result.gradients.W_dec.addcmul_(W_dec, result.decoder_radial.unsqueeze(1), value=-1)
        self._adam.step(gradients, GRADIENT_NORM / norm if norm > 0.0 else 1.0, learning_rate)
        if not self.frozen_decoder:
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        if threshold is not None:
            threshold.value.clamp_(min=0.0)

    def state(self) -> dict[str, Tensor]:
        """State for an exact resume: weights, thresholds, Adam's moments, counters."""
        return {**self._tensors(), **self._adam.state()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy in a state that `state` returned."""
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self._adam.restore(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        threshold = self.architecture.threshold
        learned = {} if threshold is None else {"threshold": threshold.value}
        return {"tokens_silent": self.tokens_silent, **self.parameters._asdict(), **learned}


def _gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Norm of all gradients as one vector, estimated from the sampled rows of matrices.

    Vectors are read whole, so that a value that is not finite is always noticed.
    """
    parts = [
        gradient
        if gradient.dim() == 1
        else torch.linalg.vector_norm(gradient[::NORM_ROW_STRIDE], dim=1).mul_(
            math.sqrt(NORM_ROW_STRIDE)
        )
        for gradient in gradients
    ]
    return float(torch.linalg.vector_norm(torch.cat(parts), dtype=torch.float64))
