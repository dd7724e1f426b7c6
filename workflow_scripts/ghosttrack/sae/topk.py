"""TopK (Gao et al., arXiv 2406.04093): the k largest pre-activations of every row are active."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ghosttrack.sae.architecture import Activated
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import Sae, strongest
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code, code_from_flat


class TopK:
    """Keep the k largest pre-activations of each row, if they are positive."""

    threshold = None

    def __init__(self, d_sae: int, k: int) -> None:
        self.k = k
        self.prefix_sizes: tuple[int, ...] = (d_sae,)

    def select(self, encoder: Encoder) -> Code:
        """The active entries of the batch."""
        positions, values, rows, d_sae = [], [], 0, 0
        for pre in encoder():
            d_sae = pre.shape[1]
            column = pre.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
            row_offset = torch.arange(rows, rows + len(pre)) * d_sae
            positions.append((column + row_offset.unsqueeze(1)).reshape(-1))
            values.append(pre.gather(1, column).reshape(-1))
            rows += len(pre)
        position, value = torch.cat(positions), torch.cat(values)
        positive = value > 0
        if not bool(positive.all()):
            position, value = position[positive], value[positive]
        return code_from_flat(position, value, rows, d_sae)

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """The batch chunk by chunk."""
        for pre in encoder():
            yield Activated(pre, strongest(pre, self.k))

    def export(self, sae: Sae, store: Rows) -> Sae:  # noqa: ARG002
        """The autoencoder with the same rule at inference."""
        return replace(sae, k=self.k)
