"""Competition of clusters: hand-worked, and against a plain loop."""

import itertools
import math

import numpy as np
import pytest
from small_tracks import hand_worked, random_table

from ghosttrack.tracks.competition import NAMES, clusters_of, measure
from ghosttrack.tracks.track_table import TrackTable


def slow_token(table: TrackTable, row: int, cluster: np.ndarray, top_k: int) -> dict[str, float]:
    """The formulas of the module, one layer at a time."""
    shares, leaders = [], []
    for layer in range(table.feature.shape[1]):
        sums: dict[int, float] = {}
        for slot in range(min(top_k, table.feature.shape[2])):
            if table.feature[row, layer, slot] >= 0:
                group = int(cluster[row, layer, slot])
                sums[group] = sums.get(group, 0.0) + float(table.activation[row, layer, slot])
        ranked = sorted(sums.items(), key=lambda entry: (-entry[1], entry[0]))
        total = sum(sums.values())
        shares.append([value / total for _, value in ranked])
        leaders.append(ranked[0][0] if ranked else None)
    known = [each for each in shares if each]
    first, lead = (
        [each[0] for each in known],
        [each[0] - (each[1] if len(each) > 1 else 0.0) for each in known],
    )
    entropy = [-sum(p * math.log2(p) for p in each) for each in known]
    pairs = [(a, b) for a, b in itertools.pairwise(leaders) if a is not None and b is not None]
    links = inside = 0
    for layer in range(table.feature.shape[1]):
        for slot in range(table.feature.shape[2]):
            gap = int(table.gap[row, layer, slot])
            if gap:
                links += 1
                before = cluster[row, layer - gap, table.previous[row, layer, slot]]
                inside += int(before == cluster[row, layer, slot])
    last = shares[-1]
    return {
        "clusters_share_mean": float(np.mean(first)),
        "clusters_share_min": min(first),
        "clusters_share_final": last[0] if last else 0.0,
        "clusters_entropy_mean": float(np.mean(entropy)),
        "clusters_entropy_max": max(entropy),
        "clusters_entropy_std": float(np.std(entropy)),
        "clusters_entropy_final": -sum(p * math.log2(p) for p in last),
        "clusters_lead_mean": float(np.mean(lead)),
        "clusters_lead_min": min(lead),
        "clusters_lead_final": (last[0] - (last[1] if len(last) > 1 else 0.0)) if last else 0.0,
        "clusters_number": float(np.mean([len(each) for each in known])),
        "clusters_competing": float(
            np.mean([sum(p >= each[0] / 2 for p in each[1:]) for each in known])
        ),
        "clusters_switches": float(np.mean([a != b for a, b in pairs])) if pairs else 0.0,
        "clusters_links_inside": inside / links if links else 0.0,
    }


@pytest.mark.parametrize(
    ("layers", "slots", "top_k"), [(6, 9, 9), (6, 9, 4), (1, 4, 4), (3, 12, 7)]
)
def test_every_metric_equals_a_plain_loop(layers: int, slots: int, top_k: int) -> None:
    table = random_table(40, layers, slots, seed=layers)
    lookup = [
        np.random.default_rng(layer).integers(0, 6, 50).astype(np.int32) for layer in range(layers)
    ]
    cluster = clusters_of(table, lookup)
    values = measure(table, cluster, top_k)
    empty = (table.feature < 0).all((1, 2))
    assert np.isnan(values[empty]).all()
    assert np.isfinite(values[~empty]).all()
    for row in np.flatnonzero(~empty):
        expected = slow_token(table, int(row), cluster, top_k)
        for name, value in zip(NAMES, values[row], strict=True):
            assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


def test_paris_against_lyon() -> None:
    # Layer 0: Paris (feature 0) 3, Lyon (1) 1. Layer 1: one feature, Lyon. Layer 2: Paris 2 + 1,
    # Lyon 1.
    lookup = [np.full(30, -1, np.int32) for _ in range(3)]
    paris, lyon = 7, 4
    lookup[0][[0, 1]] = paris, lyon
    lookup[1][10] = lyon
    lookup[2][[20, 21, 22]] = paris, lyon, paris
    table = hand_worked()
    cluster = clusters_of(table, lookup)
    assert cluster[0].tolist() == [[7, 4, -1], [4, -1, -1], [7, 4, 7]]
    values = dict(zip(NAMES, measure(table, cluster, 3)[0], strict=True))
    quarter = 2 - 0.75 * math.log2(3)
    expected = {
        "clusters_share_mean": (0.75 + 1 + 0.75) / 3,
        "clusters_share_min": 0.75,
        "clusters_share_final": 0.75,
        "clusters_entropy_mean": 2 * quarter / 3,
        "clusters_entropy_final": quarter,
        "clusters_lead_mean": 2 / 3,
        "clusters_lead_min": 0.5,
        "clusters_number": 5 / 3,
        "clusters_competing": 0,
        "clusters_switches": 1,
        "clusters_links_inside": 1.0,  # two links within Lyon, one within Paris over a silent layer
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name


def test_the_scale_of_a_layer_does_not_matter() -> None:
    table = random_table(20, 3, 6, seed=1)
    grown = table._replace(
        activation=table.activation * np.array([1, 10, 100], np.float32)[:, None]
    )
    cluster = clusters_of(table, [np.arange(50, dtype=np.int32) // 9] * 3)
    assert measure(grown, cluster, 6) == pytest.approx(
        measure(table, cluster, 6), rel=1e-5, nan_ok=True
    )
