"""Following features across layers: detections, optimal links above the gate, coasting and rescue.

At every layer the living tracks of a token (seen one layer earlier, or two and silent since) compete
for the token's detections. Links maximise the summed surplus
    cosine - gate - activation_weight * |a - b| / (a + b)
over all one-to-one choices; a negative surplus is no link, so births and deaths are part of the
optimum. The strongest `top_k` active features are detections; weaker ones, down to rank
top_k x rescue, are kept only if a track continues in them (the second chance of ByteTrack,
Zhang et al. 2022, arXiv:2110.06864, here inside the one optimum).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.association import assign
from ghosttrack.tracks.neighbours import Links
from ghosttrack.tracks.track_table import Table, blank

Flags = NDArray[np.bool_]

# Of a sorted detection: its strength counted down from here, and its feature in the low bits; NOTHING is feature -1 at 0.0.
_STRONGEST, _LOW = np.int64(2**31 - 1), np.int64(2**32 - 1)
_NOTHING = (_STRONGEST << 32) | _LOW


class Detections(NamedTuple):
    """Active features of one layer, both (rows, ranks): strongest first, feature -1 where there are no more."""

    feature: NDArray[np.int32]
    activation: NDArray[np.float32]


class Options(NamedTuple):
    """What the tracker needs of the settings: see TrackingSettings."""

    top_k: int
    rescue: int
    coast: int
    activation_weight: float

    @property
    def ranks(self) -> int:
        """Detections looked at per token and layer."""
        return self.top_k * self.rescue


class Followed(NamedTuple):
    """Tracks of a batch of tokens, with counts: candidate links, and those that needed the solver."""

    table: Table
    candidates: int
    hard: int


def detect(code: NDArray[np.float32], ranks: int) -> Detections:
    """The up to `ranks` strongest features above 0 of each row of `code` (rows, d_sae); ties: the lower feature first."""
    flat = np.flatnonzero(code > 0)  # one dimension: several times as fast as two
    count = np.bincount(flat // code.shape[1], minlength=len(code))
    row = np.repeat(np.arange(len(code)), count)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    # One number that says all, and sorts strongest first: bits of positive floats are ordered as the floats are.
    strength = code.ravel()[flat].astype(np.float32, copy=False).view(np.int32).astype(np.int64)
    keys = np.full((len(code), max(1, int(count.max(initial=0)))), _NOTHING)
    keys[row, place] = ((_STRONGEST - strength) << 32) | (flat - row * code.shape[1])
    keys.sort(axis=1)
    keys = keys[:, :ranks]
    activation = (_STRONGEST - (keys >> 32)).astype(np.int32).view(np.float32)
    return Detections((keys & _LOW).astype(np.uint32).view(np.int32), activation)


class _Layer(NamedTuple):
    """What later layers need of an earlier one, all (rows, slots)."""

    feature: NDArray[np.int32]
    activation: NDArray[np.float32]
    continued: Flags  # a later layer took this detection's track over


class _Edges(NamedTuple):
    """Candidate links into one layer: row, slot they come from, rank they lead to, gap, surplus, weight."""

    row: NDArray[np.int64]
    slot: NDArray[np.int64]
    rank: NDArray[np.int64]
    gap: NDArray[np.int64]
    surplus: NDArray[np.float32]
    weight: NDArray[np.float32]


def follow(
    detections: Sequence[Detections],
    adjacent: Sequence[Links | None],
    skip: Sequence[Links | None],
    options: Options,
) -> Followed:
    """Link the detections of every layer, first to last, for all rows at once.

    Args:
        detections: one per layer, the same rows in each.
        adjacent: links from layer i to i + 1, for every layer but the last; None links nothing.
        skip: links from layer i to i + 2, for every layer but the last two; used if `options.coast`.
    """
    rows, past, kept = len(detections[0].feature), list[_Layer](), list[Table]()
    candidates = hard = 0
    for position, found in enumerate(detections):
        sources = [(1, adjacent[position - 1])] if position else []
        if position > 1 and options.coast:
            sources.append((2, skip[position - 2]))
        edges = _candidates(
            found, [(gap, past[-gap], table) for gap, table in sources if table], options
        )
        widest = max((layer.feature.shape[1] for layer in past[-2:]), default=1)
        left = (edges.row * 2 + edges.gap - 1) * widest + edges.slot
        chosen, unsettled = assign(
            left, edges.row * found.feature.shape[1] + edges.rank, edges.weight
        )
        candidates, hard = candidates + len(left), hard + unsettled
        edges = _Edges(*(column[chosen] for column in edges))  # type: ignore[arg-type]
        for gap in (1, 2):
            of_gap = edges.gap == gap
            if of_gap.any():
                past[-gap].continued[edges.row[of_gap], edges.slot[of_gap]] = True
        kept.append(_compact(found, edges, options.top_k))
        past.append(
            _Layer(kept[-1].feature, kept[-1].activation, np.zeros(kept[-1].feature.shape, bool))
        )
    table = blank(rows, len(kept), max(layer.feature.shape[1] for layer in kept))
    for position, layer in enumerate(kept):
        for name in Table._fields:
            part = getattr(layer, name)
            getattr(table, name)[:, position, : part.shape[1]] = part
    return Followed(table, candidates, hard)


def _candidates(
    found: Detections, sources: list[tuple[int, _Layer, Links]], options: Options
) -> _Edges:
    """Every pair of a living track and a detection whose similarity beats gate and activation penalty."""
    width = 1 + max(
        [int(found.feature.max()), *(int(table.target.max(initial=-1)) for _, _, table in sources)]
    )
    ranks = _rank_of(found.feature, width)
    parts = []
    for gap, layer, table in sources:
        # Two layers back only those that nothing continued; one layer back nothing has been continued yet.
        living = np.flatnonzero((layer.feature >= 0) & ~layer.continued)
        row, slot = np.divmod(living, layer.feature.shape[1])
        feature = layer.feature.ravel()[living]
        count = table.start[feature + 1] - table.start[feature]
        end = np.cumsum(count)
        entry = np.arange(end[-1] if len(end) else 0) + np.repeat(
            table.start[feature] - end + count, count
        )
        found_rank = ranks.take(np.repeat(row * ranks.shape[1], count) + table.target[entry])
        hit = np.flatnonzero(found_rank >= 0)
        origin, entry, rank = (
            np.searchsorted(end, hit, side="right"),
            entry[hit],
            found_rank[hit].astype(np.int64),
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
        return _Edges(none, none, none, none, none.astype(np.float32), none.astype(np.float32))
    row, slot, rank, gaps, surplus, before = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    # ASSUME: activations of two layers compare as they are; the autoencoders' own scales make them so.
    after = found.activation[row, rank].astype(np.float64)
    weight = surplus - options.activation_weight * np.abs(before - after) / (before + after)
    edges = _Edges(row, slot, rank, gaps, surplus, weight.astype(np.float32))
    return _Edges(*(column[weight > 0] for column in edges))


def _rank_of(features: NDArray[np.int32], width: int) -> NDArray[np.int16]:
    """Rank of every feature below `width` among a row's detections, -1 if it is not one of them; (rows, width + 1)."""
    ranks = np.full((len(features), width + 1), -1, np.int16)
    ranks[np.arange(len(features))[:, None], features] = np.arange(
        features.shape[1], dtype=np.int16
    )  # -1: the last column
    return ranks


