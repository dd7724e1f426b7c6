"""The tracks of each answer token as plain lists, the strongest first."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.track_metrics import ReadableTracks
from ghosttrack.tracks.track_table import ROWS, TrackTable

# Activations are in units of the layer's mean activation; this many levels a unit are more than a screen can show.
LEVELS = 100


class Track(NamedTuple):
    """One hypothesis over the layers of a token.

    first: place of its first layer among the analysed ones; features: one a layer from there on, -1 where it is silent;
    levels: LEVELS times the activation in units of the layer's mean, 0 where it is silent.
    """

    first: int
    features: list[int]
    levels: list[int]


class Token(NamedTuple):
    """The tracks of a token that are shown, strongest first, and how many there are in all."""

    shown: list[Track]
    total: int


def of_rows(tracks: ReadableTracks, rows: Sequence[int], most: int) -> dict[int, Token]:
    """Tracks of the chosen rows of a track store, `most` a token; strong = large sum of activations over layers."""
    wanted = np.array(sorted(rows), dtype=np.int64)
    found: dict[int, Token] = {}
    for start in range(0, tracks.rows, ROWS):
        here = wanted[(wanted >= start) & (wanted < start + ROWS)]
        if len(here):
            table = tracks.read(start, min(start + ROWS, tracks.rows))
            chosen = TrackTable(*(cast(Any, values[here - start]) for values in table))
            found |= dict(zip(here.tolist(), _tokens(chosen, tracks.scale, most), strict=True))
    return found


def _tokens(table: TrackTable, scale: NDArray[np.float64], most: int) -> list[Token]:
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
    place = np.arange(count) - np.repeat(np.cumsum(totals) - totals, totals)
    kept = order[place < most]
    by_track = np.lexsort((layer, track))
    starts = np.searchsorted(track[by_track], np.arange(count + 1))
    tokens: list[list[Track]] = [[] for _ in totals]
    for number in kept.tolist():
        part = by_track[starts[number] : starts[number + 1]]
        tokens[owner[number]].append(
            _filled(layer[part].tolist(), feature[part].tolist(), level[part].tolist())
        )
    return [Token(shown, int(total)) for shown, total in zip(tokens, totals, strict=True)]


def _filled(layers: list[int], features: list[int], levels: list[int]) -> Track:
    """One entry a layer, also for the silent ones in between."""
    silent: list[Any] = [(-1, 0)] * (layers[-1] - layers[0] + 1)
    for layer, feature, level in zip(layers, features, levels, strict=True):
        silent[layer - layers[0]] = (feature, level)
    return Track(layers[0], [each[0] for each in silent], [each[1] for each in silent])
