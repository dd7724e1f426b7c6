"""JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a learned threshold per feature decides what stays."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ghosttrack.sae.architecture import Activated
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code, code_from_flat
from ghosttrack.sae.threshold import Threshold


class JumpReLU:
    """Keep what exceeds its feature's threshold."""

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.ends: tuple[int, ...] = (threshold.value.numel(),)

    def select(self, encoder: Encoder) -> Code:
        """The active entries of the batch, and the silent ones near their threshold with value 0."""
        positions, values, rows = [], [], 0
        lowest = self.threshold.value - 0.5 * self.threshold.bandwidth  # (d_sae,)
        for pre in encoder():
            position = (pre > lowest).view(-1).nonzero().squeeze(1)
            value = pre.view(-1)[position]
            values.append(value.where(value > self.threshold.value[position % pre.shape[1]], 0.0))
            positions.append(position + rows * pre.shape[1])
            rows += len(pre)
        return code_from_flat(torch.cat(positions), torch.cat(values), rows, lowest.numel())

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """The batch chunk by chunk."""
        for pre in encoder():
            yield Activated(pre, self._code(pre))

    def export(self, sae: Sae, store: Rows) -> Sae:  # noqa: ARG002 (the rule is learned, not measured)
        """The learned thresholds: codes keep their scale when mean and scale are folded in."""
        return replace(
            sae, threshold=self.threshold.value.detach().to("cpu", torch.float32).clone()
        )

    def _code(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.threshold.value, pre, 0.0)
