"""Linear probes with nested cross-validation: each training row also has an out-of-fold score."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.statistics import auroc

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Kernel matrix: example indices (rows,), and indices into them (columns,) -> (rows, columns).
Kernel = Callable[[Ints, Ints], NDArray[Any]]

# Ridge strengths in units of the mean squared norm of a standardised row (about d). In trials on
# statements the best strength was between .3 and 3, with the AUROC of the best logistic regression.
RIDGE = (0.1, 0.3, 1.0, 3.0, 10.0)
# Up to EXACT training rows all fits are exact. Beyond, text models have a looser tolerance, and
# kernel probes use the Nystroem approximation with LANDMARKS rows, so that cost grows linearly with
# the rows.
EXACT = 1024
LANDMARKS = 1024
# Inverse regularisation strengths of logistic regression on a few standardised columns.
LOGISTIC = (0.01, 0.1, 1.0)
# Directions below this fraction of the largest eigenvalue are rounding errors and are dropped.
_RANK = 1e-10
# Smallest scale, as a fraction of the median channel's: less variation is rounding of the number
# format.
_LEAST_SCALE = 1e-3


class FoldFit(NamedTuple):
    """Log-odds of "hallucinated" from the fits of one outer fold.

    train_log_odds: (train,) out-of-fold training log-odds, each from a fit without the row's inner
    fold; test_log_odds: (test,) from the fit on all training rows; strength: regularisation that
    maximises inner_auroc, the AUROC of train_log_odds; weights: (columns,) in standardised units,
    or None.
    """

    train_log_odds: Floats
    test_log_odds: Floats
    strength: float
    inner_auroc: float
    weights: Floats | None


class Standardiser(NamedTuple):
    """Mean and scale of training rows, each (columns,)."""

    mean: Floats
    scale: Floats

    def apply(self, x: NDArray[Any]) -> Floats:
        """Centre and scale rows, (rows, columns)."""
        return np.asarray((x - self.mean) / self.scale, dtype=np.float64)


def standardise(x: NDArray[Any]) -> Standardiser:
    """Fit mean and scale on training rows, (rows, columns). Constant columns become zero."""
    scale = x.std(axis=0, dtype=np.float64)
    floor = _LEAST_SCALE * float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
    return Standardiser(x.mean(axis=0, dtype=np.float64), np.maximum(scale, floor))


def ridge(
    x: NDArray[Any], y: Ints, inner: Ints, test: NDArray[Any], strengths: Sequence[float] = RIDGE
) -> FoldFit:
    """Ridge regression on +-1 labels with an exact leave-one-fold-out score for each training row.

    One eigendecomposition serves every strength and every inner fold: with smoother matrix H, the
    residual of fold B when B is left out is (I - H_BB)^-1 (y_B - yhat_B) (Cook's identity; exact
    for penalised least squares with a free intercept). The columns are scaled over all training
    rows. The log-odds are Platt-scaled on the left-out scores.

    Args:
        x: (train, columns) training rows; y: (train,) labels 0/1; inner: (train,) inner folds.
        test: (test, columns) rows to score.
    """
    standard = standardise(x)
    z = standard.apply(x)
    chosen = _choose(*_decompose(z), float((z**2).sum()) / len(y), y, inner, strengths)
    weights = z.T @ chosen.dual
    return _to_odds(chosen, y, standard.apply(test) @ weights, weights)


def joint_ridge(
    blocks: Sequence[NDArray[Any]],
    y: Ints,
    inner: Ints,
    train: Ints,
    test: Ints,
    strengths: Sequence[float] = RIDGE,
) -> FoldFit:
    """`ridge` on the concatenated columns of several blocks, through their kernel matrix.

    Args:
        blocks: each (examples, columns).
        y: (train,) labels; inner: (train,) inner folds.
        train, test: indices of examples.
    """

    def kernel(rows: Ints, columns: Ints) -> NDArray[Any]:
        return _inner_products(blocks, train, rows, columns)

    return kernel_ridge(kernel, y, inner, train, test, strengths)


def _inner_products(
    blocks: Sequence[NDArray[Any]], train: Ints, rows: Ints, columns: Ints
) -> NDArray[np.float32]:
    """Inner products of standardised rows with some of them, summed over blocks, (rows, columns).

    Single precision halves the cost. Its rounding is far below every ridge strength.

    Args:
        blocks: each (examples, columns).
        train: examples that give mean and scale.
        rows: examples; columns: indices into them.
    """
    count = len(columns)
    products = np.zeros((len(rows), count), dtype=np.float32)
    # Products of the same rows are symmetric, and numpy computes one half of them.
    first = count if np.array_equal(columns, np.arange(count)) else 0
    for block in blocks:
        standard = standardise(block[train])
        z = block[rows].astype(np.float32)
        z -= standard.mean.astype(np.float32)
        z /= standard.scale.astype(np.float32)
        if first:
            products[:first] += z[:first] @ z[:first].T
        products[first:] += z[first:] @ z[columns].T
    return products


def bilinear_ridge(
    left: Sequence[NDArray[Any]],
    right: NDArray[Any],
    relation: Ints,
    y: Ints,
    inner: Ints,
    train: Ints,
    test: Ints,
) -> FoldFit:
    """Ridge regression on all products of a channel of `left` and one of `right`, per relation.

    The bilinear form left' W right can learn which answer belongs to which prompt; a linear probe
    on both cannot. Its kernel is the product of the two kernels, so W is never formed.

    Args:
        left: blocks (examples, columns), standardised as in `joint_ridge`.
        right: (examples, columns); rows are centred and normalised to length 1.
        relation: (examples,) relation number.
        y, inner, train, test: as in `joint_ridge`.
    """

    def kernel(rows: Ints, columns: Ints) -> NDArray[Any]:
        products = _inner_products(left, train, rows, columns)
        answers = right[rows].astype(np.float32) - right[train].mean(axis=0, dtype=np.float32)
        answers /= np.maximum(
            np.linalg.norm(answers, axis=1, keepdims=True), np.finfo(np.float32).tiny
        )
        relations = relation[rows]
        same = relations[:, None] == relations[columns]
        return np.asarray(products * (answers @ answers[columns].T) * same)

    return kernel_ridge(kernel, y, inner, train, test)


def kernel_ridge(
    kernel: Kernel,
    y: Ints,
    inner: Ints,
    train: Ints,
    test: Ints,
    strengths: Sequence[float] = RIDGE,
) -> FoldFit:
    """`ridge` in the feature space of a kernel.

    With more than EXACT training rows it is the Nystroem approximation (Williams and Seeger 2001)
    with LANDMARKS evenly spaced training rows. Arguments as `joint_ridge`.
    """
    n, rows = len(train), np.concatenate([train, test])
    if n > EXACT:
        return _landmark_ridge(kernel, y, inner, rows, strengths)
    products = np.asarray(kernel(rows, np.arange(n)), dtype=np.float64)
    centre = products[:n].mean(axis=0)  # the intercept is free
    products += centre.mean() - centre - products.mean(axis=1, keepdims=True)
    eigenvalues, q = np.linalg.eigh(products[:n])
    kept = eigenvalues > max(eigenvalues[-1], 0) * _RANK
    chosen = _choose(
        eigenvalues[kept], q[:, kept], float(np.trace(products[:n])) / n, y, inner, strengths
    )
    return _to_odds(chosen, y, products[n:] @ chosen.dual, None)


def _landmark_ridge(
    kernel: Kernel, y: Ints, inner: Ints, rows: Ints, strengths: Sequence[float]
) -> FoldFit:
    """`kernel_ridge` with the Nystroem approximation.

    `rows`: the training rows of `y`, then the test rows.
    """
    n = len(y)
    columns = np.linspace(0, n - 1, LANDMARKS).round().astype(np.int64)
    products = np.asarray(kernel(rows, columns), dtype=np.float64)
    eigenvalues, q = np.linalg.eigh(products[columns])
    kept = eigenvalues > max(eigenvalues[-1], 0) * _RANK
    if not kept.any():  # all rows are equal
        return _to_odds(
            _choose(np.zeros(0), np.zeros((n, 0)), 1.0, y, inner, strengths),
            y,
            np.zeros(len(rows) - n),
            None,
        )
    x = products @ (
        q[:, kept] / np.sqrt(eigenvalues[kept])
    )  # (rows, rank): features of the Nystroem approximation
    mean = x[:n].mean(axis=0)  # the intercept is free
    squares, v = np.linalg.eigh((x[:n] - mean).T @ (x[:n] - mean))
    held = squares > squares[-1] * _RANK
    whitened = (x - mean) @ v[:, held] / np.sqrt(squares[held])
    train = whitened[:n]
    unit = float((x[:n] ** 2).sum()) / n
    chosen = _choose(squares[held], train, unit, y, inner, strengths)
    weights = np.sqrt(squares[held]) * (train.T @ chosen.dual)
    return _to_odds(chosen, y, (whitened[n:] * np.sqrt(squares[held])) @ weights, None)


class _RidgeFit(NamedTuple):
    """left_out: (train,) scores without the row's inner fold; dual: (train,) dual weights.

    centre: intercept.
    """

    left_out: Floats
    dual: Floats
    centre: float
    strength: float
    inner_auroc: float


def _choose(
    eigenvalues: Floats, q: Floats, unit: float, y: Ints, inner: Ints, strengths: Sequence[float]
) -> _RidgeFit:
    """Choose the strength with the best inner AUROC.

    Args:
        eigenvalues, q: eigendecomposition of the training kernel ZZ', (rank,) and (train, rank).
        unit: mean squared norm of a row, the unit of the strengths.
    """
    target = np.asarray(2.0 * y - 1.0, dtype=np.float64)
    centre = float(target.mean())
    projected: Floats = q.T @ (target - centre)  # (rank,)
    best: _RidgeFit | None = None
    for strength in strengths:
        shrink = eigenvalues / (eigenvalues + strength * unit)
        fitted = np.asarray(centre + q @ (shrink * projected), dtype=np.float64)
        left_out = _leave_folds_out(q, shrink, target, fitted, inner)
        score = auroc(y, left_out)
        if best is None or score > best.inner_auroc:
            # weights = Z' (ZZ' + a)^-1 (target - centre)
            best = _RidgeFit(
                left_out, q @ (projected / (eigenvalues + strength * unit)), centre, strength, score
            )
    assert best is not None, "at least one strength"
    return best


def _to_odds(chosen: _RidgeFit, y: Ints, outer: Floats, weights: Floats | None) -> FoldFit:
    odds = platt(chosen.left_out, y)
    return FoldFit(
        odds.apply(chosen.left_out),
        odds.apply(outer + chosen.centre),
        chosen.strength,
        chosen.inner_auroc,
        weights,
    )


def difference_of_means(x: NDArray[Any], y: Ints, inner: Ints, test: NDArray[Any]) -> FoldFit:
    """Projection on the difference of the class means (Marks and Tegmark 2023)."""

    def direction(rows: NDArray[np.bool_]) -> Floats:
        part = x[rows].astype(np.float64)
        return np.asarray(
            part[y[rows] == 1].mean(axis=0) - part[y[rows] == 0].mean(axis=0), dtype=np.float64
        )

    left_out = np.empty(len(y))
    for fold in np.unique(inner):
        held = inner == fold
        left_out[held] = x[held] @ direction(~held)
    weights = direction(np.ones(len(y), dtype=bool))
    odds = platt(left_out, y)
    return FoldFit(
        odds.apply(left_out), odds.apply(test @ weights), float("nan"), auroc(y, left_out), weights
    )


def _decompose(z: Floats) -> tuple[Floats, Floats]:
    n, columns = z.shape
    if n <= columns:
        # single precision halves the cost; its rounding is far below every strength
        single = z.astype(np.float32)
        eigenvalues, q = np.linalg.eigh((single @ single.T).astype(np.float64))
        kept = eigenvalues > eigenvalues[-1] * _RANK
        return eigenvalues[kept], q[:, kept]
    eigenvalues, v = np.linalg.eigh(z.T @ z)
    kept = eigenvalues > eigenvalues[-1] * _RANK
    return eigenvalues[kept], z @ v[:, kept] / np.sqrt(eigenvalues[kept])


def _leave_folds_out(
    q: Floats, shrink: Floats, target: Floats, fitted: Floats, inner: Ints
) -> Floats:
    """Prediction for each row by the fit without its fold, (train,)."""
    result = np.empty(len(fitted))
    for fold in np.unique(inner):
        rows = np.flatnonzero(inner == fold)
        residual = target[rows] - fitted[rows]
        # H_BB = u u'; the last column of u is the intercept's 1/sqrt(n)
        u = np.column_stack([q[rows] * np.sqrt(shrink), np.full(len(rows), len(fitted) ** -0.5)])
        if len(rows) <= u.shape[1]:
            out = np.linalg.solve(np.eye(len(rows)) - u @ u.T, residual)
        else:  # Woodbury: the smaller system
            out = residual + u @ np.linalg.solve(np.eye(u.shape[1]) - u.T @ u, u.T @ residual)
        result[rows] = target[rows] - out
    return result


class Platt(NamedTuple):
    """log-odds = slope * score + intercept."""

    slope: float
    intercept: float

    def apply(self, score: Floats) -> Floats:
        """Scores to log-odds, (rows,)."""
        return self.slope * score + self.intercept


def platt(score: Floats, y: Ints) -> Platt:
    """Logistic regression of labels on one score, with smoothed targets (Platt 1999)."""
    positives, negatives = float((y == 1).sum()), float((y == 0).sum())
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale = float(score.std()) or 1.0
    x = np.column_stack([(score - score.mean()) / scale, np.ones(len(y))])
    beta = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(
        50
    ):  # converges in fewer than ten steps; smoothed targets keep the optimum finite
        p = _sigmoid(x @ beta)
        # the ridge term keeps the step finite when the score is constant
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (target - p))
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        beta += step
        if float(np.abs(step).max()) < 1e-10:
            break
    return Platt(float(beta[0] / scale), float(beta[1] - beta[0] * score.mean() / scale))


def logistic(
    x: NDArray[Any], y: Ints, inner: Ints, test: NDArray[Any], strengths: Sequence[float] = LOGISTIC
) -> FoldFit:
    """L2 logistic regression on standardised columns; C maximises the inner AUROC.

    The log-odds are not Platt-scaled: see `calibrated`. Sparse scipy matrices are accepted, and are
    neither centred nor scaled. Arguments as `ridge`.
    """
    sparse = hasattr(x, "tocsr")
    best: tuple[float, float, Floats] | None = None
    for strength in strengths:
        left_out = np.empty(len(y))
        for fold in np.unique(inner):
            held = inner == fold
            left_out[held] = _logistic_once(x[~held], y[~held], x[held], strength, sparse)[0]
        score = auroc(y, left_out)
        if best is None or score > best[0]:
            best = (score, strength, left_out)
    assert best is not None, "at least one strength"
    score, strength, left_out = best
    outer, weights = _logistic_once(x, y, test, strength, sparse)
    return FoldFit(left_out, outer, strength, score, None if sparse else weights)


def _logistic_once(
    x: Any, y: Ints, test: Any, strength: float, sparse: bool
) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    if not sparse:
        standard = standardise(x)
        x, test = standard.apply(x), standard.apply(test)
    # Newton's method for few dense columns, liblinear for wide sparse rows. For many sparse rows
    # its dual solver, whose cost grows with the non-zero entries: AUROCs agree to about three
    # digits.
    options: dict[str, Any] = {
        "solver": "liblinear" if sparse else "newton-cholesky",
        "max_iter": 200,
    }
    if sparse and len(y) > EXACT:
        options |= {"dual": True, "tol": 1e-2, "max_iter": 1000}
    model = LogisticRegression(C=strength, random_state=0, **options).fit(x, y)
    return np.asarray(model.decision_function(test), dtype=np.float64), np.asarray(
        model.coef_[0], dtype=np.float64
    )


def calibrated(fit: FoldFit, y: Ints) -> FoldFit:
    """Platt-scale the log-odds of a fit on its out-of-fold training log-odds."""
    odds = platt(fit.train_log_odds, y)
    return fit._replace(
        train_log_odds=odds.apply(fit.train_log_odds), test_log_odds=odds.apply(fit.test_log_odds)
    )


def mean_of(fits: Sequence[FoldFit], y: Ints) -> FoldFit:
    """Mean of the log-odds of several fits on the same rows, Platt-scaled."""
    inner, outer = (
        np.mean([fit.train_log_odds for fit in fits], axis=0),
        np.mean([fit.test_log_odds for fit in fits], axis=0),
    )
    to_odds = platt(inner, y)
    return FoldFit(to_odds.apply(inner), to_odds.apply(outer), float("nan"), auroc(y, inner), None)


def probability(log_odds: Floats) -> Floats:
    """Log-odds to probabilities, rounded to eight digits so that equal rows stay equal."""
    return np.round(_sigmoid(log_odds), 8)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float64)
