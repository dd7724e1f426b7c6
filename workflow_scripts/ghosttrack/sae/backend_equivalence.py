"""Whether two devices or two back ends train the same autoencoder, up to rounding.

Both start from the same parameters and see the same batches of synthetic data; nothing else is
random. fp32 sums run in another order on another device, so the results are not equal bit for bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.engine import BackEnd, Engine
from ghosttrack.sae.parameters import Parameters

# A layer that any machine trains in a second, and large enough for sums of hundreds of terms.
D_MODEL, D_SAE, K, BATCH, STEPS = 64, 256, 8, 256, 10
LEARNING_RATE = 1e-3
AUX_COEFFICIENT = 1 / 32
# fp32 has a precision of 24 bits. A sum over 256 rows in another order differs in the last three or
# four of them (gradients of the two back ends on a CPU: 1e-6). After ten Adam steps an entry near
# the batch threshold may be active in only one of the two.
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-3


class Agreement(NamedTuple):
    """Largest relative differences between two back ends."""

    gradient: float  # of a gradient at the first step
    loss: float  # of the loss at any step

    @property
    def holds(self) -> bool:
        """Whether rounding explains both."""
        return self.gradient < GRADIENT_TOLERANCE and self.loss < LOSS_TOLERANCE


def planted_batches(seed: int, steps: int = STEPS) -> Tensor:
    """Normalised sparse sums of random unit directions with noise, (steps, BATCH, D_MODEL)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(D_SAE, D_MODEL, generator=generator), dim=1
    )
    shape = (steps * BATCH, D_SAE)
    code = torch.rand(shape, generator=generator) + 0.5
    code *= torch.rand(shape, generator=generator) < K / D_SAE
    rows = code @ directions + 0.05 * torch.randn(steps * BATCH, D_MODEL, generator=generator)
    rows -= rows.mean(0)
    rows *= (D_MODEL / rows.pow(2).sum(1).mean()).sqrt()
    return rows.view(steps, BATCH, D_MODEL)


def engine(
    architecture: Architecture,
    back_end: BackEnd,
    device: str,
    seed: int,
    *,
    cuda_graph: bool = False,
) -> Engine:
    """A new engine for the small layer on `device`."""
    parameters = Parameters.tied(D_MODEL, D_SAE, torch.Generator().manual_seed(seed)).to(
        torch.device(device)
    )
    return Engine(
        parameters,
        architecture,
        aux_coefficient=AUX_COEFFICIENT,
        dead_after_tokens=4 * BATCH,
        back_end=back_end,
        cuda_graph=cuda_graph,
    )


def compare(first: Engine, second: Engine, batches: Tensor) -> Agreement:
    """Train both on `batches` (steps, BATCH, D_MODEL), each on its own device.

    Both engines must be new and start from equal parameters.
    """
    gradients, losses = [], []
    for trained in (first, second):
        on_device = batches.to(trained.parameters.W_enc.device)
        trained.initialise(on_device[0])
        result = trained.backward(on_device[0], trained.dead_features())
        gradients.append([gradient.cpu().clone() for gradient in result.gradients])
        losses.append([trained.step(batch, LEARNING_RATE).loss for batch in on_device])
    one, other = torch.tensor(losses, dtype=torch.float64)  # (steps,) each
    return Agreement(
        max(_relative_difference(*pair) for pair in zip(*gradients, strict=True)),
        float(((one - other).abs() / one).max()),
    )


def _relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=torch.finfo(other.dtype).tiny))
