"""Tracks of candidate answers: features that promote a candidate, followed through the layers.

At every prompt token, the features in favour of a candidate are detections of this candidate alone,
and the links of the tracker join them across layers. A detection's activation is the size of its
attribution |a|, so that a track's strength is the attribution that it carries. A track counts as
linked if it has detections in at least two layers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.activations.logit_gradients import Gradients
from ghosttrack.tracks.attribution import EVEN, ODD, Entries, Floats, Ints, total_of
from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.track_run import TrackingPlan
from ghosttrack.tracks.track_table import TrackTable
from ghosttrack.tracks.tracking import Detections, TrackerOptions, detect_active, shuffle_links

# Metrics of one candidate's tracks; in tables with the prefix of the candidate.
_OF_CANDIDATE = (
    "strength",  # attribution carried by linked tracks
    "linked",  # their share in the candidate's attribution
    "length",  # layers of a track, mean weighted by strength
    "tracks",  # log(1 + number of linked tracks)
    "strongest",  # strength of the strongest track
    "first",  # first layer of a track, 0 = lowest, 1 = highest; mean weighted by strength
    "last",  # last layer
    "spread",  # entropy of the strengths of the candidate's tracks, in nats
)
STATED, OTHER = "stated", "other"
# Metrics of both candidates' tracks, and what happens if the candidates are exchanged.
_OF_BOTH = {
    "lead": ODD,  # (strength of one - strength of the other) / sum, linked tracks
    "strongest_lead": ODD,  # the same for the strongest tracks
    "lead_first": ODD,  # the same for the attributions in the lowest layer
    "lead_last": ODD,  # in the highest layer
    "crossings": EVEN,  # changes of the leading candidate from layer to layer
    "coexistence": EVEN,  # sum of the weaker over sum of the stronger attribution of each layer
    "candidate_entropy": EVEN,  # entropy over the two candidates, mean over layers, in nats
}
TRACK_METRICS = {
    **{f"{STATED}_{name}": f"{OTHER}_{name}" for name in _OF_CANDIDATE},
    **{f"{OTHER}_{name}": f"{STATED}_{name}" for name in _OF_CANDIDATE},
    **_OF_BOTH,
}


class _Tracks(NamedTuple):
    """Tracks of one candidate, all (tracks,); profile: (comparisons, layers) attribution."""

    text: Ints
    strength: Floats
    length: Ints
    first: Ints
    last: Ints
    profile: Floats


def detected(entries: Sequence[Entries], rows: int, ranks: int) -> list[list[Detections]]:
    """The detections of the first and of the second candidate, by layer.

    Args:
        entries: attributions by layer, rows ascending.
        rows: number of prompt tokens.
        ranks: detections per token and layer at most, the strongest first.
    """
    return [[_detections(layer, sign, rows, ranks) for layer in entries] for sign in (1, -1)]


def follow(
    detections: Sequence[Sequence[Detections]], plan: TrackingPlan, options: TrackerOptions
) -> list[TrackTable]:
    """The tracks of both candidates; `detections` as from `detected`, plan: layers and links."""
    return [
        plan.follow([layers[position] for position in plan.order], options).table
        for layers in detections
    ]


def with_random_links(
    tables: Sequence[TrackTable], gradients: Gradients, options: TrackerOptions, seed: Sequence[int]
) -> list[TrackTable]:
    """The null `random`: the tracks of both candidates with as many links, drawn at random."""
    return [
        shuffle_links(
            table, options.top_k, np.random.default_rng([*seed, gradients.numbers[0], side])
        )
        for side, table in enumerate(tables)
    ]


def track_metrics(tables: Sequence[TrackTable], gradients: Gradients) -> dict[str, Floats]:
    """TRACK_METRICS of some comparisons, each (comparisons,); stated = first, other = second."""
    count, layers = len(gradients.numbers), tables[0].feature.shape[1]
    both = [_tracks(table, gradients.text, count) for table in tables]
    found: dict[str, Floats] = {}
    for name, tracks in zip((STATED, OTHER), both, strict=True):
        found |= {
            f"{name}_{metric}": value for metric, value in _of_candidate(tracks, count).items()
        }
    ours, theirs = (tracks.profile for tracks in both)
    leading = np.sign(ours - theirs)
    p = _ratio(ours, ours + theirs)
    entropy = -sum(q * np.log(np.where(q > 0, q, 1.0)) for q in (p, 1 - p))
    lowest, highest = 0, layers - 1
    return {
        **found,
        "lead": _lead(found[f"{STATED}_strength"], found[f"{OTHER}_strength"]),
        "strongest_lead": _lead(found[f"{STATED}_strongest"], found[f"{OTHER}_strongest"]),
        "lead_first": _lead(ours[:, lowest], theirs[:, lowest]),
        "lead_last": _lead(ours[:, highest], theirs[:, highest]),
        "crossings": (leading[:, 1:] * leading[:, :-1] < 0).sum(1).astype(np.float64),
        "coexistence": _ratio(np.minimum(ours, theirs).sum(1), np.maximum(ours, theirs).sum(1)),
        "candidate_entropy": np.asarray(entropy, dtype=np.float64).mean(1),
    }


def strongest(tables: Sequence[TrackTable], gradients: Gradients, most: int) -> pd.DataFrame:
    """The strongest linked tracks of both candidates, one row per detection.

    Columns: comparison; side, 0 for the first candidate and 1 for the second; track, 0 = the
    strongest of its comparison and side; position of the prompt token, 1 = first; layer, as a
    position in the order of the layers; feature; attribution.

    Args:
        most: maximum number of tracks per comparison and side.
    """
    starts = np.concatenate([[0], gradients.last[:-1] + 1])  # first row of each comparison
    parts = []
    for side, table in enumerate(tables):
        present = table.feature >= 0
        row, layer, _ = np.nonzero(present)
        number = track_numbers(table)[present]
        value = table.activation[present].astype(np.float64)
        count = int(number.max(initial=-1)) + 1
        strength, length = total_of(value, number, count), np.bincount(number, minlength=count)
        owner = np.zeros(count, dtype=np.int64)
        owner[number] = gradients.text[row]
        linked = np.flatnonzero(length >= 2)
        order = linked[np.lexsort((linked, -strength[linked], owner[linked]))]
        sizes = np.bincount(owner[order], minlength=len(starts))
        rank = np.full(count, most)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shown = rank[number] < most
        text = gradients.text[row]
        parts.append(
            pd.DataFrame(
                {
                    "comparison": np.array(gradients.numbers)[text],
                    "side": side,
                    "track": rank[number],
                    "position": row - starts[text] + 1,
                    "layer": layer,
                    "feature": table.feature[present],
                    "attribution": value,
                }
            )[shown]
        )
    return pd.concat(parts, ignore_index=True)


def _detections(entries: Entries, sign: int, rows: int, ranks: int) -> Detections:
    size = np.abs(entries.value).astype(np.float32)
    favour = (sign * entries.value > 0) & (size > 0)  # a tiny value is 0 in single precision
    return detect_active(entries.row[favour], entries.feature[favour], size[favour], rows, ranks)


def _tracks(table: TrackTable, text: Ints, count: int) -> _Tracks:
    """Number the tracks and sum up their detections."""
    rows, layers, _ = table.feature.shape
    track = np.full(table.feature.shape, -1, dtype=np.int64)
    row = np.arange(rows)[:, None]
    born = 0
    owner: list[Ints] = []
    for layer in range(layers):
        present = table.feature[:, layer] >= 0
        for gap in (1, 2):
            linked = present & (table.gap[:, layer] == gap)
            if linked.any():
                before = track[row, layer - gap, np.maximum(table.previous[:, layer], 0)]
                track[:, layer][linked] = before[linked]
        births = present & (table.gap[:, layer] == 0)
        at, _ = np.nonzero(births)
        track[:, layer][births] = born + np.arange(len(at))
        owner.append(text[at])
        born += len(at)
    at, layer_of, slot = np.nonzero(track >= 0)
    number = track[at, layer_of, slot]
    value = table.activation[at, layer_of, slot].astype(np.float64)
    first, last = np.full(born, layers), np.full(born, -1)
    np.minimum.at(first, number, layer_of)
    np.maximum.at(last, number, layer_of)
    profile = total_of(value, text[at] * layers + layer_of, count * layers)
    return _Tracks(
        np.concatenate(owner),
        total_of(value, number, born),
        np.bincount(number, minlength=born),
        first,
        last,
        profile.reshape(count, layers),
    )


def _of_candidate(tracks: _Tracks, count: int) -> dict[str, Floats]:
    def summed(values: NDArray[Any]) -> Floats:
        return total_of(values, tracks.text, count)

    total, linked = summed(tracks.strength), tracks.length >= 2
    carried, strongest = summed(tracks.strength * linked), np.zeros(count)
    np.maximum.at(strongest, tracks.text, tracks.strength)
    share = _ratio(tracks.strength, total[tracks.text])
    highest = max(tracks.profile.shape[1] - 1, 1)
    return {
        "strength": carried,
        "linked": _ratio(carried, total),
        "length": summed(share * tracks.length),
        "tracks": np.log1p(summed(linked)),
        "strongest": strongest,
        "first": summed(share * tracks.first) / highest,
        "last": summed(share * tracks.last) / highest,
        "spread": -summed(share * np.log(np.where(share > 0, share, 1.0))),
    }


def _lead(ours: Floats, theirs: Floats) -> Floats:
    return _ratio(ours - theirs, ours + theirs)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(above / np.where(below > 0, below, 1.0), dtype=np.float64)
