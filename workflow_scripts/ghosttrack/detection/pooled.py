"""Ridge probes on all data sets together, with the weights of every leave-one-fold-out fit."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection import probes
from ghosttrack.detection.probes import Floats, Ints
from ghosttrack.statistics import auroc

# Ridge strengths as in probes.RIDGE, without the ends, which pooled data sets never chose.
STRENGTHS = (0.3, 1.0, 3.0)
# A column that is non-zero in fewer rows gets the weight 0.
LEAST_ROWS = 5


class LinearModel(NamedTuple):
    """log-odds = x . weight + intercept, in the units of x."""

    weight: Floats
    intercept: float

    def apply(self, x: NDArray[Any]) -> Floats:
        """Log-odds of rows, (rows, columns) -> (rows,)."""
        return np.asarray(x @ self.weight.astype(x.dtype), dtype=np.float64) + self.intercept


class CrossFit(NamedTuple):
    """left_out: (rows,) out-of-fold log-odds; folds: the fit without each fold.

    nested: (folds, rows) log-odds of row i from a fit without its fold and without fold k, at
    [k, i]; nothing of fold k but its unlabelled rows and the ridge strength enters nested[k].
    final: the fit on all rows.
    """

    left_out: Floats
    nested: Floats
    folds: list[LinearModel]
    final: LinearModel
    strength: float


def cross_fit(
    x: NDArray[Any], y: Ints, fold: Ints, strengths: Sequence[float] = STRENGTHS
) -> CrossFit:
    """Ridge regression on +-1 labels, without each fold and on all rows.

    The strength maximises the out-of-fold AUROC. The Gram matrix is computed once, and each fold's
    part is subtracted from it. More columns than rows are first rotated into as many as there are
    rows, which changes no score. Columns are scaled over all rows, which reads no label. All fits
    share one Platt scaling, fitted on the out-of-fold scores.

    Args:
        x: (rows, columns); y: (rows,) labels 0/1; fold: (rows,) 0 to folds - 1.
    """
    kept = np.flatnonzero((x != 0).sum(axis=0) >= min(LEAST_ROWS, len(x)))
    standard = probes.standardise(x[:, kept])
    z, rotation = _rotated(standard.apply(x[:, kept]).astype(np.float32))
    target = np.asarray(2.0 * y - 1.0, dtype=np.float64)
    total = SufficientStatistics.of(z, target)
    unit = float(np.trace(total.squares)) / len(z)
    count = int(fold.max()) + 1
    rest = [
        total.without(SufficientStatistics.of(z[fold == number], target[fold == number]))
        for number in range(count)
    ]
    best: tuple[float, float, Floats, list[LinearModel]] | None = None
    for strength in strengths:
        fits = [sums.solve(strength * unit) for sums in rest]
        left_out = np.empty(len(z))
        for number, fit in enumerate(fits):
            left_out[fold == number] = fit.apply(z[fold == number])
        score = auroc(y, left_out)
        if best is None or score > best[0]:
            best = (score, strength, left_out, fits)
    assert best is not None, "at least one strength"
    _, strength, left_out, fits = best
    to_odds = probes.platt(left_out, y)

    def unscaled(fit: LinearModel) -> LinearModel:
        weight = np.zeros(x.shape[1])
        per_unit = (fit.weight if rotation is None else rotation @ fit.weight) / standard.scale
        weight[kept] = to_odds.slope * per_unit
        shift = float((per_unit * standard.mean).sum())
        return LinearModel(weight, to_odds.slope * (fit.intercept - shift) + to_odds.intercept)

    final = total.solve(strength * unit)
    return CrossFit(
        to_odds.apply(left_out),
        _nested(z, y, fold, total, rest, strength * unit, left_out),
        [unscaled(fit) for fit in fits],
        unscaled(final),
        strength,
    )


def _rotated(z: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Columns in which all differences between rows lie, and the rotation to them.

    Args:
        z: (rows, columns).
    Returns:
        z and None, if there are at least as many rows as columns. Otherwise `z @ rotation`, (rows,
        rank), and the rotation, (columns, rank), whose columns are orthonormal: products of rows
        stay the same, and so do ridge fits.
    """
    if len(z) >= z.shape[1]:
        return z, None
    values, vectors = np.linalg.eigh((z @ z.T).astype(np.float64))
    present = values > values[-1] * len(z) * np.finfo(np.float32).eps
    root = np.sqrt(values[present])
    rotation = z.T @ (vectors[:, present] / root).astype(np.float32)
    return (vectors[:, present] * root).astype(np.float32), rotation


def _nested(
    z: NDArray[np.float32],
    y: Ints,
    fold: Ints,
    total: "SufficientStatistics",
    rest: Sequence["SufficientStatistics"],
    penalty: float,
    left_out: Floats,
) -> Floats:
    """As CrossFit.nested.

    Args:
        z: (rows, columns); total, rest: statistics of all rows, and of those without each fold.
        left_out: (rows,) scores of the fit without a row's fold, before Platt scaling.
    """
    count = len(rest)
    scores = np.tile(left_out, (count, 1))
    for one, other in combinations(range(count), 2):
        fit = rest[one].without(total.without(rest[other])).solve(penalty)
        for outer, inner in ((one, other), (other, one)):
            scores[outer, fold == inner] = fit.apply(z[fold == inner])
    for outer in range(count):
        others = fold != outer
        scores[outer] = probes.platt(scores[outer, others], y[others]).apply(scores[outer])
    return scores


class SufficientStatistics(NamedTuple):
    """Sufficient statistics of ridge regression: sums and products of columns and target."""

    rows: int
    columns: Floats  # (columns,)
    squares: Floats  # (columns, columns)
    target: float
    products: Floats  # (columns,)

    @classmethod
    def of(cls, z: NDArray[np.float32], target: Floats) -> "SufficientStatistics":
        """Statistics of the rows z, (rows, columns), with their targets, (rows,)."""
        # Single precision halves the cost; its rounding is far below every strength.
        return cls(
            len(z),
            z.sum(axis=0, dtype=np.float64),
            (z.T @ z).astype(np.float64),
            float(target.sum()),
            np.asarray(z.T @ target.astype(np.float32), dtype=np.float64),
        )

    @classmethod
    def together(cls, parts: Sequence["SufficientStatistics"]) -> "SufficientStatistics":
        """Statistics of the rows of all parts."""
        return cls(*(sum(values) for values in zip(*parts, strict=True)))

    def without(self, part: "SufficientStatistics") -> "SufficientStatistics":
        """Statistics without the rows of `part`."""
        rest = [a - b for a, b in zip(self, part, strict=True)]  # type: ignore[operator]
        return SufficientStatistics(*rest)

    @property
    def scatter(self) -> Floats:
        """Products of the columns minus their means, (columns, columns)."""
        return np.asarray(self.squares - np.outer(self.columns, self.columns) / self.rows)

    def solve(self, penalty: float) -> LinearModel:
        """Ridge solution with an unpenalised intercept."""
        mean, centre = self.columns / self.rows, self.target / self.rows
        products = self.products - self.rows * centre * mean
        weight = ridge(self.scatter, products, penalty)
        return LinearModel(weight, centre - float(mean @ weight))


def ridge(scatter: Floats, products: Floats, penalty: float) -> Floats:
    """The weights, (columns,), with (scatter + penalty I) weights = products."""
    from scipy.linalg import cho_factor, cho_solve

    matrix = np.array(scatter, order="F")  # a copy that LAPACK can overwrite
    matrix[np.diag_indices_from(matrix)] += penalty
    factor = cho_factor(matrix, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, products, check_finite=False))
