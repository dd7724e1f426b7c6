"""Whether two devices, or two back ends, train the same autoencoder: what cannot be measured without a GPU is checked where one is.

Both start from the same parameters and see the same batches of planted data; nothing else is random. fp32 sums come
in another order on another device, so they agree to rounding, not bit by bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.engine import BackEnd, Engine
from ghosttrack.sae.parameters import Parameters

# A layer that any machine trains in a second, large enough that sums have hundreds of terms.
D_MODEL, D_SAE, K, BATCH, STEPS = 64, 256, 8, 256, 10
LEARNING_RATE = 1e-3
AUX_COEFFICIENT = 1 / 32
# fp32 carries 24 bits; a sum over 256 rows in another order differs in the last three or four of them (gradients of
# the two CPU back ends: 1e-6). After ten Adam steps an entry near a selection threshold may have gone another way.
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-3


class Agreement(NamedTuple):
    """Relative differences of two back ends: of the worst gradient at the start, of the worst loss on the way."""

    gradient: float
    loss: float

    @property
    def holds(self) -> bool:
        """Whether both are rounding."""
        return self.gradient < GRADIENT_TOLERANCE and self.loss < LOSS_TOLERANCE


def planted_batches(seed: int, steps: int = STEPS) -> Tensor:
    """Sparse sums of random unit directions with noise, scaled as training sees them, (steps, BATCH, D_MODEL)."""
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
    """A fresh engine of the small layer on `device`."""
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

    Both engines must be fresh and start from equal parameters.
    """
    engines = (first, second)
    places = [each.parameters.W_enc.device for each in engines]
    for each, place in zip(engines, places, strict=True):
        each.start(batches[0].to(place))
    gradients = [
        [
            gradient.cpu().clone()
            for gradient in each.backward(batches[0].to(place), each.dead_features()).gradients
        ]
        for each, place in zip(engines, places, strict=True)
    ]
    losses = torch.tensor(
        [
            [
                each.step(batch.to(place), LEARNING_RATE).loss
                for each, place in zip(engines, places, strict=True)
            ]
            for batch in batches
        ],
        dtype=torch.float64,
    )  # (steps, 2)
    return Agreement(
        max(_apart(*pair) for pair in zip(*gradients, strict=True)),
        float(((losses[:, 0] - losses[:, 1]).abs() / losses[:, 0]).max()),
    )


def _apart(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative."""
    return float(
        (found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny)
    )
