"""The association of the original GhostTrack, for comparison: an optimum over all pairs first, a threshold afterwards.

Between the tracks seen in one layer and the detections of the next, every pair has a price

    semantic_weight * (1 - cosine) + activation_weight * change + position_weight * 0

with change = |a - b| / (a + b), or, where a is next to nothing, 1 if b is above .1 and else 0; the position's price was
a constant. The cheapest one-to-one choice links as many pairs as it can; links that cost `association` or more are
dropped after that. A track without a link dies at once. A detection without one is born if its activation is above
`birth`, and else ignored. The position's weight has no effect, in the original too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ghosttrack.settings import OriginalTrackingSettings
from ghosttrack.tracks.track_table import Table, blank
from ghosttrack.tracks.tracking import Detections, Followed, Options

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Chosen(NamedTuple):
    """Links of one token into one layer: slot they come from, rank they lead to, what their price leaves below the threshold."""

    slot: Ints
    rank: Ints
    left: Floats


NONE = Chosen(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

# Below the first an activation counts as none; above the second what follows it counts as all new.
NOTHING, SOMETHING = 1e-6, 0.1
# Tokens whose decoder rows are gathered at once: twice 128 x 50 x 1024 float32 are 52 MB.
CHUNK = 128


class OriginalPlan(NamedTuple):
    """Order in which layers are visited (positions), their decoders in that order, and the prices."""

    order: list[int]
    decoders: list[Tensor]  # (d_sae, d_model) unit rows
    prices: OriginalTrackingSettings

    def follow(self, detections: Sequence[Detections], options: Options) -> Followed:
        """Link the detections of every layer, first to last; all cells of all problems go through the solver."""
        rows, width = len(detections[0].feature), options.top_k
        table = blank(
            rows, len(detections), max(found.feature[:, :width].shape[1] for found in detections)
        )
        before, cells = None, 0
        for position, found in enumerate(detections):
            found = Detections(found.feature[:, :width], found.activation[:, :width])
            links = [NONE] * rows
            if before is not None:
                costs = price(
                    before, found, self.decoders[position - 1], self.decoders[position], self.prices
                )
                present = (before.feature >= 0).sum(1), (found.feature >= 0).sum(1)
                cells += int((present[0] * present[1]).sum())
                links = [
                    _cheapest(cost[:living, :seen], self.prices.association)
                    for cost, living, seen in zip(costs, *present, strict=True)
                ]
            before = _write(table, position, found, links, self.prices.birth)
        return Followed(table, cells, cells)


def price(
    before: Detections,
    found: Detections,
    lower: Tensor,
    upper: Tensor,
    prices: OriginalTrackingSettings,
) -> Floats:
    """Price of every pair, (rows, slots before, slots found); empty slots have none that means anything."""
    cosines = [
        torch.bmm(
            lower[torch.from_numpy(one).long()],
            upper[torch.from_numpy(other).long()].transpose(1, 2),
        )
        for one, other in zip(_chunks(before.feature), _chunks(found.feature), strict=True)
    ]
    cosine = (
        torch.cat(cosines).clamp(max=1.0).numpy().astype(np.float64)
    )  # no price below 0 by rounding
    a, b = (
        before.activation[:, :, None].astype(np.float64),
        found.activation[:, None, :].astype(np.float64),
    )
    change = np.where(a > NOTHING, np.abs(a - b) / np.maximum(a + b, NOTHING), b > SOMETHING)
    result: Floats = prices.semantic_weight * (1 - cosine) + prices.activation_weight * change
    return result


def _chunks(feature: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    kept = np.maximum(feature, 0)
    return [kept[start : start + CHUNK] for start in range(0, len(kept), CHUNK)]


def _cheapest(cost: Floats, association: float) -> Chosen:
    """The cheapest one-to-one choice, without what costs `association` or more."""
    slot, rank = linear_sum_assignment(cost)
    left = association - cost[slot, rank]
    kept = left > 0
    return Chosen(slot[kept], rank[kept], left[kept])


def _write(
    table: Table, position: int, found: Detections, links: Sequence[Chosen], birth: float
) -> Detections:
    """Fill one layer of the table, and give what lives in it: continued and newborn, strongest first."""
    row = np.repeat(np.arange(len(links)), [len(each.slot) for each in links])
    slot, rank, left = (np.concatenate(column) for column in zip(*links, strict=True))
    kept = (found.feature >= 0) & (found.activation > birth)
    kept[row, rank] = True
    place = np.cumsum(kept, axis=1) - 1
    at, ranks = np.nonzero(kept)
    table.feature[at, position, place[at, ranks]] = found.feature[at, ranks]
    table.activation[at, position, place[at, ranks]] = found.activation[at, ranks]
    here = row, position, place[row, rank]
    table.previous[here], table.gap[here], table.surplus[here] = slot, 1, left
    return Detections(table.feature[:, position], table.activation[:, position])
