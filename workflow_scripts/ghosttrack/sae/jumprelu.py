"""JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a learned threshold per feature."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ghosttrack.sae.architecture import Activated
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code, code_from_flat
from ghosttrack.sae.threshold import Threshold


class JumpReLU:
    """Keep the pre-activations above the threshold of their feature."""

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.prefix_sizes: tuple[int, ...] = (threshold.value.numel(),)

    def select(self, encoder: Encoder) -> Code:
        """The active entries of the batch, and silent entries near their threshold with value 0."""
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
            yield Activated(pre, torch.where(pre > self.threshold.value, pre, 0.0))

    def export(self, sae: Sae, store: Rows) -> Sae:  # noqa: ARG002
        """The autoencoder with the learned thresholds.

        Codes keep their scale when the normalisation is folded in, so the thresholds do not change.
        """
        threshold = self.threshold.value.detach().to("cpu", torch.float32).clone()
        return replace(sae, threshold=threshold)
