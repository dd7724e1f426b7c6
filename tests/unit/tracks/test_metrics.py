"""Metrics of tracks: hand-worked, and against a plain loop over tokens and tracks."""

import math

import numpy as np
import pandas as pd
import pytest
from small_tracks import hand_worked, random_table

from ghosttrack.tracks.metrics import LINKAGE, NAMES, ORIGINAL, measure, track_numbers
from ghosttrack.tracks.track_table import TrackTable


def slow_token(table: TrackTable, row: int, scale: np.ndarray) -> dict[str, float]:
    """The formulas of the module, one token, one track at a time."""
    layers = table.feature.shape[1]
    tracks: list[dict[int, float]] = []
    owner: dict[tuple[int, int], int] = {}
    surplus, coasted, detections = [], 0, 0
    for layer in range(layers):
        for slot in range(table.feature.shape[2]):
            if table.feature[row, layer, slot] < 0:
                continue
            detections += 1
            gap = int(table.gap[row, layer, slot])
            if gap:
                track = owner[layer - gap, int(table.previous[row, layer, slot])]
                surplus.append(float(table.surplus[row, layer, slot]))
                coasted += gap == 2
            else:
                track = len(tracks)
                tracks.append({})
            owner[layer, slot] = track
            tracks[track][layer] = float(table.activation[row, layer, slot]) / scale[layer]
    entropy, strong, dominance, density, concurrent = [], [], [], [], []
    for layer in range(layers):
        a = [track[layer] for track in tracks if layer in track]
        total = sum(a)
        entropy.append(-sum(x / total * math.log2(x / total) for x in a) if a else 0.0)
        strong.append(sum(x > 0.5 for x in a))
        dominance.append(max(a) / total if a else 0.0)
        density.append(len(a))
        concurrent.append(sum(min(track) <= layer <= max(track) for track in tracks))
    births = len(tracks)
    deaths = sum(max(track) < layers - 1 for track in tracks)
    stable = [1 / (1 + float(np.var(list(track.values())))) for track in tracks if len(track) >= 2]
    return {
        "entropy_mean": float(np.mean(entropy)),
        "entropy_max": max(entropy),
        "entropy_std": float(np.std(entropy)),
        "entropy_final": entropy[-1],
        "churn_births": births,
        "churn_deaths": deaths,
        "churn_births_per_layer": births / layers,
        "churn_deaths_per_layer": deaths / layers,
        "churn_turnover": (births + deaths) / (2 * layers),
        "churn_survival": (births - deaths) / births,
        "competition_mean": float(np.mean(strong)),
        "competition_max": max(strong),
        "competition_std": float(np.std(strong)),
        "competition_final": strong[-1],
        "competition_share": float(np.mean([c > 2 for c in strong])),
        "stability_mean": float(np.mean(stable)) if stable else 0.0,
        "stability_min": min(stable, default=0.0),
        "stability_unstable": float(np.mean([s < 0.5 for s in stable])) if stable else 0.0,
        "dominance_mean": float(np.mean(dominance)),
        "dominance_min": min(dominance),
        "dominance_final": dominance[-1],
        "dominance_weak": float(np.mean([d < 0.5 for d in dominance])),
        "density_mean": float(np.mean(density)),
        "density_max": max(density),
        "density_std": float(np.std(density)),
        "density_concurrent": max(concurrent),
        "linkage_track_length": detections / births,
        "linkage_links_per_token": len(surplus),
        "linkage_links_per_detection": len(surplus) / detections,
        "linkage_surplus": float(np.mean(surplus)) if surplus else 0.0,
        "linkage_coasted": coasted / len(surplus) if surplus else 0.0,
    }


def test_there_are_26_original_metrics_in_six_families_and_the_linkage() -> None:
    families = [name.split("_")[0] for name in ORIGINAL]
    counts = {family: families.count(family) for family in families}
    assert counts == {
        "entropy": 4,
        "churn": 6,
        "competition": 5,
        "stability": 3,
        "dominance": 4,
        "density": 4,
    }
    assert {name.split("_")[0] for name in LINKAGE} == {"linkage"}
    assert len(set(NAMES)) == 31


@pytest.mark.parametrize(("layers", "slots"), [(6, 9), (1, 4), (2, 1), (3, 12)])
def test_every_metric_equals_a_plain_loop(layers: int, slots: int) -> None:
    table = random_table(40, layers, slots, seed=layers)
    scale = np.linspace(0.7, 1.9, layers)
    values = measure(table, scale)
    empty = (table.feature < 0).all((1, 2))
    assert np.isnan(values[empty]).all()
    for row in np.flatnonzero(~empty):
        expected = slow_token(table, int(row), scale)
        for name, value in zip(NAMES, values[row], strict=True):
            assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_a_token_worked_by_hand() -> None:
    values = dict(zip(NAMES, measure(hand_worked(), np.ones(3))[0], strict=True))
    h0 = 2 - 0.75 * math.log2(3)  # shares 3/4, 1/4
    expected = {
        "entropy_mean": (h0 + 0 + 1.5) / 3,
        "entropy_max": 1.5,
        "entropy_final": 1.5,  # 1/2, 1/4, 1/4
        "churn_births": 3,
        "churn_deaths": 0,
        "churn_births_per_layer": 1,
        "churn_turnover": 0.5,
        "churn_survival": 1,
        "competition_mean": 2,
        "competition_max": 3,
        "competition_final": 3,
        "competition_share": 1 / 3,
        "stability_mean": (1 + 0.5) / 2,
        "stability_min": 0.5,
        "stability_unstable": 0,  # var of 3, 1 is 1
        "dominance_mean": (0.75 + 1 + 0.5) / 3,
        "dominance_min": 0.5,
        "dominance_final": 0.5,
        "dominance_weak": 0,
        "density_mean": 2,
        "density_max": 3,
        "density_std": math.sqrt(2 / 3),
        "density_concurrent": 3,
        "linkage_track_length": 2,
        "linkage_links_per_token": 3,
        "linkage_links_per_detection": 0.5,
        "linkage_surplus": 0.3,
        "linkage_coasted": 1 / 3,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6), name
    assert track_numbers(hand_worked())[0].tolist() == [[0, 1, -1], [1, -1, -1], [2, 1, 0]]


def test_activations_are_in_units_of_their_layer() -> None:
    table = hand_worked()
    grown = table._replace(
        activation=table.activation * np.array([1, 10, 100], np.float32)[:, None]
    )
    assert measure(grown, np.array([1.0, 10.0, 100.0])) == pytest.approx(measure(table, np.ones(3)))


def test_without_links_every_detection_is_a_track() -> None:
    table = random_table(20, 4, 6, seed=1, silent=False)
    none = table._replace(
        previous=np.full_like(table.previous, -1),
        gap=np.zeros_like(table.gap),
        surplus=table.surplus * 0,
    )
    values = pd.DataFrame(measure(none, np.ones(4)), columns=list(NAMES)).dropna()
    assert (values["linkage_track_length"] == 1).all()
    assert (values[["stability_mean", "stability_min", "linkage_links_per_token"]] == 0).all(
        axis=None
    )
    assert np.allclose(values["churn_births_per_layer"], values["density_mean"])
