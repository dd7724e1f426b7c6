"""BatchTopK (Bussmann et al., arXiv 2412.06410): the k * rows largest pre-activations of a batch
are active.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ghosttrack.sae.architecture import Activated
from ghosttrack.sae.batch_threshold import batch_threshold, kept
from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.export import calibrate, estimated_threshold
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code, code_from_flat, kth_largest, positions_above

# The batch threshold changes little between steps: values above 93 % of the last one nearly always
# include the new one.
_CANDIDATE_FRACTION = 0.93


class BatchTopK:
    """Keep the entries above 0 and above the (k * rows + 1)-th largest pre-activation of the batch.

    Exactly k * rows entries are active, fewer only if fewer are positive or if values tie at the
    batch threshold. The last threshold is kept as an estimate of the next one. It saves time and
    never changes the result.
    """

    threshold = None

    def __init__(self, d_sae: int, k: int) -> None:
        self.k = k
        self.prefix_sizes: tuple[int, ...] = (d_sae,)
        self._estimate = 0.0

    def select(self, encoder: Encoder) -> Code:
        """The active entries of the batch."""
        if not self._estimate:
            # Without an estimate all positive pre-activations would be candidates, in memory.
            self._estimate = estimated_threshold(next(encoder()), self.k)
        last = self._estimate
        for candidate_threshold in dict.fromkeys((_CANDIDATE_FRACTION * last, 0.5 * last, 0.0)):
            position, value, rows, d_sae = _candidates(encoder, candidate_threshold)
            if value.numel() > kept(self.k, rows):
                # The batch threshold is among the candidates, whatever the candidate threshold.
                self._estimate = kth_largest(value, kept(self.k, rows) + 1)
                active = torch.from_numpy(np.flatnonzero(value.numpy() > self._estimate))
                position, value = position.index_select(0, active), value.index_select(0, active)
                break
        else:
            self._estimate = 0.0  # fewer than k * rows are positive: all of them are active
        return code_from_flat(position, value, rows, d_sae)

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """The batch chunk by chunk, after a first pass for the batch threshold."""
        threshold = batch_threshold(encoder, self.k)
        for pre in encoder():
            yield Activated(pre, torch.where(pre > threshold, pre, 0.0))

    def export(self, sae: Sae, store: Rows) -> Sae:
        """The autoencoder with one threshold that gives k active features per row on average."""
        return calibrate(sae, store, self.k)


def _candidates(encoder: Encoder, candidate_threshold: float) -> tuple[Tensor, Tensor, int, int]:
    """Positions in the flattened batch and values of the pre-activations above the threshold.

    Returns also the numbers of rows and of columns of the batch.
    """
    positions, values, rows, d_sae = [], [], 0, 0
    for pre in encoder():
        d_sae = pre.shape[1]
        flat = pre.view(-1)
        position = positions_above(flat, candidate_threshold)
        values.append(flat.index_select(0, position))
        positions.append(position + rows * d_sae if rows else position)
        rows += pre.shape[0]
    return torch.cat(positions), torch.cat(values), rows, d_sae
