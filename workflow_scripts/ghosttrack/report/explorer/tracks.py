"""The tracks of every answer token as plain lists, the strongest first."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.track_metrics import ReadableTracks
from ghosttrack.tracks.track_table import ROWS, TrackTable

# Activations are stored as integers: LEVELS per mean activation of the layer.
LEVELS = 100


class Track(NamedTuple):
    """One track of a token across layers.

    first: index of its first layer among the analysed layers.
    features: one per layer from `first` on, -1 in a layer without a detection.
    levels: LEVELS times activation / mean activation of the layer, 0 without a detection.
    """

    first: int
    features: list[int]
    levels: list[int]


class TokenTracks(NamedTuple):
    """The shown tracks of a token, strongest first, and the total number of its tracks."""

    shown: list[Track]
    total: int


def of_rows(tracks: ReadableTracks, rows: Sequence[int], most: int) -> dict[int, TokenTracks]:
    """The strongest `most` tracks of the given rows: largest sum of activations over layers.

    Args:
        tracks: track store.
        rows: rows of the store.
        most: maximum number of tracks per row.
    """
    wanted = np.array(sorted(rows), dtype=np.int64)
    by_row: dict[int, TokenTracks] = {}
    for start in range(0, tracks.rows, ROWS):
        here = wanted[(wanted >= start) & (wanted < start + ROWS)]
        if len(here):
            table = tracks.read(start, min(start + ROWS, tracks.rows))
            chosen = TrackTable(*(cast(Any, values[here - start]) for values in table))
            by_row |= dict(zip(here.tolist(), _tokens(chosen, tracks.scale, most), strict=True))
    return by_row


def _tokens(table: TrackTable, scale: NDArray[np.float64], most: int) -> list[TokenTracks]:
    present = table.feature >= 0  # (rows, layers, slots)
    row, layer, _ = np.nonzero(present)
    track = track_numbers(table)[present]
    feature = table.feature[present]
    level = np.rint(
        LEVELS * table.activation[present] / np.where(scale > 0, scale, 1.0)[layer]
    ).astype(np.int64)
    count = int(track.max(initial=-1)) + 1
    strength = np.bincount(track, level, minlength=count)
    owner = np.zeros(count, dtype=np.int64)
    owner[track] = row
    totals = np.bincount(owner, minlength=len(present))
    # Strongest first within each row, then by track number.
    order = np.lexsort((np.arange(count), -strength, owner))
    rank = np.arange(count) - np.repeat(np.cumsum(totals) - totals, totals)
    shown = order[rank < most]
    by_track = np.lexsort((layer, track))
    starts = np.searchsorted(track[by_track], np.arange(count + 1))
    tokens: list[list[Track]] = [[] for _ in totals]
    for number in shown.tolist():
        part = by_track[starts[number] : starts[number + 1]]
        tokens[owner[number]].append(
            _filled(layer[part].tolist(), feature[part].tolist(), level[part].tolist())
        )
    return [TokenTracks(token, int(total)) for token, total in zip(tokens, totals, strict=True)]


def _filled(layers: list[int], features: list[int], levels: list[int]) -> Track:
    """A track with an entry for every layer from its first to its last."""
    entries: list[Any] = [(-1, 0)] * (layers[-1] - layers[0] + 1)
    for layer, feature, level in zip(layers, features, levels, strict=True):
        entries[layer - layers[0]] = (feature, level)
    return Track(layers[0], [feature for feature, _ in entries], [level for _, level in entries])
