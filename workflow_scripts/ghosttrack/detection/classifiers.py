"""Detectors of tables: linear, trees, boosting, kernels, an additive model that explains itself, and all of them together.

Each is fitted on training rows and calibrated on rows that it did not see: the log-odds are a logistic regression on
scores from fits without the row's inner fold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ghosttrack.detection import probes
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.statistics import auroc

# Leaves hold this many rows at least, so that votes are shares and not memories.
LEAF = 3
# Calibration asks less of a forest than its scores: a quarter of the trees gives nearly the same log-odds.
_FEWER = 4
# Boosting stops early by itself on larger data; on a few hundred rows deep or many trees only overfit.
BOOSTING = {
    "max_iter": 60,
    "learning_rate": 0.1,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 10,
    "l2_regularization": 1.0,
}
# A kernel machine's cost grows with the square of its rows: beyond these a seeded sample of them is fitted.
SVM_ROWS = 2000
# Curves of the additive model: quadratic splines between this many quantiles.
KNOTS = 5
# Inverse strength of the additive model: its curves are many columns of a few hundred rows.
ADDITIVE = 0.3
NAMES = ("logistic", "forest", "boosting", "svm", "additive", "ensemble")


class ClassifierOptions(NamedTuple):
    """trees: of the forest; seed: of everything random."""

    trees: int
    seed: int


class _Once(NamedTuple):
    """Scores of `test`, (test,), higher = hallucinated; importance of each column, (columns,), or None."""

    scores: Floats
    importance: Floats | None


def fit(
    name: str, x: Floats, y: Ints, inner: Ints, test: Floats, options: ClassifierOptions
) -> FoldFit:
    """One classifier on training rows x, (train, columns), with out-of-fold scores for each of them.

    Args:
        name: of `NAMES` but the ensemble; inner: inner fold of each training row; test: rows to score.
    """
    if name == "logistic":
        return probes.logistic(x, y, inner, test)
    once, smaller = _ONCE[name], options._replace(trees=max(10, options.trees // _FEWER))
    left_out = np.empty(len(y))
    for fold in np.unique(inner):
        held = inner == fold
        left_out[held] = once(x[~held], y[~held], x[held], smaller).scores
    found = once(x, y, test, options)
    odds = probes.platt(left_out, y)
    return FoldFit(
        odds.apply(left_out),
        odds.apply(found.scores),
        float("nan"),
        auroc(y, left_out),
        found.importance,
    )


def ensemble(fits: Mapping[str, FoldFit], y: Ints) -> FoldFit:
    """The mean log-odds of several classifiers on the same rows."""
    return probes.mean_of(list(fits.values()), y)


def fit_all(
    names: Sequence[str], x: Floats, y: Ints, inner: Ints, test: Floats, options: ClassifierOptions
) -> dict[str, FoldFit]:
    """Every classifier of `names`; the ensemble is the mean of the others that are named."""
    fits = {name: fit(name, x, y, inner, test, options) for name in names if name != "ensemble"}
    if "ensemble" in names and fits:
        fits["ensemble"] = ensemble(fits, y)
    return fits


def _forest(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _Once:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        options.trees, min_samples_leaf=LEAF, random_state=options.seed, n_jobs=1
    )
    model.fit(x.astype(np.float32), y)
    share = model.predict_proba(test.astype(np.float32))[:, 1]
    # half a vote on each side keeps the log-odds finite
    share = (share * options.trees + 0.5) / (options.trees + 1)
    return _Once(
        np.log(share / (1 - share)), np.asarray(model.feature_importances_, dtype=np.float64)
    )


def _boosting(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _Once:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        random_state=options.seed, early_stopping=False, **BOOSTING
    ).fit(x, y)
    return _Once(np.asarray(model.decision_function(test), dtype=np.float64), None)


def _svm(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _Once:
    from sklearn.svm import SVC

    rows = np.random.default_rng(options.seed).permutation(len(y))[:SVM_ROWS]
    standard = probes.standardise(x[rows])
    model = SVC(C=1.0, kernel="rbf", gamma="scale").fit(standard.apply(x[rows]), y[rows])
    return _Once(np.asarray(model.decision_function(standard.apply(test)), dtype=np.float64), None)


def _additive(x: Floats, y: Ints, test: Floats, _options: ClassifierOptions) -> _Once:
    """A sum of one smooth curve per column: the importance of a column is the spread of its curve over the rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import SplineTransformer

    varying = np.ptp(x, axis=0) > 0
    importance = np.zeros(x.shape[1])
    if not varying.any():
        return _Once(np.zeros(len(test)), importance)
    splines = SplineTransformer(
        KNOTS, degree=2, knots="quantile", extrapolation="constant", include_bias=False
    )
    curves = splines.fit_transform(_spread(x[:, varying], x[:, varying]))
    model = LogisticRegression(C=ADDITIVE, max_iter=200, solver="newton-cholesky").fit(curves, y)
    each = curves.shape[1] // int(varying.sum())
    parts = (
        (curves * model.coef_[0]).reshape(len(x), -1, each).sum(axis=2)
    )  # (rows, columns): each curve's height
    importance[varying] = parts.std(axis=0)
    shown = splines.transform(_spread(test[:, varying], x[:, varying]))
    return _Once(np.asarray(model.decision_function(shown), dtype=np.float64), importance)


def _spread(x: Floats, training: Floats) -> Floats:
    """Ranks among the training rows, 0 to 1: quantiles of a column with many equal values would coincide."""
    below = [
        np.searchsorted(np.sort(column), own, side="left")
        for own, column in zip(x.T, training.T, strict=True)
    ]
    upto = [
        np.searchsorted(np.sort(column), own, side="right")
        for own, column in zip(x.T, training.T, strict=True)
    ]
    return np.asarray((np.array(below) + np.array(upto)).T / (2 * len(training)), dtype=np.float64)


_ONCE: dict[str, Callable[[Floats, Ints, Floats, ClassifierOptions], _Once]] = {
    "forest": _forest,
    "boosting": _boosting,
    "svm": _svm,
    "additive": _additive,
}
