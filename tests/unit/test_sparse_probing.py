"""The parts of `benchmarks/sparse_probing.py` on planted features."""

import numpy as np
import pandas as pd
import pytest
import sparse_probing

TEXTS = 200


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which one tells the label, the labels, and groups of two texts."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, TEXTS)
    features = generator.standard_normal((TEXTS, 30)).astype(np.float32)
    features[:, 7] += 5 * truth
    return features, truth, np.arange(TEXTS) // 2


def test_the_planted_feature_is_found_and_enough() -> None:
    features, truth, groups = planted()
    assert sparse_probing.accuracy(features, truth, groups, 1, 0) > 0.95


def test_noise_is_at_chance() -> None:
    features, truth, groups = planted()
    features[:, 7] = 0
    scores = [sparse_probing.accuracy(features, truth, groups, 5, seed) for seed in range(20)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.05)


def test_the_mean_is_over_the_tokens_of_each_text() -> None:
    features = np.array([[1.0, 0], [3, 2], [5, 5]], dtype=np.float32)
    found = sparse_probing.mean_of(features, np.array([0, 0, 2]), 3)
    assert found.tolist() == [[2, 1], [0, 0], [5, 5]]


def test_both_classes_are_equally_many() -> None:
    wanted = np.array([True] * 3 + [False] * 9)
    kept = sparse_probing.balanced(wanted, 0)
    assert wanted[kept].tolist().count(True) == 3
    assert len(kept) == 6


def test_a_feature_of_every_data_set_is_found() -> None:
    texts = pd.DataFrame({"dataset": np.repeat(["a", "b", "c"], 40), "group": np.arange(120)})
    features = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], 40)]
    assert sparse_probing.probe(features, texts) == [1.0, 1.0]
