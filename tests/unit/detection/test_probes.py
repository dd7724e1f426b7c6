"""Probes: exact against refitting, nested, and at chance on noise."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from ghosttrack.detection import probes
from ghosttrack.statistics import auroc


def sample(
    n: int, columns: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a weak signal in the first column: x, labels, inner folds, test rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.standard_normal((n, columns)) * rng.uniform(0.5, 3, columns) + 5
    x[:, 0] += 2 * y
    return x, y, np.arange(n) % 4, rng.standard_normal((9, columns)) + 5


@pytest.mark.parametrize("columns", [6, 90])
def test_ridge_equals_refitting_without_each_fold(columns: int) -> None:
    x, y, inner, test = sample(60, columns)
    fit = probes.ridge(x, y, inner, test, strengths=[0.7])
    z = (x - x.mean(0)) / x.std(0)
    alpha = 0.7 * (z**2).sum() / len(z)
    slow = np.empty(len(y))
    for fold in range(4):
        kept = inner != fold
        slow[~kept] = Ridge(alpha).fit(z[kept], 2.0 * y[kept] - 1).predict(z[~kept])
    to_odds = probes.platt(slow, y)
    np.testing.assert_allclose(fit.train_log_odds, to_odds.apply(slow), rtol=1e-3, atol=1e-4)
    model = Ridge(alpha).fit(z, 2.0 * y - 1)
    outer = to_odds.apply(model.predict((test - x.mean(0)) / x.std(0)))
    np.testing.assert_allclose(fit.test_log_odds, outer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fitter", [probes.ridge, probes.logistic])
def test_training_labels_of_a_fold_do_not_reach_its_inner_scores_order(fitter: object) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((200, 300)), np.arange(200) % 2
    fit = fitter(x, y, np.arange(200) // 50, x[:3])  # type: ignore[operator]
    assert abs(auroc(y, fit.train_log_odds) - 0.5) < 0.12, "noise that is remembered would score 1"


def test_platt_agrees_with_unpenalised_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 5000)
    score = rng.standard_normal(5000) + 1.5 * y
    found = probes.platt(score, y)
    slow = LogisticRegression(C=np.inf, tol=1e-9).fit(score[:, None], y)
    assert found.slope == pytest.approx(slow.coef_[0, 0], rel=0.01)
    assert found.intercept == pytest.approx(slow.intercept_[0], rel=0.01)


def test_platt_of_a_constant_score_gives_the_prevalence() -> None:
    y = np.array([1] * 30 + [0] * 10)
    odds = probes.platt(np.full(40, 2.0), y).apply(np.full(1, 2.0))
    assert float(probes.probability(odds)[0]) == pytest.approx(0.75, abs=0.03)


def test_platt_of_separable_scores_stays_finite() -> None:
    y = np.repeat([0, 1], 20)
    assert np.isfinite(probes.platt(y * 10.0, y).apply(y * 10.0)).all()


def test_constant_columns_become_zero() -> None:
    x = np.column_stack([np.arange(10.0), np.full(10, 7.0)])
    assert (probes.standardise(x).apply(x)[:, 1] == 0).all()


def test_a_mean_of_fits_ranks_as_the_mean_of_their_log_odds() -> None:
    x, y, inner, test = sample(80, 5)
    one, two = (
        probes.ridge(x[:, :3], y, inner, test[:, :3]),
        probes.ridge(x[:, 3:], y, inner, test[:, 3:]),
    )
    both = probes.mean_of([one, two], y)
    assert (
        np.argsort(both.test_log_odds) == np.argsort(one.test_log_odds + two.test_log_odds)
    ).all()
    assert both.inner_auroc == auroc(y, one.train_log_odds + two.train_log_odds)


def test_equal_rows_get_equal_probabilities() -> None:
    x, y, inner, _ = sample(60, 90)
    test = np.repeat(x[:1], 33, axis=0)
    assert len(set(probes.probability(probes.ridge(x, y, inner, test).test_log_odds))) == 1


def test_a_joint_probe_is_a_probe_on_all_columns_side_by_side() -> None:
    rng = np.random.default_rng(4)
    blocks = [rng.standard_normal((90, columns)) * (1 + columns) for columns in (3, 40, 2)]
    y = (blocks[0][:, 0] + blocks[2][:, 1] > 0).astype(np.int64)
    inner, train, test = np.arange(60) % 3, np.arange(60), np.arange(60, 90)
    joined = np.concatenate(blocks, axis=1)
    expected = probes.ridge(joined[train], y[train], inner, joined[test])
    found = probes.joint_ridge(blocks, y[train], inner, train, test)
    assert found.strength == expected.strength
    np.testing.assert_allclose(found.train_log_odds, expected.train_log_odds, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.test_log_odds, expected.test_log_odds, rtol=1e-3, atol=1e-4)


def test_a_bilinear_probe_is_a_probe_on_all_products_of_channels() -> None:
    rng = np.random.default_rng(7)
    left, right = rng.standard_normal((90, 3)), rng.standard_normal((90, 4)).astype(np.float32)
    y = ((left[:, 0] * right[:, 1] + 0.3 * rng.standard_normal(90)) > 0).astype(np.int64)
    inner, train, test = np.arange(60) % 3, np.arange(60), np.arange(60, 90)
    found = probes.bilinear_ridge(
        [left], right, np.zeros(90, dtype=np.int64), y[train], inner, train, test
    )
    z = probes.standardise(left[train]).apply(left)
    unit = right - right[train].mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    products = (z[:, :, None] * unit[:, None, :]).reshape(90, -1)
    centred = products[train] - products[train].mean(axis=0)
    alpha = found.strength * (centred**2).sum() / len(train)
    slow = np.empty(60)
    for fold in range(3):
        kept = inner != fold
        slow[~kept] = (
            Ridge(alpha)
            .fit(products[train][kept], 2.0 * y[train][kept] - 1)
            .predict(products[train][~kept])
        )
    to_odds = probes.platt(slow, y[train])
    np.testing.assert_allclose(found.train_log_odds, to_odds.apply(slow), rtol=1e-3, atol=1e-3)
    whole = Ridge(alpha).fit(products[train], 2.0 * y[train] - 1).predict(products[test])
    np.testing.assert_allclose(found.test_log_odds, to_odds.apply(whole), rtol=1e-3, atol=1e-3)
    assert auroc(y[test], found.test_log_odds) > 0.8


def test_a_bilinear_probe_learns_each_relation_by_itself() -> None:
    rng = np.random.default_rng(8)
    left, right = rng.standard_normal((400, 3)), rng.standard_normal((400, 3)).astype(np.float32)
    relation = np.arange(400) % 2
    y = ((left[:, 0] * right[:, 0] * np.where(relation == 1, 1, -1)) > 0).astype(
        np.int64
    )  # the other way round
    train, test = np.arange(300), np.arange(300, 400)
    reached = [
        auroc(
            y[test],
            probes.bilinear_ridge(
                [left], right, of, y[train], train % 3, train, test
            ).test_log_odds,
        )
        for of in (relation, np.zeros_like(relation))
    ]
    assert reached[0] > 0.9
    assert abs(reached[1] - 0.5) < 0.2


def test_a_bilinear_probe_of_prompts_that_do_not_differ_knows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y, right = (
        np.tile([0, 1], 30),
        np.random.default_rng(9).standard_normal((60, 4)).astype(np.float32),
    )
    train, test = np.arange(40), np.arange(40, 60)
    for left in ([np.ones((60, 3))], []):
        for exact in (1024, 20):
            monkeypatch.setattr(probes, "EXACT", exact)
            monkeypatch.setattr(probes, "LANDMARKS", 10)
            found = probes.bilinear_ridge(
                left, right, np.zeros(60, dtype=np.int64), y[train], train % 4, train, test
            )
            assert np.ptp(found.test_log_odds) < 1e-6
            assert np.isfinite(found.train_log_odds).all()


def test_the_difference_of_means_points_from_true_to_hallucinated_and_is_scored_out_of_fold() -> (
    None
):
    rng = np.random.default_rng(5)
    y, inner = np.tile([0, 1], 60), np.repeat(np.arange(4), 30)
    x = rng.standard_normal((120, 30))
    noise = probes.difference_of_means(x, y, inner, x)
    assert abs(auroc(y, noise.train_log_odds) - 0.5) < 0.2
    x[:, 3] += 3 * y
    found = probes.difference_of_means(x, y, inner, x[:10])
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, x[y == 1].mean(0) - x[y == 0].mean(0))
    assert auroc(y, found.train_log_odds) > 0.9
    assert found.test_log_odds.shape == (10,)


def test_calibration_undoes_overconfidence_by_the_inner_scores_alone() -> None:
    rng = np.random.default_rng(6)
    odds = rng.standard_normal(4000)
    y = (rng.random(4000) < probes.probability(odds)).astype(np.int64)
    sure = probes.FoldFit(5 * odds, np.array([-5.0, 0.0, 5.0]), 1.0, 0.5, None)
    found = probes.calibrated(sure, y)
    np.testing.assert_allclose(found.train_log_odds, odds, atol=0.3)
    np.testing.assert_allclose(found.test_log_odds, [-1, 0, 1], atol=0.15)


def test_a_joint_probe_of_many_rows_is_exact_if_some_rows_span_the_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    y, inner = rng.integers(0, 2, 400), rng.integers(0, 3, 400)
    blocks = [
        rng.standard_normal((500, 9)) + np.pad(y, (0, 100))[:, None] * rng.standard_normal(9)
        for _ in range(2)
    ]
    train, test = np.arange(400), np.arange(400, 500)
    exact = probes.joint_ridge(blocks, y, inner, train, test)
    monkeypatch.setattr(probes, "EXACT", 300)
    monkeypatch.setattr(probes, "LANDMARKS", 60)
    found = probes.joint_ridge(blocks, y, inner, train, test)
    assert found.strength == exact.strength
    np.testing.assert_allclose(found.test_log_odds, exact.test_log_odds, atol=1e-3)
    np.testing.assert_allclose(found.train_log_odds, exact.train_log_odds, atol=1e-3)


def test_a_joint_probe_of_many_rows_in_wide_columns_comes_close_to_the_exact_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(6)
    y, inner = rng.integers(0, 2, 600), rng.integers(0, 3, 600)
    blocks = [rng.standard_normal((800, 700)) * np.exp(-np.arange(700) / 100) for _ in range(2)]
    for block in blocks:
        block[:600, :30] += y[:, None]
        block[600:, :30] += np.arange(200)[:, None] % 2
    train, test = np.arange(600), np.arange(600, 800)
    exact = probes.joint_ridge(blocks, y, inner, train, test)
    monkeypatch.setattr(probes, "EXACT", 500)
    monkeypatch.setattr(probes, "LANDMARKS", 300)
    found = probes.joint_ridge(blocks, y, inner, train, test)
    truth = np.arange(200) % 2
    assert auroc(truth, found.test_log_odds) > auroc(truth, exact.test_log_odds) - 0.03
    assert auroc(truth, exact.test_log_odds) > 0.6


def test_of_many_texts_the_text_model_is_the_exact_one_but_for_the_third_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, probes.EXACT + 400).astype(np.int64)
    counts = rng.poisson(0.05, (len(labels), 300)) * (1 + labels[:, None] * (np.arange(300) < 20))
    words = sparse.csr_array(counts.astype(np.float64))
    train, inner = slice(0, probes.EXACT + 200), np.arange(probes.EXACT + 200) % 3
    test = slice(train.stop, None)

    def fitted() -> float:
        fit = probes.logistic(words[train], labels[train], inner, words[test], (0.3, 30.0))
        return auroc(labels[test], fit.test_log_odds)

    early = fitted()
    monkeypatch.setattr(probes, "EXACT", len(labels))
    assert early == pytest.approx(fitted(), abs=2e-3)
    assert early > 0.6
