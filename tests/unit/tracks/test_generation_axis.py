"""The generation axis: hand-worked, and against a plain loop."""

from typing import Any, cast

import numpy as np
import pytest
from small_tracks import random_table

from ghosttrack.tracks.competition import clusters_of
from ghosttrack.tracks.generation_axis import (
    NAMES,
    STEP_NAMES,
    average_steps,
    link_tokens,
    measure_steps,
)
from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.track_table import TrackTable, blank

LOOKUP = np.arange(50, dtype=np.int32) // 10  # clusters of ten features


def steps_of(table: TrackTable, scale: np.ndarray | None = None) -> Any:
    layers = table.feature.shape[1]
    cluster = clusters_of(table, [LOOKUP] * layers)
    return measure_steps(
        table, cluster, track_numbers(table), np.ones(layers) if scale is None else scale
    )


def written(*tokens: list[list[tuple[int, float]]]) -> TrackTable:
    """A table without links: for each token and layer, (feature, activation) of its detections."""
    table = blank(len(tokens), len(tokens[0]), 3)
    for row, layers in enumerate(tokens):
        for layer, detections in enumerate(layers):
            for slot, (feature, activation) in enumerate(detections):
                table.feature[row, layer, slot], table.activation[row, layer, slot] = (
                    feature,
                    activation,
                )
    return table


def test_a_hypothesis_is_tracked_through_the_answer() -> None:
    table = written(
        [[(1, 4.0), (20, 1.0)], [(30, 2.0)]], [[(20, 3.0), (5, 1.0)], [(30, 2.0), (7, 9.0)]]
    )
    # Tracks of one layer each, but 1 -> 30 in the first token.
    table.previous[0, 1, 0], table.gap[0, 1, 0] = 0, 1
    links = link_tokens(table, clusters_of(table, [LOOKUP] * 2))
    assert links.feature[0].tolist() == [[-1, 0, -1], [0, -1, -1]]  # 20 and 30 are repeated
    assert links.cluster[0].tolist() == [
        [1, -1, -1],
        [-1, -1, -1],
    ]  # 1 is repeated by 5: both are in cluster 0
    values = dict(zip(STEP_NAMES, steps_of(table).values[0], strict=True))
    assert values == {
        "generation_persistence": 2 / 3,
        "generation_persistence_clusters": 1.0,
        "generation_carried": 3 / 7,
        "generation_survival": 1.0,  # both tracks: 20, and 1 by way of 30
        "generation_births": 2.0,
        "generation_deaths": 0.0,  # 5 and 7 are new
        "generation_switches": 1.0,  # the strongest track was 1 and 30 (sum 6), and is 7 (9)
        "generation_cluster_switches": 0.0,  # cluster 0: 4 of 7, then 10 of 15
    }


def test_a_repeated_token_keeps_all_hypotheses() -> None:
    table = random_table(1, 3, 6, seed=2, silent=False)
    still = TrackTable(*(np.repeat(column, 4, axis=0) for column in cast(Any, table)))
    values = dict(
        zip(NAMES, average_steps(steps_of(still), np.array([0]), np.array([4]))[0], strict=True)
    )
    assert values["generation_steps"] == 3
    assert values["generation_run_length"] == 4
    for name in ("persistence", "persistence_clusters", "survival"):
        assert values[f"generation_{name}"] == 1
    assert values["generation_carried"] == pytest.approx(1)
    for name in ("births", "deaths", "switches", "cluster_switches"):
        assert values[f"generation_{name}"] == 0


def slow_step(table: TrackTable, row: int) -> list[float]:
    """One step, one detection at a time."""
    track = track_numbers(table)
    cells = [
        [
            (layer, slot)
            for layer in range(table.feature.shape[1])
            for slot in range(table.feature.shape[2])
            if table.feature[token, layer, slot] >= 0
        ]
        for token in (row, row + 1)
    ]
    if not cells[0] or not cells[1]:
        return [float("nan")] * len(STEP_NAMES)
    feature, activation = table.feature, table.activation.astype(float)
    repeated = {
        (layer, slot): (layer, other)
        for layer, slot in cells[0]
        for level, other in cells[1]
        if level == layer and feature[row, layer, slot] == feature[row + 1, layer, other]
    }
    repeated_or_cluster = 0
    for layer, slot in cells[0]:
        free = [
            other
            for level, other in cells[1]
            if level == layer
            and (layer, other) not in repeated.values()
            and LOOKUP[feature[row, layer, slot]] == LOOKUP[feature[row + 1, layer, other]]
        ]
        repeated_or_cluster += (layer, slot) in repeated or bool(free)
    pairs = {(track[row, *here], track[row + 1, *there]) for here, there in repeated.items()}

    def sums(token: int, key: Any) -> dict[int, float]:
        total: dict[int, float] = {}
        for layer, slot in cells[token - row]:
            total[key(token, layer, slot)] = (
                total.get(key(token, layer, slot), 0.0) + activation[token, layer, slot]
            )
        return total

    tracks = [sums(token, lambda *cell: int(track[cell])) for token in (row, row + 1)]
    groups = [sums(token, lambda *cell: int(LOOKUP[feature[cell]])) for token in (row, row + 1)]
    lead = [max(sorted(token), key=lambda name: token[name]) for token in tracks]
    top = [max(sorted(token), key=lambda name: token[name]) for token in groups]
    total = sum(activation[row, *cell] for cell in cells[0])
    return [
        len(repeated) / len(cells[0]),
        repeated_or_cluster / len(cells[0]),
        sum(activation[row, *cell] for cell in repeated) / total,
        len({one for one, _ in pairs}) / len(tracks[0]),
        len(tracks[1]) - len({other for _, other in pairs}),
        len(tracks[0]) - len({one for one, _ in pairs}),
        float((lead[0], lead[1]) not in pairs),
        float(top[0] != top[1]),
    ]


@pytest.mark.parametrize(("layers", "slots"), [(4, 9), (1, 5), (2, 20)])
def test_every_step_equals_a_plain_loop(layers: int, slots: int) -> None:
    table = random_table(30, layers, slots, seed=slots)
    steps = steps_of(table)
    for row in range(29):
        assert steps.values[row] == pytest.approx(slow_step(table, row), nan_ok=True), row


def test_steps_between_examples_do_not_count_and_one_token_has_none() -> None:
    table = random_table(12, 3, 6, seed=3, silent=False)
    steps = steps_of(table)
    means = average_steps(steps, np.array([0, 4, 5]), np.array([4, 1, 7]))
    assert means[0, 1:-1] == pytest.approx(steps.values[:3].mean(0))
    assert (means[1, 0], means[1, -1]) == (0, 1)
    assert np.isnan(means[1, 1:-1]).all()
    assert means[2, 1:-1] == pytest.approx(steps.values[5:11].mean(0))
    # Runs of a feature: its detections minus those that continue a run.
    detections, again = steps.detections[5:12].sum(), steps.repeated[5:11].sum()
    assert means[2, -1] == pytest.approx(detections / (detections - again))


def test_activations_count_in_units_of_their_layer() -> None:
    table = random_table(10, 2, 6, seed=5)
    grown = table._replace(activation=table.activation * np.array([1, 64], np.float32)[:, None])
    assert steps_of(grown, np.array([1.0, 64.0])).values == pytest.approx(
        steps_of(table).values, nan_ok=True
    )
