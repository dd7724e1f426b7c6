"""Adam on scaled gradients, without the extra pass over the gradients that scaling takes.

Adam's moments m and v are averages of c g and (c g)^2, where c is the scale of the step. The
optimizer keeps m / s and v / r instead, with

    s_t = b1 s_(t-1) + (1 - b1) c_t           b1' = b1 s_(t-1) / s_t
    r_t = b2 r_(t-1) + (1 - b2) c_t^2         b2' = b2 r_(t-1) / r_t

They are averages of the unscaled g and g^2, with decays b1' and b2' instead of b1 and b2. Adam's
step is the same if its learning rate and its epsilon absorb s, r and the bias corrections.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

# As in Gao et al. (arXiv 2406.04093): gradients of rare features are so small that the usual
# epsilon of 1e-8 would dominate them.
BETA1, EPSILON = 0.9, 6.25e-10
# Memory of the second moment in steps: the usual thousand, but at most a tenth of the run. The
# large first gradients shrink all steps for as long as they are remembered. With a tenth, the FVU
# is 1 to 2 % lower after 1,200 to 1,700 steps on a real layer, and equal after a warm start.
MEMORY_FRACTION, MIN_MEMORY, MAX_MEMORY = 0.1, 50, 1000
# A scale that differs from the average scale (at the first step: from 1) by a larger factor is
# applied by multiplication in part: 1 - b2' would keep few digits.
MAX_SCALE_RATIO = 1000.0
# Key in the state: steps, s, r.
_NUMBERS = "adam"


def beta2(steps: int) -> float:
    """Decay of the second moment in a run of `steps` steps."""
    return 1.0 - 1.0 / min(max(MEMORY_FRACTION * steps, MIN_MEMORY), MAX_MEMORY)


class Adam:
    """torch's fused Adam over named tensors, which it changes in place.

    Args:
        groups: tensors by name, each group with its factor on the learning rate.
        beta2: decay of the second moment.
    """

    def __init__(self, groups: Sequence[tuple[dict[str, Tensor], float]], beta2: float) -> None:
        self._groups = [_Group(tensors, rate_factor) for tensors, rate_factor in groups]
        self._betas = BETA1, beta2
        self._steps, self._scales = 0, (0.0, 0.0)  # s and r

    def step(self, gradients: Sequence[Tensor], scale: float, learning_rate: float) -> None:
        """One step with the gradients, in the order of the tensors, times `scale` > 0."""
        low = high = 1.0
        if self._steps:
            # The memory of squares is longer: soon after one large scale, a usual scale is small
            # beside their average.
            high, squares = (
                average / (1.0 - beta**self._steps)
                for average, beta in zip(self._scales, self._betas, strict=True)
            )
            low = math.sqrt(squares)
        clamped = min(max(scale, low / MAX_SCALE_RATIO), high * MAX_SCALE_RATIO)
        if clamped != scale:
            for gradient in gradients:
                gradient.mul_(scale / clamped)
        self._steps += 1
        decays, scales, corrections = [], [], []
        for power, (beta, last) in enumerate(zip(self._betas, self._scales, strict=True), start=1):
            average = beta * last + (1.0 - beta) * clamped**power
            decays.append(beta * last / average)
            scales.append(average)
            # Adam's bias correction uses the first decay, torch's the decay that it is given.
            corrections.append(
                average * (1.0 - decays[-1] ** self._steps) / (1.0 - beta**self._steps)
            )
        self._scales = scales[0], scales[1]
        root = math.sqrt(corrections[1])
        remaining = iter(gradients)
        for group in self._groups:
            # torch adds 1 to the steps.
            steps = [torch.full((), self._steps - 1.0, device=mean.device) for mean in group.means]
            adam(
                list(group.learned.values()),
                [next(remaining) for _ in group.learned],
                group.means,
                group.squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                maximize=False,
                weight_decay=0.0,
                beta1=decays[0],
                beta2=decays[1],
                lr=group.rate_factor * learning_rate * corrections[0] / root,
                eps=EPSILON / root,
            )

    def state(self) -> dict[str, Tensor]:
        """State for an exact resume, without the tensors that are learned."""
        numbers = torch.tensor([self._steps, *self._scales], dtype=torch.float64)
        return {**self._moments(), _NUMBERS: numbers}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in a state that `state` returned."""
        for name, moment in self._moments().items():
            moment.copy_(tensors[name])
        steps, *scales = tensors[_NUMBERS].tolist()
        self._steps, self._scales = int(steps), (scales[0], scales[1])

    def _moments(self) -> dict[str, Tensor]:
        moments: dict[str, Tensor] = {}
        for group in self._groups:
            for name, mean, square in zip(group.learned, group.means, group.squares, strict=True):
                moments |= {f"{name}.mean": mean, f"{name}.square": square}
        return moments


class _Group:
    """Tensors with one factor on the learning rate, and the moments of their gradients."""

    def __init__(self, learned: dict[str, Tensor], rate_factor: float) -> None:
        self.learned, self.rate_factor = learned, rate_factor
        self.means, self.squares = (
            [torch.zeros_like(tensor) for tensor in learned.values()] for _ in range(2)
        )
