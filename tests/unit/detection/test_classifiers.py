"""Classifiers of tables find their kind of dependence and do not see the rows that they score."""

import numpy as np
import pytest

from ghosttrack.detection import classifiers
from ghosttrack.statistics import auroc

OPTIONS = classifiers.ClassifierOptions(trees=40, seed=0)


def planted(shape: str, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise columns.

    Labels depend on the first one linearly, quadratically, or on its product with the second.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 5))
    drive = {"line": x[:, 0], "bow": x[:, 0] ** 2 - 0.5, "product": x[:, 0] * x[:, 1]}[shape]
    y = (drive + 0.3 * rng.standard_normal(n) > 0).astype(np.int64)
    return x, y, np.arange(n) % 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logistic", "line"),
        ("forest", "product"),
        ("boosting", "bow"),
        ("svm", "product"),
        ("additive", "bow"),
        ("ensemble", "bow"),
    ],
)
def test_each_classifier_finds_a_dependence_of_its_kind(name: str, shape: str) -> None:
    x, y, inner = planted(shape)
    found = classifiers.fit_all(
        ["forest", "additive", name], x[:300], y[:300], inner[:300], x[300:], OPTIONS
    )[name]
    assert auroc(y[300:], found.test_log_odds) > 0.75
    assert auroc(y[:300], found.train_log_odds) > 0.75
    assert found.train_log_odds.shape == (300,)


def test_the_additive_model_ranks_columns_and_misses_products() -> None:
    x, y, inner = planted("bow")
    x[:, 4] = 1.0  # constant: no curve
    found = classifiers.fit("additive", x, y, inner, x, OPTIONS)
    assert found.weights is not None
    assert int(np.argmax(found.weights)) == 0
    assert found.weights[4] == 0
    x, y, inner = planted("product")
    assert (
        abs(auroc(y, classifiers.fit("additive", x, y, inner, x, OPTIONS).train_log_odds) - 0.5)
        < 0.15
    )


@pytest.mark.parametrize("name", ["forest", "boosting", "svm", "additive"])
def test_scores_of_training_rows_come_from_fits_without_their_fold(name: str) -> None:
    x, y, inner = planted("line")
    turned = y.copy()
    turned[inner == 2] = 1 - turned[inner == 2]
    first, second = (
        classifiers._CLASSIFIERS[name](
            x[inner != 2], each[inner != 2], x[inner == 2], OPTIONS
        ).scores
        for each in (y, turned)
    )
    np.testing.assert_array_equal(first, second)
    noise = np.random.default_rng(1).integers(0, 2, len(y))
    assert (
        abs(auroc(noise, classifiers.fit(name, x, noise, inner, x, OPTIONS).train_log_odds) - 0.5)
        < 0.15
    )
