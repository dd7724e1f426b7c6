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

# Adam as in Gao et al. (arXiv 2406.04093): gradients of rare features are tiny, the usual 1e-8 would drown them.
BETA1, EPSILON = 0.9, 6.25e-10
# Steps over which squares are averaged: the usual thousand, in a short run a tenth of it. What the steep first steps leave behind
# holds up all that follow: with a tenth the FVU is 1 to 2 % lower after 1,200 to 1,700 steps of a real layer, and equal where an
# anchor's weights are taken over.
SQUARES_SHARE, SQUARES_LEAST, SQUARES_MOST = 0.1, 50, 1000
# A scale that differs from the average by a larger factor, or comes first, is applied by multiplication: of 1 - b2' few digits are left.
FAR = 1000.0
# Key in the state.
_SCALES = "adam_scales"


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
        self._learned = {name: tensor for tensors, _ in groups for name, tensor in tensors.items()}
        self._paces = [pace for _, pace in groups]
        self._torch = torch.optim.Adam(
            [{"params": list(tensors.values())} for tensors, _ in groups], lr=0.0, fused=True
        )
        self._betas = BETA1, beta2
        self._steps, self._scales = 0, (0.0, 0.0)  # s and r

    def step(self, gradients: Sequence[Tensor], scale: float, learning_rate: float) -> None:
        """One step with the gradients, in the order of the tensors, times `scale` > 0."""
        usual = self._scales[0] / (1.0 - BETA1**self._steps) if self._steps else 1.0
        near = min(max(scale, usual / FAR), usual * FAR)
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
        spread = math.sqrt(rests[1])
        for group, pace in zip(self._torch.param_groups, self._paces, strict=True):
            group.update(lr=pace * learning_rate * rests[0] / spread, betas=tuple(decays), eps=EPSILON / spread)
        for tensor, gradient in zip(self._learned.values(), gradients, strict=True):
            tensor.grad = gradient
        self._torch.step()
        self._torch.zero_grad()  # the next gradients get this memory, which the cache still holds
        self._scales = scales[0], scales[1]

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs to go on bit by bit, but for the tensors themselves."""
        moments = {
            f"{name}.{key}": value
            for name, tensor in self._learned.items()
            for key, value in self._torch.state[tensor].items()
        }
        return {**moments, _SCALES: torch.tensor(self._scales, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state that `state` returned, by value."""
        moments = {
            index: {key: tensors[f"{name}.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(self._learned)
        }
        self._torch.load_state_dict({**self._torch.state_dict(), "state": moments})
        self._steps = int(tensors[f"{next(iter(self._learned))}.step"])
        self._scales = tuple(tensors[_SCALES].tolist())
