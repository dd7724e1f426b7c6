"""The second time axis: the same hypotheses followed from one answer token to the next, while the answer is written.

A detection is found again at the next token if its feature is a detection of the same layer there, or else if
an unmatched detection of that layer is in its cluster (the same hypothesis in other words). A track, which runs
through the layers of one token, goes on at the next token if the feature of one of its detections is found
again there. Values are means over the steps of an answer, a step being two neighbouring tokens with detections.
An answer of one token has no step: its values are NaN but for steps (0) and run length (1), because any number
there would tell short answers from long ones. a: activations in units of the layer's mean.

| name | formula |
|---|---|
| generation_steps | tokens - 1: grows with the answer's length |
| generation_persistence | share of detections whose feature is found again at the next token |
| generation_persistence_clusters | the same with their cluster standing for those whose feature is not |
| generation_carried | share of a that is in detections whose feature is found again |
| generation_survival | share of tracks that go on at the next token |
| generation_births, _deaths | tracks of a token that come from none before it; that go on in none after it |
| generation_switches | share of steps in which the strongest track (by the sum of a) does not go on in the strongest one |
| generation_cluster_switches | share of steps in which the cluster with the largest sum of a is another one |
| generation_run_length | mean tokens in a row at which a feature is a detection: grows with the answer's length |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.track_table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMES = (
    "generation_steps",
    "generation_persistence",
    "generation_persistence_clusters",
    "generation_carried",
    "generation_survival",
    "generation_births",
    "generation_deaths",
    "generation_switches",
    "generation_cluster_switches",
    "generation_run_length",
)
# Those of a single step, in the order of the columns of `measure_steps`.
STEP_NAMES = NAMES[1:-1]


class TokenLinks(NamedTuple):
    """From the detections of rows 0 .. n - 2 to those of the row after each: slot there, -1 = not found; (n - 1, layers, slots)."""

    feature: NDArray[np.int16]  # the same feature
    cluster: NDArray[np.int16]  # another feature of its cluster, for those without the same feature


class Steps(NamedTuple):
    """Steps of consecutive rows: `values` (rows - 1, 8) in the order of STEP_NAMES, NaN where either row is empty;
    `detections` (rows,); `again` (rows - 1,) detections whose feature is found again."""

    values: Floats
    detections: Ints
    again: Ints


def link_tokens(table: Table, cluster: NDArray[np.int32]) -> TokenLinks:
    """Find every detection of a row again in the next row.

    Args:
        table: rows of one text after another.
        cluster: (rows, layers, slots), -1 = empty.
    """
    steps, layers, slots = table.feature[1:].shape
    found = TokenLinks(*(np.full((steps, layers, slots), -1, np.int16) for _ in range(2)))
    for layer in range(layers):
        now, after = table.feature[:-1, layer], table.feature[1:, layer]
        same = _slots_of(after, now)
        found.feature[:, layer] = same
        taken = np.zeros((steps, slots), dtype=bool)
        row, slot = np.nonzero(same >= 0)
        taken[row, same[row, slot]] = True
        left = np.where(same >= 0, -1, cluster[:-1, layer])
        found.cluster[:, layer] = _slots_of(np.where(taken, -1, cluster[1:, layer]), left)
    return found


def _slots_of(values: NDArray[np.int32], wanted: NDArray[np.int32]) -> NDArray[np.int16]:
    """First slot of `values` (rows, slots) that holds each of `wanted` (rows, slots) of the same row; -1: none does."""
    width = max(int(values.max(initial=-1)), int(wanted.max(initial=-1))) + 1
    table = np.full(
        (len(values), width + 1), -1, dtype=np.int16
    )  # the last column stays -1, for empty slots
    row, slot = np.nonzero(values >= 0)
    # Of several slots with one value the first stays: it is written last.
    table[row[::-1], values[row, slot][::-1]] = slot[::-1]
    found: NDArray[np.int16] = table[np.arange(len(values))[:, None], wanted]
    return found


def measure_steps(table: Table, cluster: NDArray[np.int32], number: Ints, scale: Floats) -> Steps:
    """What becomes of the hypotheses of each row at the next one.

    Args:
        table: consecutive rows; cluster: as in `link_tokens`.
        number: (rows, layers, slots) track of every slot, -1 = empty.
        scale: (layers,) unit of the activations.
    """
    links = link_tokens(table, cluster)
    present = table.feature >= 0
    activation = np.where(present, table.activation / scale[:, None], 0.0)
    detections = present.sum((1, 2))
    again = links.feature >= 0
    kept = again.sum((1, 2))
    likewise = kept + (links.cluster >= 0).sum((1, 2))
    tracks = int(number.max(initial=-1)) + 1
    owner = np.zeros(tracks, dtype=np.int64)  # row of each track
    row, layer, slot = np.nonzero(present)
    owner[number[row, layer, slot]] = row
    of_row = np.bincount(owner, minlength=len(present))
    # Pairs of tracks that are one hypothesis: from the track of a detection to that of the one found again.
    row, layer, slot = np.nonzero(again)
    source, target = (
        number[row, layer, slot],
        number[row + 1, layer, links.feature[row, layer, slot]],
    )
    going, coming = np.zeros((2, tracks), dtype=bool)
    going[source], coming[target] = True, True
    survived = np.bincount(owner[going], minlength=len(present))[:-1]
    carried_on = np.bincount(owner[coming], minlength=len(present))[1:]
    strongest = _leaders(number, activation)
    stays = np.zeros(len(kept), dtype=bool)
    stays[row[(source == strongest[row]) & (target == strongest[row + 1])]] = True
    leading = _leaders(cluster, activation)
    counted = np.maximum(detections[:-1], 1)
    total = activation[:-1].sum((1, 2))
    columns = [
        kept / counted,
        likewise / counted,
        np.where(again, activation[:-1], 0.0).sum((1, 2)) / np.where(total > 0, total, 1.0),
        survived / np.maximum(of_row[:-1], 1),
        of_row[1:] - carried_on,
        of_row[:-1] - survived,
        ~stays,
        leading[1:] != leading[:-1],
    ]
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    values[(detections[:-1] == 0) | (detections[1:] == 0)] = np.nan
    return Steps(values, detections, kept)


def _leaders(group: NDArray[np.integer], activation: Floats) -> Ints:
    """Group (track or cluster) with the largest summed activation of each row, ties to the lowest; -1 for an empty row."""
    row, layer, slot = np.nonzero(group >= 0)
    span = int(group.max(initial=0)) + 1
    key, place = np.unique(row * span + group[row, layer, slot], return_inverse=True)
    total = np.bincount(place, activation[row, layer, slot], minlength=len(key))
    order = np.lexsort((key, -total, key // span))
    rows, first = np.unique(key[order] // span, return_index=True)
    found = np.full(len(group), -1, dtype=np.int64)
    found[rows] = key[order][first] % span
    return found


def of_examples(steps: Steps, row_start: Ints, row_count: Ints) -> Floats:
    """Means over the steps of every example, (examples, 10) in the order of NAMES; NaN where there is no step.

    Args:
        steps: of all rows of the data set; those from one example to the next are left out here.
        row_start, row_count: (examples,) rows of each example.
    """
    examples = np.repeat(np.arange(len(row_start)), row_count - 1)
    before = np.cumsum(row_count - 1) - (row_count - 1)
    first = (
        np.arange(len(examples))
        - np.repeat(before, row_count - 1)
        + np.repeat(row_start, row_count - 1)
    )
    values = steps.values[first]
    known = np.isfinite(values[:, 0])
    count = np.bincount(examples[known], minlength=len(row_start))
    sums = [
        np.bincount(examples[known], column, minlength=len(row_start)) for column in values[known].T
    ]
    means = [np.where(count > 0, column / np.maximum(count, 1), np.nan) for column in sums]
    total = np.concatenate([[0], np.cumsum(steps.detections)])
    detections = total[row_start + row_count] - total[row_start]
    runs = detections - np.bincount(examples, steps.again[first], minlength=len(row_start))
    length = np.where(runs > 0, detections / np.maximum(runs, 1), 0.0)
    return np.stack([(row_count - 1).astype(np.float64), *means, length], axis=1)
