"""Classifiers of tables: linear, random forest, boosting, SVM, additive model, and their ensemble.

Each is fitted on the training rows. Its log-odds are Platt-scaled on scores of left-out inner
folds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ghosttrack.detection import probes
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.statistics import auroc

# Minimum rows per leaf, so that a tree does not memorise single rows.
LEAF = 3
# The inner fits, which only calibrate, use a fraction 1 / _FEWER of the trees: nearly the same
# log-odds.
_FEWER = 4
# Few and shallow trees: on a few hundred rows more of them overfit.
BOOSTING = {
    "max_iter": 60,
    "learning_rate": 0.1,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 10,
    "l2_regularization": 1.0,
}
# Maximum training rows of the SVM, whose cost grows with their square. Beyond, a seeded sample is
# fitted.
SVM_ROWS = 2000
# Knots of the additive model's quadratic splines, at quantiles.
KNOTS = 5
# Inverse regularisation strength of the additive model.
ADDITIVE = 0.3
NAMES = ("logistic", "forest", "boosting", "svm", "additive", "ensemble")


class ClassifierOptions(NamedTuple):
    """trees: number of trees of the forest; seed: of all random choices."""

    trees: int
    seed: int


class _SingleFit(NamedTuple):
    """Uncalibrated scores, (test,), higher = hallucinated.

    importance: of each column, (columns,), or None.
    """

    scores: Floats
    importance: Floats | None


def fit(
    name: str, x: Floats, y: Ints, inner: Ints, test: Floats, options: ClassifierOptions
) -> FoldFit:
    """Fit one classifier; training rows are scored out of fold, test rows by the final fit.

    Args:
        name: one of `NAMES`, not the ensemble.
        x: (train, columns) training rows; y: (train,) labels; inner: (train,) inner folds.
        test: (test, columns) rows to score.
    """
    if name == "logistic":
        return probes.logistic(x, y, inner, test)
    once, smaller = _CLASSIFIERS[name], options._replace(trees=max(10, options.trees // _FEWER))
    left_out = np.empty(len(y))
    for fold in np.unique(inner):
        held = inner == fold
        left_out[held] = once(x[~held], y[~held], x[held], smaller).scores
    final = once(x, y, test, options)
    odds = probes.platt(left_out, y)
    return FoldFit(
        odds.apply(left_out),
        odds.apply(final.scores),
        float("nan"),
        auroc(y, left_out),
        final.importance,
    )


def ensemble(fits: Mapping[str, FoldFit], y: Ints) -> FoldFit:
    """Mean log-odds of several classifiers on the same rows."""
    return probes.mean_of(list(fits.values()), y)


def fit_all(
    names: Sequence[str], x: Floats, y: Ints, inner: Ints, test: Floats, options: ClassifierOptions
) -> dict[str, FoldFit]:
    """Fit every classifier of `names`.

    The ensemble is the mean of the other classifiers in `names`.
    """
    fits = {name: fit(name, x, y, inner, test, options) for name in names if name != "ensemble"}
    if "ensemble" in names and fits:
        fits["ensemble"] = ensemble(fits, y)
    return fits


def _forest(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _SingleFit:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        options.trees, min_samples_leaf=LEAF, random_state=options.seed, n_jobs=1
    )
    model.fit(x.astype(np.float32), y)
    share = model.predict_proba(test.astype(np.float32))[:, 1]
    # half a vote for each class keeps the log-odds finite
    share = (share * options.trees + 0.5) / (options.trees + 1)
    return _SingleFit(
        np.log(share / (1 - share)), np.asarray(model.feature_importances_, dtype=np.float64)
    )


def _boosting(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _SingleFit:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        random_state=options.seed, early_stopping=False, **BOOSTING
    ).fit(x, y)
    return _SingleFit(np.asarray(model.decision_function(test), dtype=np.float64), None)


def _svm(x: Floats, y: Ints, test: Floats, options: ClassifierOptions) -> _SingleFit:
    from sklearn.svm import SVC

    rows = np.random.default_rng(options.seed).permutation(len(y))[:SVM_ROWS]
    standard = probes.standardise(x[rows])
    model = SVC(C=1.0, kernel="rbf", gamma="scale").fit(standard.apply(x[rows]), y[rows])
    return _SingleFit(
        np.asarray(model.decision_function(standard.apply(test)), dtype=np.float64), None
    )


def _additive(x: Floats, y: Ints, test: Floats, _options: ClassifierOptions) -> _SingleFit:
    """Generalised additive model, one spline per column.

    Importance: standard deviation of a spline over the rows.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import SplineTransformer

    varying = np.ptp(x, axis=0) > 0
    importance = np.zeros(x.shape[1])
    if not varying.any():
        return _SingleFit(np.zeros(len(test)), importance)
    splines = SplineTransformer(
        KNOTS, degree=2, knots="quantile", extrapolation="constant", include_bias=False
    )
    curves = splines.fit_transform(_ranks(x[:, varying], x[:, varying]))
    model = LogisticRegression(C=ADDITIVE, max_iter=200, solver="newton-cholesky").fit(curves, y)
    per_column = curves.shape[1] // int(varying.sum())
    parts = (
        (curves * model.coef_[0]).reshape(len(x), -1, per_column).sum(axis=2)
    )  # (rows, columns): value of each spline
    importance[varying] = parts.std(axis=0)
    shown = splines.transform(_ranks(test[:, varying], x[:, varying]))
    return _SingleFit(np.asarray(model.decision_function(shown), dtype=np.float64), importance)


def _ranks(x: Floats, training: Floats) -> Floats:
    """Ranks among the training rows, 0 to 1; quantiles of a column with ties would coincide."""
    below, up_to = (
        np.array(
            [
                np.searchsorted(np.sort(reference), values, side=side)
                for values, reference in zip(x.T, training.T, strict=True)
            ]
        )
        for side in ("left", "right")
    )
    return np.asarray((below + up_to).T / (2 * len(training)), dtype=np.float64)


_CLASSIFIERS: dict[str, Callable[[Floats, Ints, Floats, ClassifierOptions], _SingleFit]] = {
    "forest": _forest,
    "boosting": _boosting,
    "svm": _svm,
    "additive": _additive,
}
