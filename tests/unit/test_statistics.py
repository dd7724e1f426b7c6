"""Metrics and intervals: known values, a slow reference, and the coverage of intervals."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score, roc_auc_score

from ghosttrack import statistics


def slow_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Every pair, one by one."""
    won = total = 0.0
    for i, j in itertools.product(np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)):
        pair = weights[i] * weights[j]
        total += pair
        won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total


def test_auroc_has_its_known_values() -> None:
    labels = np.array([0, 0, 1, 1])
    assert statistics.auroc(labels, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert statistics.auroc(labels, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert statistics.auroc(labels, np.full(4, 7.0)) == 0.5
    assert statistics.auroc(labels, np.array([1.0, 3.0, 2.0, 3.0])) == (1 + 0 + 1 + 0.5) / 4


def test_weighted_auroc_agrees_with_counting_every_pair() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 8, 40).astype(float)
    weights = rng.integers(0, 4, (6, 40))
    found = statistics.weighted_auroc(labels, scores, weights)
    np.testing.assert_allclose(found, [slow_auroc(labels, scores, row) for row in weights])
    assert statistics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_of_one_class_or_of_nan_is_nan() -> None:
    assert np.isnan(statistics.auroc(np.ones(3, dtype=int), np.arange(3.0)))
    assert np.isnan(statistics.auroc(np.array([0, 1]), np.array([np.nan, 1.0])))


def test_bootstrap_agrees_with_repeating_the_drawn_groups() -> None:
    rng = np.random.default_rng(2)
    units = np.repeat(np.array(["a", "b", "c", "d", "e"], dtype=object), 4)
    labels, scores = np.tile([0, 1, 1, 0], 5), rng.standard_normal((2, 20))
    found = statistics.bootstrap_auroc(labels, scores, units, 7, seed=5)
    drawn = np.random.default_rng(5).integers(5, size=(7, 5))
    for draw, picked in enumerate(drawn):
        rows = np.concatenate([np.arange(4) + 4 * unit for unit in picked])
        for signal in range(2):
            assert found[signal, draw] == pytest.approx(
                roc_auc_score(labels[rows], scores[signal, rows])
            )


def test_one_group_has_no_interval() -> None:
    """All its resamples are equal: an interval of no width would claim certainty."""
    units = np.full(20, "only", dtype=object)
    labels, scores = np.tile([0, 1], 10), np.arange(20.0)[None]
    draws = statistics.bootstrap_auroc(labels, scores, units, 50, seed=0)
    assert draws.shape == (1, 50)
    assert np.isnan(statistics.interval(draws[0], 0.95)).all()


def test_the_same_signal_differs_from_itself_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, units = np.tile([0, 1], 50), np.repeat(np.arange(25).astype(str), 4).astype(object)
    draws = statistics.bootstrap_auroc(
        labels, np.tile(rng.standard_normal(100), (2, 1)), units, 200, seed=0
    )
    found = statistics.difference(0.6, 0.6, draws[0], draws[1], 0.95)
    assert found == (0.0, 0.0, 0.0, 1.0)


def clustered(
    rng: np.random.Generator, groups: int, apart: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of four texts that share an effect on their scores; marginally N(apart * label, 2)."""
    labels = np.tile([0, 0, 1, 1], groups)
    shared = np.repeat(rng.standard_normal((groups, 2)), 2, axis=1).ravel()
    return (
        labels,
        shared + rng.standard_normal(4 * groups) + apart * labels,
        np.repeat(np.arange(groups), 4).astype(str),
    )


def test_intervals_cover_the_truth_on_clustered_data_as_often_as_they_say() -> None:
    from scipy.stats import norm

    rng, apart, covered, runs = np.random.default_rng(0), 1.2, 0, 1000
    truth = norm.cdf(apart / 2)  # d' over sqrt(2), each class with variance 2
    for run in range(runs):
        labels, scores, units = clustered(rng, 100, apart)
        low, high = statistics.interval(
            statistics.bootstrap_auroc(labels, scores[None], units, 200, run)[0], 0.95
        )
        covered += low <= truth <= high
    assert 0.93 <= covered / runs <= 0.97


def test_intervals_that_ignore_the_groups_would_be_too_narrow() -> None:
    labels, scores, units = clustered(np.random.default_rng(1), 200, 1.2)
    rows = np.arange(len(labels)).astype(str)
    wide, narrow = (
        np.diff(
            statistics.interval(
                statistics.bootstrap_auroc(labels, scores[None], each, 400, 0)[0], 0.95
            )
        )[0]
        for each in (units, rows)
    )
    assert wide > 1.1 * narrow


def test_an_interval_with_too_few_defined_draws_is_nan() -> None:
    assert np.isnan(statistics.interval(np.array([0.5, np.nan]), 0.95)).all()


def normal_draws(value: float, error: float, draws: int = 2_000) -> np.ndarray:
    """Bootstrap draws of exactly this mean and standard error."""
    noise = np.random.default_rng(0).standard_normal(draws)
    return np.asarray(value + error * (noise - noise.mean()) / noise.std(ddof=1))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("errors", "p"), [(1.0, 0.3173), (1.95996, 0.05), (2.57583, 0.01), (4.0, 6.334e-5)]
)
def test_p_is_two_sided_and_has_its_known_values(errors: float, p: float, sign: int) -> None:
    ours = 0.7 + sign * errors * 0.01
    draws = normal_draws(ours, 0.01)
    found = statistics.difference(ours, 0.7, draws, np.full(len(draws), 0.7), 0.95)
    assert found.value == pytest.approx(sign * errors * 0.01)
    assert found.p == pytest.approx(p, rel=1e-3)
    assert found.low < found.value < found.high
    swapped = statistics.difference(0.7, ours, np.full(len(draws), 0.7), draws, 0.95)
    assert (swapped.value, swapped.low, swapped.high, swapped.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )


def test_p_of_draws_that_do_not_vary_is_one_without_a_difference_and_zero_with_one() -> None:
    assert statistics.difference(0.6, 0.6, np.full(9, 0.6), np.full(9, 0.6), 0.95).p == 1
    assert statistics.difference(0.7, 0.6, np.full(9, 0.7), np.full(9, 0.6), 0.95).p == 0


def test_a_difference_without_a_value_or_an_interval_has_no_p() -> None:
    draws = normal_draws(0.7, 0.01)
    assert np.isnan(statistics.difference(float("nan"), 0.6, draws, draws, 0.95).p)
    assert np.isnan(statistics.difference(0.7, 0.6, np.full(9, np.nan), np.full(9, 0.6), 0.95).p)
    some = np.where(np.arange(len(draws)) < 2, np.nan, draws)  # few undefined draws
    assert statistics.difference(0.7, 0.6, some, np.full(len(draws), 0.6), 0.95).p < 1e-6


@pytest.mark.parametrize(
    ("confidence", "low", "high"), [(0.95, 2.5, 97.5), (0.9, 5, 95), (0.5, 25, 75)]
)
def test_an_interval_lies_between_its_percentiles(
    confidence: float, low: float, high: float
) -> None:
    assert statistics.interval(np.arange(101.0)[::-1], confidence) == pytest.approx((low, high))


@pytest.mark.parametrize(("undefined", "known"), [(0, True), (5, True), (6, False), (100, False)])
def test_an_interval_needs_95_of_100_draws(undefined: int, known: bool) -> None:
    draws = np.where(np.arange(100) < undefined, np.nan, 0.7)
    assert np.isfinite(statistics.interval(draws, 0.95)).all() == known
    assert np.isnan(statistics.interval(np.zeros(0), 0.95)).all()


def test_holm_multiplies_by_the_claims_that_are_left_and_never_falls() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx(
        [0.03, 0.06, 0.06]
    )
    assert np.isnan(statistics.holm([0.01, float("nan")])[1])


def test_decisions_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    chance = np.clip(0.5 + 0.3 * (labels - 0.5) + 0.3 * rng.standard_normal(300), 0, 1)
    found, said = statistics.decisions(labels, chance), chance >= 0.5
    assert found.f1 == pytest.approx(f1_score(labels, said))
    assert found.precision == pytest.approx(precision_score(labels, said))
    assert found.recall == pytest.approx(recall_score(labels, said))
    assert found.accuracy == pytest.approx((said == labels).mean())
    assert found.brier == pytest.approx(brier_score_loss(labels, chance))


def test_decisions_have_their_known_values_at_the_threshold_and_at_the_ends() -> None:
    labels = np.array([1, 1, 0, 0])
    found = statistics.decisions(labels, np.array([0.5, 0.49, 0.0, 1.0]))  # .5 = hallucinated
    assert (found.accuracy, found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5, 0.5)
    assert found.brier == pytest.approx((0.25 + 0.51**2 + 0 + 1) / 4)
    none = statistics.decisions(labels, np.full(4, 0.2))
    assert (none.precision, none.recall, none.f1) == (0, 0, 0)
    assert statistics.decisions(np.zeros(4, dtype=int), np.full(4, 0.2)).f1 == 0
    for wrong in (-0.01, 1.01, np.nan):
        assert np.isnan(statistics.decisions(labels, np.array([0.5, wrong, 0.1, 0.2]))).all()
    assert np.isnan(statistics.decisions(np.zeros(0, dtype=int), np.zeros(0))).all()


def test_calibration_error_has_its_known_values() -> None:
    labels = np.tile([0, 1], 150)
    assert statistics.decisions(labels, np.full(300, 0.5)).ece == pytest.approx(0)
    assert statistics.decisions(labels, np.full(300, 0.9)).ece == pytest.approx(0.4)
    assert statistics.decisions(labels, labels.astype(float)).ece == 0
    assert np.isnan(statistics.decisions(labels, np.linspace(0, 3, 300))).all(), "not a probability"


def test_reliability_bins_have_equal_mass() -> None:
    chance = np.random.default_rng(0).random(150)
    bins = statistics.reliability(np.zeros(150, dtype=int), chance)
    assert [each.n for each in bins] == [10] * 15
    assert [each.predicted for each in bins] == sorted(each.predicted for each in bins)


def test_the_order_of_texts_with_equal_scores_changes_no_measure() -> None:
    labels, chance = np.repeat([0, 1], 150), np.full(300, 0.5)
    assert statistics.decisions(labels, chance).ece == pytest.approx(0)
    assert {each.observed for each in statistics.reliability(labels, chance)} == {0.5}
    np.testing.assert_allclose(statistics.risk_curve(labels, chance)[1], 0.5)
    # Of ten texts at .2 three are hallucinated, of ten at .8 six: gaps of .1 and .2.
    labels, chance = np.repeat([0, 1, 0, 1], [7, 3, 4, 6]), np.repeat([0.2, 0.8], 10)
    for order in (np.arange(20), np.arange(20)[::-1], np.random.default_rng(0).permutation(20)):
        assert statistics.decisions(labels[order], chance[order]).ece == pytest.approx(0.15)


def test_a_risk_curve_starts_with_the_surest_texts() -> None:
    labels = np.array([1, 0, 1, 0, 1, 0, 0, 1])
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.4, 0.6, 0.3, 0.7])
    coverage, risk = statistics.risk_curve(labels, scores)
    assert coverage.tolist() == [each / 8 for each in range(1, 9)]
    assert risk[:4].tolist() == [0, 0, 0, 0]  # .9, .1, .8, .2 are correct
    assert risk[-1] == 2 / 8  # .4 and .6 are on the wrong side of the threshold
    assert statistics.risk_curve(labels, -scores)[1][:4].tolist() == [1, 1, 1, 1]


def test_leaving_out_the_likeliest_hallucinations_has_its_known_worth() -> None:
    labels = np.array([0, 1, 0, 1])
    oracle = statistics.selective(labels, labels.astype(float))
    assert oracle.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert oracle[1:] == pytest.approx((1.0, 1.0))
    assert statistics.selective(labels, np.zeros(4)) == pytest.approx(
        (0.5, 0.0, 0.0)
    )  # equal scores have the AUROC of chance
    found = statistics.selective(labels, np.array([1.0, 2.0, 3.0, 4.0]))  # risks 0, 1/2, 1/3, 1/2
    assert found.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.prr == pytest.approx((0.5 - found.aurc) / (0.5 - oracle.aurc))
    halves = (0.5 - (1 / 2 + 1 / 3 + 1 / 2) / 3) / (0.5 - (0 + 1 / 3 + 1 / 2) / 3)
    assert found.prr_half == pytest.approx(halves)


def test_selective_measures_need_both_classes_and_finite_scores() -> None:
    assert np.isnan(statistics.selective(np.ones(3, dtype=int), np.arange(3.0))).all()
    assert np.isnan(statistics.selective(np.array([0, 1]), np.array([np.nan, 1.0]))).all()


@pytest.mark.parametrize("block", [1, 60, 8_000_000])
def test_auroc_of_resamples_does_not_depend_on_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    code = np.arange(40) // 4
    labels, scores = rng.integers(0, 2, 40), rng.standard_normal(40)
    counts = rng.multinomial(10, np.full(10, 0.1), size=7)
    expected = statistics.weighted_auroc(labels, scores, counts[:, code])
    monkeypatch.setattr(statistics, "_BLOCK", block)
    found = statistics.resampled_auroc(labels, scores, code, counts)
    np.testing.assert_array_equal(found, expected)