def _compact(found: Detections, edges: _Edges, top_k: int) -> Table:
    """One layer of the table, (rows, slots) each: the strongest top_k, then the weaker ones that continue a track."""
    kept = found.feature >= 0
    kept[:, top_k:] = False
    kept[edges.row, edges.rank] = True
    slot = np.cumsum(kept, axis=1, dtype=np.int32) - 1
    whole = blank(len(kept), 1, max(1, int(slot.max(initial=0)) + 1))
    table = Table(*(column[:, 0] for column in whole))  # type: ignore[arg-type]
    one = np.flatnonzero(kept)
    to = one // kept.shape[1], slot.ravel()[one]
    table.feature[to] = found.feature.ravel()[one]
    table.activation[to] = found.activation.ravel()[one]
    at = edges.row, slot[edges.row, edges.rank]
    table.previous[at], table.gap[at], table.surplus[at] = edges.slot, edges.gap, edges.surplus
    return table


def relink(table: Table, top_k: int, generator: np.random.Generator) -> Table:
    """The null of random links: the same detections and as many links per token, layer and gap, drawn at random.

    A weak detection, there only because a track continued in it, is always continued here too. Links
    to a detection that chance gave are not similarities, so `surplus` is 0.
    """
    rows, layers, slots = table.feature.shape
    previous, gap = np.full_like(table.previous, -1), np.zeros_like(table.gap)
    free = table.feature >= 0  # detections that no link has left yet
    for position in range(1, layers):
        counts = [(table.gap[:, position] == size).sum(1) for size in (1, 2)]
        total = counts[0] + counts[1]
        key = generator.random((rows, slots))
        key[:, top_k:] -= 1  # the weak ones first
        chosen = _first(np.where(table.feature[:, position] >= 0, key, np.inf), total)
        # The chosen targets in an order of their own, so that weak ones are no likelier to be coasted to.
        row, target = _ordered(np.where(chosen, generator.random((rows, slots)), np.inf), total)
        place = np.arange(len(row)) - np.searchsorted(row, row)
        for size, first in ((1, np.zeros(rows, np.int64)), (2, counts[0])):
            if not counts[size - 1].any():
                continue
            key = np.where(free[:, position - size], generator.random((rows, slots)), np.inf)
            _, source = _ordered(key, counts[size - 1])
            here = (place >= first[row]) & (place < (first + counts[size - 1])[row])
            previous[row[here], position, target[here]] = source
            gap[row[here], position, target[here]] = size
            free[row[here], position - size, source] = False
    return Table(table.feature, table.activation, previous, gap, np.zeros_like(table.surplus))


def _ordered(
    key: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the `count[row]` smallest keys of each row, ascending by row and key."""
    order = np.argsort(key, axis=1, kind="stable")
    row, place = np.nonzero(np.arange(key.shape[1]) < count[:, None])
    return row, order[row, place]


def _first(key: NDArray[np.float64], count: NDArray[np.int64]) -> Flags:
    flags = np.zeros(key.shape, dtype=bool)
    flags[_ordered(key, count)] = True
    return flags


def shuffled_order(layers: int, seed: int) -> list[int]:
    """The positions of `layers` layers in an order drawn by `seed`, not the natural one; one layer stays."""
    generator = np.random.default_rng([seed, layers])
    order = list(range(layers))
    while layers > 1 and order == sorted(order):
        order = [int(position) for position in generator.permutation(layers)]
    return order
