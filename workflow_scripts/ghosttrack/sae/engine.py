"""One optimizer step with a hand-written backward pass: one dense product, four sparse ones, no graph.

    pre  = (x - b_dec) W_enc^T + b_enc          the one dense product
    code = active entries of pre                the architecture's choice
    xhat = code W_dec + b_dec
    loss = mean over rows of |xhat - x|^2 / d_model  +  coefficient * AuxK

x is centred and scaled so that the mean of |x|^2 is d_model: the first term reads as the fraction of
variance unexplained. AuxK (Gao et al., arXiv 2406.04093): dead features alone reconstruct what is left,
r = x - xhat (held constant), and pay |rhat - r|^2 / |r - mean r|^2. Both weights are stored
(d_sae, d_model), a row per feature, so that gathers read whole rows.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ghosttrack.sae import sparse
from ghosttrack.sae.sparse import Architecture

# Adam as in Gao et al. (arXiv 2406.04093): gradients of rare features are tiny, the usual 1e-8 would drown them.
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 6.25e-10
GRADIENT_CLIP = 1.0


class Parameters(NamedTuple):
    """Weights in training form, or their gradients."""

    W_enc: Tensor  # (d_sae, d_model)
    W_dec: Tensor  # (d_sae, d_model), rows of unit norm
    b_enc: Tensor  # (d_sae,)
    b_dec: Tensor  # (d_model,)

    @classmethod
    def tied(cls, d_model: int, d_sae: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Self:
        """Random unit directions, the encoder equal to the decoder, biases zero."""
        directions = torch.randn(d_sae, d_model, generator=generator, dtype=dtype)
        directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        zeros = torch.zeros(d_sae, dtype=dtype), torch.zeros(d_model, dtype=dtype)
        return cls(directions.clone(), directions, *zeros)


class Backward(NamedTuple):
    """Loss and gradients of one batch."""

    loss: float  # with the AuxK term
    fvu: float  # sum |xhat - x|^2 / sum |x|^2 of the batch
    l0: float  # active features a row
    active_rows: Tensor  # (d_sae,) int64, in how many rows each feature was active
    gradients: Parameters
    along: Tensor  # (d_sae,) <gradient, W_dec> of each decoder row: the part that only changes its norm


class StepResult(NamedTuple):
    """What the training log shows of one step."""

    loss: float
    fvu: float
    l0: float
    dead: int


class Engine:
    """Parameters, Adam and the dead-feature counters of one autoencoder; `step` advances them."""

    def __init__(
        self,
        parameters: Parameters,
        architecture: Architecture,
        *,
        aux_coefficient: float,
        dead_after_tokens: int,
        micro_batch: int,
    ) -> None:
        self.parameters = parameters
        self.architecture = architecture
        self.aux_coefficient = aux_coefficient
        self.dead_after_tokens = dead_after_tokens
        self.micro_batch = micro_batch  # rows of one encoder product; bounds memory, not the science
        self.tokens_silent = torch.zeros(parameters.W_enc.shape[0], dtype=torch.int64)
        self._optimizer = torch.optim.Adam(list(parameters), lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)

    @torch.no_grad()
    def step(self, x: Tensor, learning_rate: float) -> StepResult:
        """One Adam step on x (batch, d_model), centred and scaled."""
        dead = self.dead_features()
        found = self.backward(x, dead)
        self.tokens_silent += x.shape[0]
        self.tokens_silent[found.active_rows > 0] = 0
        self._update(found.gradients, found.along, learning_rate)
        return StepResult(found.loss, found.fvu, found.l0, dead.numel())

    def dead_features(self) -> Tensor:
        """Indices of the features that were silent for at least `dead_after_tokens` tokens."""
        return (self.tokens_silent >= self.dead_after_tokens).nonzero().squeeze(1)

    @torch.no_grad()
    def fit_gain(self, x: Tensor) -> None:
        """Scale the encoder so that the start reconstructs x (batch, d_model) at the right length, biases zero.

        The gain g minimises |x - g xhat|^2. Random directions overlap, so that a tied start overshoots
        several times over; the steps that would go into shrinking it are saved.
        """
        guess = sparse.decode(self.architecture.select(self._encoder(x)), self.parameters.W_dec)
        squared = float(guess.pow(2).sum())
        if squared > 0.0:
            self.parameters.W_enc.mul_(float((guess * x).sum()) / squared)

    def _encoder(self, centred: Tensor) -> sparse.Encoder:
        """Pre-activations of centred (batch, d_model), a micro-batch at a time, all in one buffer."""
        W_enc, rows = self.parameters.W_enc, min(self.micro_batch, len(centred))

        def encoder() -> Iterator[Tensor]:
            buffer = torch.empty(rows, W_enc.shape[0], dtype=centred.dtype)
            for part in torch.split(centred, rows):
                yield torch.addmm(self.parameters.b_enc, part, W_enc.t(), out=buffer[: len(part)])

        return encoder

    @torch.no_grad()
    def backward(self, x: Tensor, dead: Tensor) -> Backward:
        """Loss and gradients for x (batch, d_model); the features `dead` take part in AuxK."""
        W_enc, W_dec, _, b_dec = self.parameters
        batch, d_model = x.shape
        centred = x - b_dec  # (batch, d_model)
        code = self.architecture.select(self._encoder(centred))
        error = sparse.decode(code, W_dec).add_(b_dec).sub_(x)  # (batch, d_model), xhat - x
        squared = float(error.pow(2).sum())
        residual = -error if dead.numel() and self.aux_coefficient else None
        error.mul_(2.0 / (batch * d_model))  # d loss / d xhat
        to_pre = sparse.products_on_pattern(code, error, W_dec)  # (entries,) d loss / d pre
        transposed = sparse.transpose(code)
        gradients = Parameters(
            W_enc=sparse.transposed_product(transposed, to_pre, centred),
            W_dec=sparse.transposed_product(transposed, code.value, error),
            b_enc=sparse.feature_sums(transposed, to_pre),
            b_dec=error.sum(0),
        )
        # <gradient of a decoder row, the row> needs no new pass: it is a sum over the entries at hand.
        along = sparse.feature_sums(transposed, code.value * to_pre)
        loss = squared / (batch * d_model)
        if residual is not None:
            loss += self._add_auxiliary(gradients, along, centred, residual, dead)
        # b_dec also enters through x - b_dec: a matrix-vector product, the gradient of x is never formed.
        gradients.b_dec.sub_(torch.mv(W_enc.t(), gradients.b_enc))
        fvu = squared / max(float(x.pow(2).sum()), torch.finfo(x.dtype).tiny)
        return Backward(loss, fvu, code.value.numel() / batch, transposed.active_rows, gradients, along)

    def _add_auxiliary(
        self, gradients: Parameters, along: Tensor, centred: Tensor, residual: Tensor, dead: Tensor
    ) -> float:
        """Add AuxK over the features `dead` to the gradients and to `along`; return its share of the loss."""
        spread = float((residual - residual.mean(0)).pow(2).sum())
        if spread == 0.0:
            return 0.0
        W_enc, W_dec = self.parameters.W_enc[dead], self.parameters.W_dec[dead]  # (dead, d_model)
        active = torch.addmm(self.parameters.b_enc[dead], centred, W_enc.t()).relu_()  # (batch, dead)
        # Gao et al. use about d_model / 2 dead features: enough to span much of the residual.
        width = max(centred.shape[1] // 2, 1)
        if dead.numel() > width:
            strongest = active.topk(width, dim=1, sorted=False)
            active = torch.zeros_like(active).scatter_(1, strongest.indices, strongest.values)
        difference = torch.mm(active, W_dec).sub_(residual)  # (batch, d_model)
        auxiliary = self.aux_coefficient * float(difference.pow(2).sum()) / spread
        difference.mul_(2.0 * self.aux_coefficient / spread)
        to_pre = torch.mm(difference, W_dec.t()).mul_(active > 0)  # (batch, dead)
        gradients.W_dec.index_add_(0, dead, torch.mm(active.t(), difference))
        along.index_add_(0, dead, (active * to_pre).sum(0))
        gradients.W_enc.index_add_(0, dead, torch.mm(to_pre.t(), centred))
        gradients.b_enc.index_add_(0, dead, to_pre.sum(0))
        return auxiliary

    def _update(self, gradients: Parameters, along: Tensor, learning_rate: float) -> None:
        """Project, clip by the global norm, Adam, unit decoder rows."""
        W_dec = self.parameters.W_dec
        gradients.W_dec.addcmul_(W_dec, along.unsqueeze(1), value=-1)
        norm = float(torch.nn.utils.get_total_norm(list(gradients)))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.mul_(GRADIENT_CLIP / norm) if norm > GRADIENT_CLIP else gradient
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs to go on bit by bit: weights, moments, counters."""
        tensors = {"tokens_silent": self.tokens_silent}
        for name, parameter in self.parameters._asdict().items():
            tensors[name] = parameter
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the state that `state` returned, by value."""
        self.tokens_silent.copy_(tensors["tokens_silent"])
        moments = {}
        for index, (name, parameter) in enumerate(self.parameters._asdict().items()):
            parameter.copy_(tensors[name])
            moments[index] = {key: tensors[f"{name}.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
