"""Metrics along the generation axis: hypotheses tracked from one answer token to the next.

A detection is repeated at the next token if its feature is a detection of the same layer there.
Otherwise it can be repeated by its cluster: an unmatched detection of that layer and cluster (the
same hypothesis under another feature). A track runs through the layers of one token. It continues
at the next token if the feature of one of its detections is repeated there.

Values are means over the steps of an answer. A step is a pair of successive tokens with detections.
An answer of one token has no step: its values are NaN except for steps (0) and run length (1),
because any other number would encode the answer's length. a: activations in units of the layer's
mean.

| name | formula |
|---|---|
| generation_steps | tokens - 1: grows with the answer's length |
| generation_persistence | fraction of detections whose feature is repeated at the next token |
| generation_persistence_clusters | fraction of detections repeated by their feature or cluster |
| generation_carried | fraction of a in detections whose feature is repeated |
| generation_survival | fraction of tracks that continue at the next token |
| generation_births, _deaths | tracks of a token that continue none of the token before; that do not continue in the next |
| generation_switches | fraction of steps in which the strongest track (by the sum of a) does not continue in the strongest one |
| generation_cluster_switches | fraction of steps in which the cluster with the largest sum of a changes |
| generation_run_length | mean number of successive tokens with a detection of a feature: grows with the answer's length |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.track_table import TrackTable

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
# Metrics of a single step, in the order of the columns of `measure_steps`.
STEP_NAMES = NAMES[1:-1]


class TokenLinks(NamedTuple):
    """Links from the detections of rows 0 .. n - 2 to those of the next row.

    Both arrays are (n - 1, layers, slots) and hold the slot in the next row, -1 without a link.
    """

    feature: NDArray[np.int16]  # the same feature
    cluster: NDArray[np.int16]  # another feature of the cluster, if the feature has no link


class StepMetrics(NamedTuple):
    """Metrics of the steps between consecutive rows."""

    values: Floats  # (rows - 1, 8) in the order of STEP_NAMES, NaN where either row is empty
    detections: Ints  # (rows,)
    repeated: Ints  # (rows - 1,) detections whose feature is repeated


def link_tokens(table: TrackTable, cluster: NDArray[np.int32]) -> TokenLinks:
    """Link every detection of a row to the next row, by feature or else by cluster.

    Args:
        table: consecutive rows of a text.
        cluster: (rows, layers, slots), -1 in empty slots.
    """
    steps, layers, slots = table.feature[1:].shape
    links = TokenLinks(*(np.full((steps, layers, slots), -1, np.int16) for _ in range(2)))
    for layer in range(layers):
        current, following = table.feature[:-1, layer], table.feature[1:, layer]
        same = _slots_of(following, current)
        links.feature[:, layer] = same
        taken = np.zeros((steps, slots), dtype=bool)
        row, slot = np.nonzero(same >= 0)
        taken[row, same[row, slot]] = True
        open_clusters = np.where(same >= 0, -1, cluster[:-1, layer])
        links.cluster[:, layer] = _slots_of(np.where(taken, -1, cluster[1:, layer]), open_clusters)
    return links


def _slots_of(values: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.int16]:
    """First slot of `values` (rows, slots) that holds each of `targets` (rows, slots) of its row.

    It is -1 where no slot does.
    """
    width = max(int(values.max(initial=-1)), int(targets.max(initial=-1))) + 1
    table = np.full(
        (len(values), width + 1), -1, dtype=np.int16
    )  # the last column stays -1, for empty slots
    row, slot = np.nonzero(values >= 0)
    # Of several slots with the same value, the first is written last and stays.
    table[row[::-1], values[row, slot][::-1]] = slot[::-1]
    slots: NDArray[np.int16] = table[np.arange(len(values))[:, None], targets]
    return slots


def measure_steps(
    table: TrackTable, cluster: NDArray[np.int32], track: Ints, scale: Floats
) -> StepMetrics:
    """Metrics of every step between consecutive rows.

    Args:
        table: consecutive rows.
        cluster: as in `link_tokens`.
        track: (rows, layers, slots) track of every slot, -1 in empty slots.
        scale: (layers,) unit of the activations.
    """
    links = link_tokens(table, cluster)
    present = table.feature >= 0
    activation = np.where(present, table.activation / scale[:, None], 0.0)
    detections = present.sum((1, 2))
    repeats = links.feature >= 0
    repeated = repeats.sum((1, 2))
    repeated_or_cluster = repeated + (links.cluster >= 0).sum((1, 2))
    count = int(track.max(initial=-1)) + 1
    row_of = np.zeros(count, dtype=np.int64)  # row of each track
    row, layer, slot = np.nonzero(present)
    row_of[track[row, layer, slot]] = row
    of_row = np.bincount(row_of, minlength=len(present))
    # Pairs of tracks of one hypothesis: the track of a detection, and that of its repetition.
    row, layer, slot = np.nonzero(repeats)
    source, target = (
        track[row, layer, slot],
        track[row + 1, layer, links.feature[row, layer, slot]],
    )
    continues, continued = np.zeros((2, count), dtype=bool)
    continues[source], continued[target] = True, True
    surviving = np.bincount(row_of[continues], minlength=len(present))[:-1]
    inherited = np.bincount(row_of[continued], minlength=len(present))[1:]
    leading_track = _leaders(track, activation)
    leader_continues = np.zeros(len(repeated), dtype=bool)
    leader_continues[row[(source == leading_track[row]) & (target == leading_track[row + 1])]] = (
        True
    )
    leading_cluster = _leaders(cluster, activation)
    divisor = np.maximum(detections[:-1], 1)
    total = activation[:-1].sum((1, 2))
    columns = [
        repeated / divisor,
        repeated_or_cluster / divisor,
        np.where(repeats, activation[:-1], 0.0).sum((1, 2)) / np.where(total > 0, total, 1.0),
        surviving / np.maximum(of_row[:-1], 1),
        of_row[1:] - inherited,
        of_row[:-1] - surviving,
        ~leader_continues,
        leading_cluster[1:] != leading_cluster[:-1],
    ]
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    values[(detections[:-1] == 0) | (detections[1:] == 0)] = np.nan
    return StepMetrics(values, detections, repeated)


def _leaders(group: NDArray[np.integer], activation: Floats) -> Ints:
    """Track or cluster with the largest summed activation of each row.

    Ties go to the lowest number; an empty row has -1.
    """
    row, layer, slot = np.nonzero(group >= 0)
    span = int(group.max(initial=0)) + 1
    key, index = np.unique(row * span + group[row, layer, slot], return_inverse=True)
    total = np.bincount(index, activation[row, layer, slot], minlength=len(key))
    order = np.lexsort((key, -total, key // span))
    rows, first = np.unique(key[order] // span, return_index=True)
    leaders = np.full(len(group), -1, dtype=np.int64)
    leaders[rows] = key[order][first] % span
    return leaders


def average_steps(steps: StepMetrics, row_start: Ints, row_count: Ints) -> Floats:
    """Means over the steps of every example, (examples, 10) in the order of NAMES.

    Values are NaN where an example has no step, see above.

    Args:
        steps: of all rows of the data set; steps from one example to the next are ignored.
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
    runs = detections - np.bincount(examples, steps.repeated[first], minlength=len(row_start))
    length = np.where(runs > 0, detections / np.maximum(runs, 1), 0.0)
    return np.stack([(row_count - 1).astype(np.float64), *means, length], axis=1)
