"""One optimizer step with a hand-written backward pass, in one of two back ends that share the maths.

    pre  = (x - b_dec) W_enc^T + b_enc          what is subtracted here is held constant
    code = active entries of pre                the architecture's choice
    xhat = code W_dec + b_dec                   with nested parts: of the first features alone, for each part
    loss = mean over parts and rows of |xhat - x|^2 / d_model  +  coefficient * AuxK  +  the price of L0, if learned

b_dec is learned as the decoder's bias only: with the encoder's share of its gradient as well the FVU is 2 % higher after 1,746
steps of a real layer and equal after 1,164, the median FVU of a token 1 and 4 % lower (four seeds each).

x is centred and scaled so that the mean of |x|^2 is d_model: the first term reads as the fraction of variance unexplained.
AuxK (Gao et al., arXiv 2406.04093): dead features alone reconstruct what is left, r = x - xhat (held constant), and pay
|rhat - r|^2 / |r - mean r|^2. Their largest pre-activations count whatever their sign: a feature that is below zero on
every row would never come back. Both weights are stored (d_sae, d_model), a row per feature, so that gathers read whole rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.sae.adam import Adam
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.dense_step import DenseBackEnd, Graphed, Precision
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import largest
from ghosttrack.sae.parameters import Parameters, Pass, row_squares
from ghosttrack.sae.sparse_step import SparseBackEnd

# Every step's gradient is scaled to about this length, before the decoder's projection: the steep first ones would hold up all
# that follow, for as long as Adam remembers their squares (FVU .131 instead of .121 after 1,200 steps on a real layer, at the
# usual thousand steps of memory).
GRADIENT_NORM = 1.0
# Matrices are measured on every eighth row: to read them all takes 2 % of a step and left the FVU as it was (four seeds).
MEASURED = 8
# An Adam step moves a pre-activation by the learning rate times the sum of |x|, a threshold by the learning rate alone;
# it needs larger steps to keep up. Of 1, 3, 10 and 30, on planted directions and a real layer, 3 left the fewest dead
# features at an equal FVU.
THRESHOLD_PACE = 3.0
# Share of the residuals' squares that their spread must reach, so that AuxK, which is divided by it, means something.
LEAST_SPREAD = 1e-5
# Rows of AuxK that are on their way at once. Not the micro-batch: a sum over other chunks would round differently.
AUXILIARY_ROWS = 1024


class BackEnd(Protocol):
    """How a pass over one batch is computed. The result is the same but for rounding."""

    micro_batch: int

    def encoder(self, parameters: Parameters, centred: Tensor) -> Encoder:
        """Pre-activations of centred (batch, d_model)."""

    def guess(self, parameters: Parameters, architecture: Architecture, x: Tensor) -> Tensor:
        """Code of x (batch, d_model) times decoder, no biases subtracted or added."""

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,
    ) -> Pass:
        """Loss and gradients for x (batch, d_model), without AuxK; what it needs of the features `dead` may be kept."""


def back_end(device: torch.device, micro_batch: int, precision: Precision = "tf32") -> BackEnd:
    """The back end for the device: dense with a GPU, sparse without."""
    return (
        DenseBackEnd(micro_batch, precision)
        if device.type == "cuda"
        else SparseBackEnd(micro_batch)
    )


class StepResult(NamedTuple):
    """What the training log shows of one step."""

    loss: float  # with every term
    fvu: float  # sum |xhat - x|^2 / sum |x|^2 of the batch
    l0: float  # active features a row
    dead: int


class Engine:
    """Parameters, Adam and the dead-feature counters of one autoencoder; `step` advances them.

    Args:
        parameters: changed in place, and never moved in memory.
        architecture: which features stay active; its threshold, if it learns one, is changed in place too.
        aux_coefficient: weight of AuxK.
        dead_after_tokens: silence after which a feature counts as dead.
        back_end: sparse or dense.
        beta2: decay of Adam's average of squares.
        cuda_graph: on a GPU, run the pass as one CUDA graph. Batches must have one size.
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
    ) -> None:
        self.parameters = parameters
        self.architecture = architecture
        self.aux_coefficient = aux_coefficient
        self.dead_after_tokens = dead_after_tokens
        self.back_end = back_end
        W_enc = parameters.W_enc
        self.tokens_silent = torch.zeros(len(W_enc), dtype=torch.int64, device=W_enc.device)
        groups = [(parameters._asdict(), 1.0)]
        if (threshold := architecture.threshold) is not None:
            threshold.value = threshold.value.to(W_enc)
            groups.append(({"threshold": threshold.value}, THRESHOLD_PACE))
        self._adam = Adam(groups, beta2)
        self._graph = Graphed(self._pass) if cuda_graph and W_enc.is_cuda else None

    @torch.no_grad()
    def step(self, x: Tensor, learning_rate: float) -> StepResult:
        """One Adam step on x (batch, d_model), centred and scaled."""
        dead = self.dead_features()
        found = self.backward(x, dead)
        self.tokens_silent += x.shape[0]
        self.tokens_silent.masked_fill_(found.active_rows > 0, 0)
        self._update(found, learning_rate)
        fvu = found.squared / row_squares(x).sum().clamp(min=torch.finfo(x.dtype).tiny)
        return StepResult(float(found.loss), float(fvu), float(found.l0), dead.numel())

    def dead_features(self) -> Tensor:
        """Indices of the features that were silent for at least `dead_after_tokens` tokens."""
        return (self.tokens_silent >= self.dead_after_tokens).nonzero().squeeze(1)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the encoder's scale, and a learned threshold, so that the first batch x (batch, d_model) is met. Biases zero.

        The gain g minimises |x - g xhat|^2. Random directions overlap, so that a tied start overshoots
        several times over; the steps that would go into shrinking it are saved.
        """
        threshold = self.architecture.threshold
        if threshold is not None:
            threshold.start(self.back_end.encoder(self.parameters, x))
        guess = self.back_end.guess(self.parameters, self.architecture, x)
        squared = float(guess.pow(2).sum())
        if squared > 0.0:
            gain = float((guess * x).sum()) / squared
            self.parameters.W_enc.mul_(gain)
            if threshold is not None:
                threshold.value.mul_(gain)

    @torch.no_grad()
    def start_from(self, threshold: Tensor) -> None:
        """Take over another autoencoder's thresholds (d_sae,), where thresholds are learned; its weights are here already."""
        if self.architecture.threshold is not None:
            self.architecture.threshold.value.copy_(threshold)

    @torch.no_grad()
    def backward(self, x: Tensor, dead: Tensor) -> Pass:
        """Loss and gradients for x (batch, d_model), whole; the features `dead` take part in AuxK."""
        auxiliary = bool(dead.numel() and self.aux_coefficient)
        found = self._graph(x) if self._graph else self._pass(x, dead if auxiliary else None)
        if auxiliary:
            found = found._replace(loss=found.loss + self._add_auxiliary(found, x, dead))
        return found

    def _pass(self, x: Tensor, dead: Tensor | None = None) -> Pass:
        return self.back_end.backward(self.parameters, self.architecture, x, dead)

    def _add_auxiliary(self, found: Pass, x: Tensor, dead: Tensor) -> Tensor:
        """Add AuxK over the features `dead` to the gradients and to `along`; return its share of the loss, ()."""
        error, gradients, b_dec = found.error, found.gradients, self.parameters.b_dec
        # sum |r - mean r|^2
        spread = (found.squared - len(error) * error.mean(0).pow(2).sum().double()).clamp(min=0.0)
        # Of equal residuals rounding is all that is left of it.
        weight = torch.where(
            spread > LEAST_SPREAD * found.squared, self.aux_coefficient / spread, 0.0
        )
        W_dec = self.parameters.W_dec.index_select(0, dead)  # (dead, d_model)
        # Gao et al. use about d_model / 2 dead features: enough to span much of the residual.
        width = max(x.shape[1] // 2, 1)
        slope = (2.0 * weight).to(x.dtype)
        squared = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, len(x), AUXILIARY_ROWS):
            rows = slice(start, start + AUXILIARY_ROWS)
            centred = x[rows] - b_dec
            pre = (
                self._encode(centred, dead) if found.dead_pre is None else found.dead_pre[rows]
            )  # (chunk, dead)
            active = largest(pre, width)
            difference = torch.addmm(error[rows], active, W_dec)  # (chunk, d_model) rhat - r
            squared += row_squares(difference).sum()
            to_pre = torch.mm(difference, W_dec.t())  # (chunk, dead), up to the slope
            if active is not pre:
                to_pre.mul_(active != 0)
            to_decoder = torch.mm(active.t(), difference).mul_(slope)  # (dead, d_model)
            gradients.W_dec.index_add_(0, dead, to_decoder)
            gradients.W_enc.index_add_(0, dead, torch.mm(to_pre.t(), centred).mul_(slope))
            gradients.b_enc.index_add_(0, dead, to_pre.sum(0).mul_(slope))
            found.along.index_add_(0, dead, to_decoder.mul_(W_dec).sum(1))
        return weight * squared

    def _encode(self, centred: Tensor, features: Tensor) -> Tensor:
        W_enc, b_enc = (
            each.index_select(0, features)
            for each in (self.parameters.W_enc, self.parameters.b_enc)
        )
        return torch.addmm(b_enc, centred, W_enc.t())

    def _update(self, found: Pass, learning_rate: float) -> None:
        """Scale to one global norm, Adam on the projected gradient, unit decoder rows, thresholds not below zero."""
        W_dec, threshold = self.parameters.W_dec, self.architecture.threshold
        gradients = list(found.gradients)
        if found.threshold is not None:
            gradients.append(found.threshold)
        norm = _length(gradients)
        if not math.isfinite(norm):
            raise UserError(
                f"training diverged: at a learning rate of {learning_rate:.3g} the gradient's length is {norm}. Lower "
                "sae.learning_rate and run again; nothing of this step was kept"
            )
        found.gradients.W_dec.addcmul_(W_dec, found.along.unsqueeze(1), value=-1)
        self._adam.step(gradients, GRADIENT_NORM / norm if norm > 0.0 else 1.0, learning_rate)
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        if threshold is not None:
            threshold.value.clamp_(min=0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs to go on bit by bit: weights, thresholds, moments, counters."""
        return {**self._tensors(), **self._adam.state()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the state that `state` returned, by value."""
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self._adam.restore(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        threshold = self.architecture.threshold
        learned = {} if threshold is None else {"threshold": threshold.value}
        return {"tokens_silent": self.tokens_silent, **self.parameters._asdict(), **learned}


def _length(gradients: Sequence[Tensor]) -> float:
    """Of all gradients as one vector; vectors whole, so that nothing unfit for a step goes unseen, matrices as their measured rows tell."""
    parts = [
        each
        if each.dim() == 1
        else torch.linalg.vector_norm(each[::MEASURED], dim=1).mul_(math.sqrt(MEASURED))
        for each in gradients
    ]
    return float(torch.linalg.vector_norm(torch.cat(parts), dtype=torch.float64))
