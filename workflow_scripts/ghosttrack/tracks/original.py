"""The association of the original GhostTrack, for comparison: an optimum, then a threshold.

Every pair of a track of one layer and a detection of the next has an association cost

    semantic_weight * (1 - cosine) + activation_weight * change + position_weight * 0

with change = |a - b| / (a + b). Where a is almost 0, change is 1 if b is above .1 and else 0. The
original never implemented the position cost, so its weight has no effect.

The one-to-one assignment of least total cost links as many pairs as possible. Links with a cost of
`association` or more are dropped afterwards. A track without a link ends at once. A detection
without a link starts a track if its activation is above `birth`, and is ignored otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ghosttrack.settings import OriginalTrackingSettings
from ghosttrack.tracks.track_table import TrackTable, blank
from ghosttrack.tracks.tracking import Detections, TrackerOptions, TrackingResult

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class AcceptedLinks(NamedTuple):
    """Links of one token into one layer, all (links,)."""

    slot: Ints  # of the track in the earlier layer
    rank: Ints  # of the detection in this layer
    surplus: Floats  # threshold - cost


NO_LINKS = AcceptedLinks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

# An activation below ALMOST_ZERO counts as 0; its successor counts as a full change if above NEW.
ALMOST_ZERO, NEW = 1e-6, 0.1
# Tokens per batched product: twice 128 x 50 x 1024 float32 are 52 MB.
CHUNK = 128


class OriginalPlan(NamedTuple):
    """The visiting order of the layers (positions), their decoders in that order, and costs."""

    order: list[int]
    decoders: list[Tensor]  # (d_sae, d_model) unit rows
    costs: OriginalTrackingSettings

    def follow(self, detections: Sequence[Detections], options: TrackerOptions) -> TrackingResult:
        """Link the detections of every layer, first to last. The solver sees every pair."""
        rows, width = len(detections[0].feature), options.top_k
        table = blank(
            rows,
            len(detections),
            max(current.feature[:, :width].shape[1] for current in detections),
        )
        previous, cells = None, 0
        for position, current in enumerate(detections):
            current = Detections(current.feature[:, :width], current.activation[:, :width])
            links = [NO_LINKS] * rows
            if previous is not None:
                matrices = association_cost(
                    previous,
                    current,
                    self.decoders[position - 1],
                    self.decoders[position],
                    self.costs,
                )
                present = (previous.feature >= 0).sum(1), (current.feature >= 0).sum(1)
                cells += int((present[0] * present[1]).sum())
                links = [
                    _accept(cost[:open_tracks, :detected], self.costs.association)
                    for cost, open_tracks, detected in zip(matrices, *present, strict=True)
                ]
            previous = _write(table, position, current, links, self.costs.birth)
        return TrackingResult(table, cells, cells)


def association_cost(
    previous: Detections,
    current: Detections,
    lower: Tensor,
    upper: Tensor,
    costs: OriginalTrackingSettings,
) -> Floats:
    """Association cost of every pair, (rows, previous slots, slots); undefined for empty slots."""
    cosines = [
        torch.bmm(
            lower[torch.from_numpy(one).long()],
            upper[torch.from_numpy(other).long()].transpose(1, 2),
        )
        for one, other in zip(_chunks(previous.feature), _chunks(current.feature), strict=True)
    ]
    cosine = (
        torch.cat(cosines).clamp(max=1.0).numpy().astype(np.float64)
    )  # keeps rounding from making a cost negative
    a, b = (
        previous.activation[:, :, None].astype(np.float64),
        current.activation[:, None, :].astype(np.float64),
    )
    change = np.where(a > ALMOST_ZERO, np.abs(a - b) / np.maximum(a + b, ALMOST_ZERO), b > NEW)
    result: Floats = costs.semantic_weight * (1 - cosine) + costs.activation_weight * change
    return result


def _chunks(feature: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    filled = np.maximum(feature, 0)
    return [filled[start : start + CHUNK] for start in range(0, len(filled), CHUNK)]


def _accept(cost: Floats, association: float) -> AcceptedLinks:
    """The assignment of least total cost, without links that cost `association` or more."""
    slot, rank = linear_sum_assignment(cost)
    surplus = association - cost[slot, rank]
    kept = surplus > 0
    return AcceptedLinks(slot[kept], rank[kept], surplus[kept])


def _write(
    table: TrackTable,
    position: int,
    current: Detections,
    links: Sequence[AcceptedLinks],
    birth: float,
) -> Detections:
    """Write one layer of the table and return its detections, linked and new, strongest first."""
    row = np.repeat(np.arange(len(links)), [len(accepted.slot) for accepted in links])
    slot, rank, surplus = (np.concatenate(column) for column in zip(*links, strict=True))
    kept = (current.feature >= 0) & (current.activation > birth)
    kept[row, rank] = True
    slots = np.cumsum(kept, axis=1) - 1
    rows, ranks = np.nonzero(kept)
    table.feature[rows, position, slots[rows, ranks]] = current.feature[rows, ranks]
    table.activation[rows, position, slots[rows, ranks]] = current.activation[rows, ranks]
    linked = row, position, slots[row, rank]
    table.previous[linked], table.gap[linked], table.surplus[linked] = slot, 1, surplus
    return Detections(table.feature[:, position], table.activation[:, position])
