"""Competition of hypotheses: the division of a token's activation among semantic clusters.

For one token and layer, p_c is the fraction of the activation of the strongest top_k detections
that falls on cluster c; p_1 >= p_2 >= ... in order. Values are over the layers with detections. The
values of a text are means over its answer tokens, so they do not grow with the answer's length.

| name | formula |
|---|---|
| clusters_share_mean, _min, _final | p_1: mean over layers; minimum over layers; in the last layer |
| clusters_entropy_mean, _max, _std, _final | -sum p log2 p |
| clusters_lead_mean, _min, _final | p_1 - p_2 |
| clusters_number | mean number of clusters |
| clusters_competing | mean number of clusters other than the strongest with p_c >= p_1 / 2 |
| clusters_switches | fraction of pairs of successive layers with different strongest clusters; 0 with one layer |
| clusters_links_inside | fraction of the token's links within one cluster; 0 without links |
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.track_table import TrackTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMES = (
    "clusters_share_mean",
    "clusters_share_min",
    "clusters_share_final",
    "clusters_entropy_mean",
    "clusters_entropy_max",
    "clusters_entropy_std",
    "clusters_entropy_final",
    "clusters_lead_mean",
    "clusters_lead_min",
    "clusters_lead_final",
    "clusters_number",
    "clusters_competing",
    "clusters_switches",
    "clusters_links_inside",
)
# Minimum share of a competing cluster, relative to the share of the strongest cluster.
COMPETING = 0.5


def clusters_of(table: TrackTable, lookup: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Cluster of every detection, (rows, layers, slots), -1 in empty slots.

    Args:
        lookup: cluster of every feature, (d_sae,) for each layer in the table's order.
    """
    clusters = np.full(table.feature.shape, -1, dtype=np.int32)
    for position, cluster in enumerate(lookup):
        feature = table.feature[:, position]
        clusters[:, position] = np.where(feature >= 0, cluster[feature], -1)
    return clusters


def measure(table: TrackTable, cluster: NDArray[np.int32], top_k: int) -> Floats:
    """All metrics of every token, (rows, 14) in the order of NAMES; NaN without any detection.

    Args:
        cluster: (rows, layers, slots) from `clusters_of`.
        top_k: slots that count; later slots only continue a track.
    """
    rows, layers, _ = cluster.shape
    first, second, entropy, number, competing = np.zeros((5, rows * layers))
    strongest = np.full(rows * layers, -1, dtype=np.int64)
    unit, group, share = _shares(table.activation[:, :, :top_k], cluster[:, :, :top_k])
    if len(unit):
        order = np.lexsort(
            (group, -share, unit)
        )  # by unit, then share, highest first; ties: the lower cluster
        unit, group, share = unit[order], group[order], share[order]
        rank = np.arange(len(unit)) - np.searchsorted(unit, unit)
        leads, follows = rank == 0, rank == 1
        first[unit[leads]], strongest[unit[leads]] = share[leads], group[leads]
        second[unit[follows]] = share[follows]
        entropy = -np.bincount(unit, share * np.log2(share), minlength=len(first))
        number = np.bincount(unit, minlength=len(first)).astype(np.float64)
        competing = np.bincount(
            unit, (rank > 0) & (share >= COMPETING * first[unit]), minlength=len(first)
        )
    shape = (rows, layers)
    first, second, entropy, number, competing = (
        values.reshape(shape) for values in (first, second, entropy, number, competing)
    )  # (rows, layers)
    leader, known = strongest.reshape(shape), strongest.reshape(shape) >= 0
    both = known[:, 1:] & known[:, :-1]
    changed = both & (leader[:, 1:] != leader[:, :-1])
    seen = np.maximum(known.sum(1), 1)
    mean = entropy.sum(1) / seen
    links, inside = _links_inside(table, cluster)
    columns = [
        first.sum(1) / seen,
        np.where(known, first, np.inf).min(1),
        first[:, -1],
        mean,
        entropy.max(1),
        np.sqrt((np.where(known, entropy - mean[:, None], 0.0) ** 2).sum(1) / seen),
        entropy[:, -1],
        (first - second).sum(1) / seen,
        np.where(known, first - second, np.inf).min(1),
        (first - second)[:, -1],
        number.sum(1) / seen,
        competing.sum(1) / seen,
        changed.sum(1) / np.maximum(both.sum(1), 1),
        inside / np.maximum(links, 1),
    ]
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    values[~known.any(1)] = np.nan
    return values


def _shares(
    activation: NDArray[np.float32], cluster: NDArray[np.int32]
) -> tuple[Ints, Ints, Floats]:
    """Share of the activation of each cluster that is active in a token and layer.

    Returns the unit (row x layers + layer), the cluster and the share, all (entries,).
    """
    row, layer, slot = np.nonzero((cluster >= 0) & (activation > 0))
    group = cluster[row, layer, slot].astype(np.int64)
    unit = row * cluster.shape[1] + layer
    span = int(group.max(initial=0)) + 1
    key, index = np.unique(unit * span + group, return_inverse=True)
    total = np.bincount(index, activation[row, layer, slot], minlength=len(key)).astype(np.float64)
    unit = key // span
    sums = np.bincount(unit, total, minlength=cluster.shape[0] * cluster.shape[1])
    return unit, key % span, total / sums[unit]


def _links_inside(table: TrackTable, cluster: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Number of links of each token, and of those within one cluster, both (rows,)."""
    row, layer, slot = np.nonzero(table.gap > 0)
    gap = table.gap[row, layer, slot].astype(np.int64)
    same = cluster[row, layer, slot] == cluster[row, layer - gap, table.previous[row, layer, slot]]
    return np.bincount(row, minlength=len(cluster)), np.bincount(row[same], minlength=len(cluster))
