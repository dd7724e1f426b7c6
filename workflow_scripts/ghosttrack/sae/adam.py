"""Adam on gradients that are scaled first, without the pass over all of them that scaling takes.

Adam's moments m and v are averages of c g and (c g)^2, where c is the scale of the step. Kept here are m / s and v / r with

    s_t = b1 s_(t-1) + (1 - b1) c_t           b1' = b1 s_(t-1) / s_t
    r_t = b2 r_(t-1) + (1 - b2) c_t^2         b2' = b2 r_(t-1) / r_t

They are averages of g and g^2 as they come, with b1' and b2' in the place of b1 and b2. Adam's step is the same when its
learning rate and its epsilon take up what s, r and the corrections for the start leave over.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

# Adam as in Gao et al. (arXiv 2406.04093): gradients of rare features are tiny, the usual 1e-8 would drown them.
BETA1, EPSILON = 0.9, 6.25e-10
# Steps over which squares are averaged: the usual thousand, in a short run a tenth of it. What the steep first steps leave behind
# holds up all that follow: with a tenth the FVU is 1 to 2 % lower after 1,200 to 1,700 steps of a real layer, and equal where an
# warm-start layer's weights are taken over.
SQUARES_SHARE, SQUARES_LEAST, SQUARES_MOST = 0.1, 50, 1000
# A scale that differs from the average (the first: from 1) by a larger factor is applied by multiplication: of 1 - b2' few
# digits would be left.
FAR = 1000.0
# Key in the state: steps, s, r.
_NUMBERS = "adam"


def beta2(steps: int) -> float:
    """Decay of the average of squares in a run of so many steps."""
    return 1.0 - 1.0 / min(max(SQUARES_SHARE * steps, SQUARES_LEAST), SQUARES_MOST)


class Adam:
    """torch's fused Adam over named tensors, which it changes in place.

    Args:
        groups: tensors by name, and how their learning rate relates to that of the step.
        beta2: decay of the average of squares.
    """

    def __init__(self, groups: Sequence[tuple[dict[str, Tensor], float]], beta2: float) -> None:
        self._groups = [_Group(tensors, pace) for tensors, pace in groups]
        self._betas = BETA1, beta2
        self._steps, self._scales = 0, (0.0, 0.0)  # s and r

    def step(self, gradients: Sequence[Tensor], scale: float, learning_rate: float) -> None:
        """One step with the gradients, in the order of the tensors, times `scale` > 0."""
        low = high = 1.0
        if self._steps:
            # Squares are remembered for longer: after one large scale a usual one counts for little.
            high, squares = (
                kept / (1.0 - beta**self._steps)
                for kept, beta in zip(self._scales, self._betas, strict=True)
            )
            low = math.sqrt(squares)
        near = min(max(scale, low / FAR), high * FAR)
        if near != scale:
            for gradient in gradients:
                gradient.mul_(scale / near)
        self._steps += 1
        decays, scales, rests = [], [], []
        for power, (beta, last) in enumerate(zip(self._betas, self._scales, strict=True), start=1):
            now = beta * last + (1.0 - beta) * near**power
            decays.append(beta * last / now)
            scales.append(now)
            # Adam corrects for its start by the first decay, torch by the one that it is given.
            rests.append(now * (1.0 - decays[-1] ** self._steps) / (1.0 - beta**self._steps))
        self._scales = scales[0], scales[1]
        root = math.sqrt(rests[1])
        given = iter(gradients)
        for group in self._groups:
            adam(
                list(group.learned.values()),
                [next(given) for _ in group.learned],
                group.means,
                group.squares,
                [],
                [
                    torch.full((), self._steps - 1.0, device=each.device) for each in group.means
                ],  # torch adds 1
                fused=True,
                amsgrad=False,
                maximize=False,
                weight_decay=0.0,
                beta1=decays[0],
                beta2=decays[1],
                lr=group.pace * learning_rate * rests[0] / root,
                eps=EPSILON / root,
            )

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs to go on bit by bit, but for the tensors themselves."""
        numbers = torch.tensor([self._steps, *self._scales], dtype=torch.float64)
        return {**self._moments(), _NUMBERS: numbers}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state that `state` returned, by value."""
        for name, moment in self._moments().items():
            moment.copy_(tensors[name])
        steps, *scales = tensors[_NUMBERS].tolist()
        self._steps, self._scales = int(steps), (scales[0], scales[1])

    def _moments(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for group in self._groups:
            for name, mean, square in zip(group.learned, group.means, group.squares, strict=True):
                found |= {f"{name}.mean": mean, f"{name}.square": square}
        return found


class _Group:
    """Tensors with one pace, and the averages of their gradients and of the gradients' squares."""

    def __init__(self, learned: dict[str, Tensor], pace: float) -> None:
        self.learned, self.pace = learned, pace
        self.means, self.squares = (
            [torch.zeros_like(tensor) for tensor in learned.values()] for _ in range(2)
        )
