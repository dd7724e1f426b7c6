"""Pooled ridge probes: subtracting the statistics of a fold equals leaving its rows out."""

import numpy as np
import pytest

from ghosttrack.detection import pooled, probes
from ghosttrack.statistics import auroc


@pytest.fixture(params=[12, 300], ids=["fewer columns than rows", "more columns than rows"])
def data(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, request.param)) * np.logspace(-1, 1, request.param) + 3
    x[:, 2] += 0.3 * y
    x[:, 11] = 0
    x[190:] = x[:10]  # rows that repeat others
    return x, y, np.arange(200) % 4


def slow_ridge(x: np.ndarray, y: np.ndarray, train: np.ndarray, strength: float) -> np.ndarray:
    """Ridge regression by least squares on stacked rows, scaled over all rows.

    Scores of all rows.
    """
    kept = (x != 0).any(axis=0)
    z = (x[:, kept] - x[:, kept].mean(axis=0)) / x[:, kept].std(axis=0)
    penalty = strength * (z**2).sum() / len(z)
    own, target = z[train], 2.0 * y[train] - 1
    mean, centre = own.mean(axis=0), target.mean()
    rows = np.concatenate([own - mean, np.sqrt(penalty) * np.eye(z.shape[1])])
    weight = np.linalg.lstsq(
        rows, np.concatenate([target - centre, np.zeros(z.shape[1])]), rcond=None
    )[0]
    return np.asarray((z - mean) @ weight + centre)


def test_left_out_scores_are_those_of_fits_without_the_fold(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, fold = data
    found = pooled.cross_fit(x, y, fold)
    left_out = np.empty(len(y))
    for number in range(4):
        left_out[fold == number] = slow_ridge(x, y, fold != number, found.strength)[fold == number]
    np.testing.assert_allclose(found.left_out, probes.platt(left_out, y).apply(left_out), atol=2e-4)
    for number, fit in enumerate(found.folds):
        np.testing.assert_allclose(
            fit.apply(x)[fold == number], found.left_out[fold == number], atol=2e-4
        )
    whole = slow_ridge(x, y, np.ones(len(y), bool), found.strength)
    np.testing.assert_allclose(
        found.final.apply(x), probes.platt(left_out, y).apply(whole), atol=2e-4
    )


def test_nested_scores_are_those_of_fits_without_both_folds(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, fold = data
    found = pooled.cross_fit(x, y, fold)
    for outer in range(4):
        expected = np.empty(len(y))
        for inner in range(4):
            train = (fold != outer) & (fold != inner)
            expected[fold == inner] = slow_ridge(x, y, train, found.strength)[fold == inner]
        others = fold != outer
        expected = probes.platt(expected[others], y[others]).apply(expected)
        np.testing.assert_allclose(found.nested[outer], expected, atol=2e-4)


def test_the_strength_is_the_one_that_tells_left_out_rows_apart_best(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, fold = data
    single = {
        strength: auroc(y, pooled.cross_fit(x, y, fold, [strength]).left_out)
        for strength in pooled.STRENGTHS
    }
    assert pooled.cross_fit(x, y, fold).strength == max(
        single, key=lambda strength: single[strength]
    )


def test_a_column_of_a_few_rows_gets_no_weight(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, fold = data
    x[:3, 11] = 5.0
    assert pooled.cross_fit(x, y, fold).final.weight[11] == 0
    x[: pooled.LEAST_ROWS, 11] = 5.0
    assert pooled.cross_fit(x, y, fold).final.weight[11] != 0
