"""Track features across layers by optimal links above a gate, with coasting.

At every layer, the open tracks of a token compete for the token's detections. A track is open if
its last detection is one layer back, or two layers back with coasting. Links maximise the sum of
    cosine - gate - activation_weight * |a - b| / (a + b)
over all one-to-one choices, where a and b are the two activations. A pair with a negative value is
never linked, so births and deaths are part of the optimum.

The strongest `top_k` active features are detections. Weaker ones, down to rank top_k x
second_association, are kept only if a track continues in them. This is ByteTrack's second
association of low-confidence detections (Zhang et al. 2022, arXiv:2110.06864), solved here within
the one optimum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks.association import assign
from ghosttrack.tracks.neighbours import Links
from ghosttrack.tracks.track_table import TrackTable, blank

Flags = NDArray[np.bool_]

# Sort key of a detection: the high bits count down from _STRONGEST by activation, the low bits hold
# the feature. _NOTHING decodes to feature -1 with activation 0.0.
_STRONGEST, _LOW = np.int64(2**31 - 1), np.int64(2**32 - 1)
_NOTHING = (_STRONGEST << 32) | _LOW


class Detections(NamedTuple):
    """Active features of one layer, (rows, ranks): strongest first, feature -1 in empty ranks."""

    feature: NDArray[np.int32]
    activation: NDArray[np.float32]


class TrackerOptions(NamedTuple):
    """The settings that the tracker reads: see TrackingSettings."""

    top_k: int
    second_association: int
    coast: int
    activation_weight: float

    @classmethod
    def from_settings(cls, tracking: TrackingSettings) -> "TrackerOptions":
        """The options of a run; the original has no coasting and no second association."""
        if tracking.mode == "original":
            return cls(tracking.top_k, 1, 0, tracking.original.activation_weight)
        return cls(
            tracking.top_k, tracking.second_association, tracking.coast, tracking.activation_weight
        )

    @property
    def ranks(self) -> int:
        """Detections considered per token and layer."""
        return self.top_k * self.second_association


class TrackingResult(NamedTuple):
    """Tracks of a batch of tokens."""

    table: TrackTable
    candidates: int  # candidate links
    hard: int  # candidate links that needed the solver


def detect(code: NDArray[np.float32], ranks: int) -> Detections:
    """Find the up to `ranks` strongest features above 0 of each row of `code` (rows, d_sae).

    Of equal activations, the lower feature comes first.
    """
    flat = np.flatnonzero(code > 0)  # several times faster than a two-dimensional search
    row, feature = np.divmod(flat, code.shape[1])
    return detect_active(row, feature, code.ravel()[flat], len(code), ranks)


def detect_active(
    row: NDArray[np.int64],
    feature: NDArray[np.int64],
    activation: NDArray[np.floating],
    rows: int,
    ranks: int,
) -> Detections:
    """As `detect`, from the active features alone.

    All arrays are (entries,), the activations are above 0, and the rows ascend.
    """
    count = np.bincount(row, minlength=rows)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    # One integer key per detection that sorts strongest first: positive floats have the same order
    # as their bit patterns.
    strength = activation.astype(np.float32, copy=False).view(np.int32).astype(np.int64)
    keys = np.full((rows, max(1, int(count.max(initial=0)))), _NOTHING)
    keys[row, rank] = ((_STRONGEST - strength) << 32) | feature
    keys.sort(axis=1)
    keys = keys[:, :ranks]
    found = (_STRONGEST - (keys >> 32)).astype(np.int32).view(np.float32)
    return Detections((keys & _LOW).astype(np.uint32).view(np.int32), found)


class _Layer(NamedTuple):
    """The part of a layer that later layers read, all (rows, slots)."""

    feature: NDArray[np.int32]
    activation: NDArray[np.float32]
    continued: Flags  # a later layer continues this detection's track


class _CandidateLinks(NamedTuple):
    """Candidate links into one layer, all (links,)."""

    row: NDArray[np.int64]
    slot: NDArray[np.int64]  # of the track in the earlier layer
    rank: NDArray[np.int64]  # of the detection in this layer
    gap: NDArray[np.int64]  # 1: the previous layer, 2: the layer before it
    surplus: NDArray[np.float32]  # similarity - gate
    weight: NDArray[np.float32]  # surplus less the activation penalty


def follow(
    detections: Sequence[Detections],
    adjacent: Sequence[Links | None],
    skip: Sequence[Links | None],
    options: TrackerOptions,
) -> TrackingResult:
    """Link the detections of every layer, first to last, for all rows at once.

    Args:
        detections: one per layer, with the same rows.
        adjacent: links from layer i to i + 1, for every layer but the last; None means no links.
        skip: links from layer i to i + 2, for every layer but the last two; read if
            `options.coast`.
    """
    rows, past, layers = len(detections[0].feature), list[_Layer](), list[TrackTable]()
    candidates = hard = 0
    for position, current in enumerate(detections):
        sources = [(1, adjacent[position - 1])] if position else []
        if position > 1 and options.coast:
            sources.append((2, skip[position - 2]))
        edges = _candidates(
            current, [(gap, past[-gap], table) for gap, table in sources if table], options
        )
        widest = max((layer.feature.shape[1] for layer in past[-2:]), default=1)
        left = (edges.row * 2 + edges.gap - 1) * widest + edges.slot
        chosen, left_to_solver = assign(
            left, edges.row * current.feature.shape[1] + edges.rank, edges.weight
        )
        candidates, hard = candidates + len(left), hard + left_to_solver
        edges = _CandidateLinks(*(column[chosen] for column in edges))  # type: ignore[arg-type]
        for gap in (1, 2):
            of_gap = edges.gap == gap
            if of_gap.any():
                past[-gap].continued[edges.row[of_gap], edges.slot[of_gap]] = True
        layers.append(_compact(current, edges, options.top_k))
        past.append(
            _Layer(
                layers[-1].feature, layers[-1].activation, np.zeros(layers[-1].feature.shape, bool)
            )
        )
    table = blank(rows, len(layers), max(layer.feature.shape[1] for layer in layers))
    for position, layer in enumerate(layers):
        for name in TrackTable._fields:
            values = getattr(layer, name)
            getattr(table, name)[:, position, : values.shape[1]] = values
    return TrackingResult(table, candidates, hard)


def _candidates(
    current: Detections, sources: list[tuple[int, _Layer, Links]], options: TrackerOptions
) -> _CandidateLinks:
    """Every pair of an open track and a detection whose weight is above 0."""
    width = 1 + max(
        [
            int(current.feature.max()),
            *(int(table.target.max(initial=-1)) for _, _, table in sources),
        ]
    )
    ranks = _rank_of(current.feature, width)
    parts = []
    for gap, layer, table in sources:
        # Two layers back, only tracks that no later layer continued. One layer back, none is
        # continued yet.
        open_tracks = np.flatnonzero((layer.feature >= 0) & ~layer.continued)
        row, slot = np.divmod(open_tracks, layer.feature.shape[1])
        feature = layer.feature.ravel()[open_tracks]
        count = table.start[feature + 1] - table.start[feature]
        end = np.cumsum(count)
        entry = np.arange(end[-1] if len(end) else 0) + np.repeat(
            table.start[feature] - end + count, count
        )
        rank_of_target = ranks.take(np.repeat(row * ranks.shape[1], count) + table.target[entry])
        matches = np.flatnonzero(rank_of_target >= 0)
        origin, entry, rank = (
            np.searchsorted(end, matches, side="right"),
            entry[matches],
            rank_of_target[matches].astype(np.int64),
        )
        parts.append(
            (
                row[origin],
                slot[origin],
                rank,
                np.full(len(rank), gap),
                table.surplus[entry],
                layer.activation[row[origin], slot[origin]],
            )
        )
    if not parts:
        none = np.zeros(0, np.int64)
        return _CandidateLinks(
            none, none, none, none, none.astype(np.float32), none.astype(np.float32)
        )
    row, slot, rank, gaps, surplus, activation = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    # ASSUME: activations of two layers are comparable without rescaling, because codes are in the
    # scale of the SAE's training, which normalises activations.
    next_activation = current.activation[row, rank].astype(np.float64)
    weight = surplus - options.activation_weight * np.abs(activation - next_activation) / (
        activation + next_activation
    )
    edges = _CandidateLinks(row, slot, rank, gaps, surplus, weight.astype(np.float32))
    return _CandidateLinks(*(column[weight > 0] for column in edges))


def _rank_of(features: NDArray[np.int32], width: int) -> NDArray[np.int16]:
    """Rank of every feature below `width` among a row's detections, (rows, width + 1).

    It is -1 for a feature that is not detected. The last column takes the empty ranks.
    """
    ranks = np.full((len(features), width + 1), -1, np.int16)
    ranks[np.arange(len(features))[:, None], features] = np.arange(
        features.shape[1], dtype=np.int16
    )  # feature -1 writes to the last column
    return ranks


def _compact(detections: Detections, edges: _CandidateLinks, top_k: int) -> TrackTable:
    """One layer of the table, all (rows, slots).

    The strongest top_k detections come first, then the weaker ones that continue a track.
    """
    kept = detections.feature >= 0
    kept[:, top_k:] = False
    kept[edges.row, edges.rank] = True
    slot = np.cumsum(kept, axis=1, dtype=np.int32) - 1
    empty = blank(len(kept), 1, max(1, int(slot.max(initial=0)) + 1))
    table = TrackTable(*(column[:, 0] for column in empty))  # type: ignore[arg-type]
    flat = np.flatnonzero(kept)
    target = flat // kept.shape[1], slot.ravel()[flat]
    table.feature[target] = detections.feature.ravel()[flat]
    table.activation[target] = detections.activation.ravel()[flat]
    linked = edges.row, slot[edges.row, edges.rank]
    table.previous[linked], table.gap[linked], table.surplus[linked] = (
        edges.slot,
        edges.gap,
        edges.surplus,
    )
    return table


def shuffle_links(table: TrackTable, top_k: int, generator: np.random.Generator) -> TrackTable:
    """The `random` null: keep the detections, and draw as many links per token, layer and gap.

    A weak detection, kept only because a track continues in it, always gets a link here too.
    `surplus` is 0 because random links have no similarity.
    """
    rows, layers, slots = table.feature.shape
    previous, gap = np.full_like(table.previous, -1), np.zeros_like(table.gap)
    free = table.feature >= 0  # detections without an outgoing link so far
    for position in range(1, layers):
        counts = [(table.gap[:, position] == size).sum(1) for size in (1, 2)]
        total = counts[0] + counts[1]
        key = generator.random((rows, slots))
        key[:, top_k:] -= 1  # the weak ones first
        chosen = _first(np.where(table.feature[:, position] >= 0, key, np.inf), total)
        # Shuffle the chosen targets, so that weak ones get no more links of gap 2 than others.
        row, target = _ordered(np.where(chosen, generator.random((rows, slots)), np.inf), total)
        index = np.arange(len(row)) - np.searchsorted(row, row)
        for size, first in ((1, np.zeros(rows, np.int64)), (2, counts[0])):
            if not counts[size - 1].any():
                continue
            key = np.where(free[:, position - size], generator.random((rows, slots)), np.inf)
            _, source = _ordered(key, counts[size - 1])
            selected = (index >= first[row]) & (index < (first + counts[size - 1])[row])
            previous[row[selected], position, target[selected]] = source
            gap[row[selected], position, target[selected]] = size
            free[row[selected], position - size, source] = False
    return TrackTable(table.feature, table.activation, previous, gap, np.zeros_like(table.surplus))


def _ordered(
    key: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the `count[row]` smallest keys of each row, by ascending row and key."""
    order = np.argsort(key, axis=1, kind="stable")
    row, index = np.nonzero(np.arange(key.shape[1]) < count[:, None])
    return row, order[row, index]


def _first(key: NDArray[np.float64], count: NDArray[np.int64]) -> Flags:
    flags = np.zeros(key.shape, dtype=bool)
    flags[_ordered(key, count)] = True
    return flags


def shuffled_order(layers: int, seed: int) -> list[int]:
    """Draw an order of the layer positions that is not the natural one; one layer stays."""
    generator = np.random.default_rng([seed, layers])
    order = list(range(layers))
    while layers > 1 and order == sorted(order):
        order = [int(position) for position in generator.permutation(layers)]
    return order
