"""BatchTopK (Bussmann et al., arXiv 2412.06410): the k * rows largest pre-activations of a batch stay."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ghosttrack.sae.architecture import Activated
from ghosttrack.sae.encoder import Encoder, cut
from ghosttrack.sae.export import GUESS_ROWS, calibrate
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code, code_from_flat, positions_above

# The cut moves little from step to step: values above 93 % of the last one nearly always hold the new one.
_NEAR = 0.93


class BatchTopK:
    """Keep what exceeds the (k * rows + 1)-th largest pre-activation of the batch, and zero.

    Exactly k * rows entries stay, fewer only where so many are not positive or values tie at the cut.
    The last cut is remembered as a hint: it saves time and never changes the result.
    """

    threshold = None

    def __init__(self, d_sae: int, k: int) -> None:
        self.k = k
        self.ends: tuple[int, ...] = (d_sae,)
        self._last = 0.0

    def select(self, encoder: Encoder) -> Code:
        """The active entries of the batch."""
        if not self._last:
            self._last = _guess(encoder, self.k)
        for bar in dict.fromkeys((_NEAR * self._last, 0.5 * self._last, 0.0)):
            position, value, rows, d_sae = _candidates(encoder, bar)
            surplus = value.numel() - self.k * rows
            if (
                surplus > 0
            ):  # the cut lies among the candidates: whatever the bar, it is the same one
                # numpy's partial sort is eight times as fast as torch's.
                self._last = float(np.partition(value.numpy(), surplus - 1)[surplus - 1])
                kept = torch.from_numpy(np.flatnonzero(value.numpy() > self._last))
                position, value = position.index_select(0, kept), value.index_select(0, kept)
                break
        else:
            self._last = 0.0  # fewer positive values than k * rows: all of them stay
        return code_from_flat(position, value, rows, d_sae)

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """The batch chunk by chunk, after a first pass for the cut."""
        bar = cut(encoder, self.k)
        for pre in encoder():
            yield Activated(pre, torch.where(pre > bar, pre, 0.0))

    def export(self, sae: Sae, store: Rows) -> Sae:
        """One threshold that gives k active features a row on average."""
        return calibrate(sae, store, self.k)


def _guess(encoder: Encoder, k: int) -> float:
    """The cut of some rows: without a hint every positive pre-activation would be a candidate, and held."""
    some = next(encoder())[:GUESS_ROWS]
    flat = some.reshape(-1)
    return max(float(torch.kthvalue(flat, max(flat.numel() - k * len(some), 1)).values), 0.0)


def _candidates(encoder: Encoder, bar: float) -> tuple[Tensor, Tensor, int, int]:
    """Positions in the flattened batch and values of the pre-activations above `bar`, chunk by chunk."""
    positions, values, rows, d_sae = [], [], 0, 0
    for pre in encoder():
        d_sae = pre.shape[1]
        flat = pre.view(-1)
        position = positions_above(flat, bar)
        values.append(flat.index_select(0, position))
        positions.append(position + rows * d_sae if rows else position)
        rows += pre.shape[0]
    return torch.cat(positions), torch.cat(values), rows, d_sae
