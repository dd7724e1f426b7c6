"""Ridge regression for many rows, with scores from fits without a row's own fold.

The moments of every fold are summed once. A fit without some folds is then one solution of the
normal equations, so that 100,000 rows cost little more than one pass over them. The inner folds of
an outer fold are the other outer folds: the fit without folds o and i gives the training score, in
outer fold o, of the rows of fold i.

Of very many columns, each fit gets those that correlate most with the labels of its own rows. All
fits together use a limited number of columns, so that their products fit into memory.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from ghosttrack.statistics import auroc

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Matrix = Any  # a dense array or a scipy.sparse.csr_array, (rows, columns)

# Ridge strengths in units of the number of rows; the columns have variance 1.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Columns of all fits together, where columns are chosen: their products take 34 MB per fold.
WIDEST = 2048
# Rows of a dense matrix that are converted to float64 at once: 8,192 x 2,048 x 8 bytes = 134 MB.
_ROWS = 8192
# Columns with a variance below this are constant.
_CONSTANT = 1e-12


class FoldScores(NamedTuple):
    """Scores of all rows, in units of the label, larger for hallucinated tokens.

    test: (rows,) from fits without the row's fold.
    train: (folds, rows); row o holds the training scores of outer fold o, from fits without o and
        without the row's fold; equal to `test` for the rows of fold o.
    strength: (folds,) chosen in each outer fold.
    inner_auroc: (folds,) AUROC of the training scores.
    """

    test: Floats
    train: Floats
    strength: Floats
    inner_auroc: Floats


class _Moments(NamedTuple):
    """Sums over rows: number, columns, products of columns, columns times labels, labels."""

    rows: float
    column: Floats
    product: Floats
    with_label: Floats
    label: float

    def of(self, columns: Ints) -> "_Moments":
        """The sums of some columns."""
        return self._replace(
            column=self.column[columns],
            product=self.product[np.ix_(columns, columns)],
            with_label=self.with_label[columns],
        )

    def plus(self, other: "_Moments", sign: int = 1) -> "_Moments":
        return _Moments(
            self.rows + sign * other.rows,
            self.column + sign * other.column,
            self.product + sign * other.product,
            self.with_label + sign * other.with_label,
            self.label + sign * other.label,
        )


class _Fits(NamedTuple):
    """Linear scores by strength: (columns, strengths) weights, and (strengths,) offsets."""

    weights: Floats
    offsets: Floats

    def apply(self, x: Matrix) -> Floats:
        """(strengths, rows)."""
        return np.asarray(x @ self.weights, dtype=np.float64).T + self.offsets[:, None]


# Matrix, moments of every fold, and moments of all rows.
_Inputs = tuple[Matrix, list[_Moments], _Moments]


def leave_out(
    x: Matrix,
    y: Ints,
    fold: Ints,
    strengths: Sequence[float] = STRENGTHS,
    widest: int | None = None,
) -> FoldScores:
    """Ridge regression on 0/1 labels with standardised columns; the strength is chosen inside.

    Args:
        x: (rows, columns), dense or sparse.
        y: (rows,) labels.
        fold: (rows,) outer folds, from 0.
        widest: most columns of all fits together; None: all columns are used.
    """
    chosen = None
    if widest is not None and x.shape[1] > widest:
        used, chosen = _choose_columns(x, y, fold, widest)
        x = x[:, used]
    inputs: _Inputs = (x, *_sums(x, y, fold))
    return _nested(lambda _: inputs, y, fold, strengths, keep=True, chosen=chosen)


def leave_out_by_fold(
    columns: Callable[[int], NDArray[Any]],
    y: Ints,
    fold: Ints,
    strengths: Sequence[float] = STRENGTHS,
) -> FoldScores:
    """`leave_out` on columns that differ between outer folds, such as scores of other fits.

    Args:
        columns: number of the outer fold -> (rows, columns).
    """

    def of_fold(outer: int) -> _Inputs:
        x = columns(outer)
        return (x, *_sums(x, y, fold))

    return _nested(of_fold, y, fold, strengths)


def _nested(
    inputs: Callable[[int], _Inputs],
    y: Ints,
    fold: Ints,
    strengths: Sequence[float],
    *,
    keep: bool = False,
    chosen: Mapping[tuple[int, ...], Ints] | None = None,
) -> FoldScores:
    """`keep`: the inputs are the same in every outer fold, so the fits of a pair serve twice.

    chosen: columns of the fit without the given folds, ascending; None: all columns.
    """
    of = (chosen or {}).get
    pairs: dict[tuple[int, int], _Fits] = {}
    count = int(fold.max()) + 1
    rows = [np.flatnonzero(fold == number) for number in range(count)]
    result = FoldScores(
        np.zeros(len(y)), np.zeros((count, len(y))), np.zeros(count), np.zeros(count)
    )
    for outer in range(count):
        x, parts, total = inputs(outer)
        training = total.plus(parts[outer], -1)
        inner = np.zeros((len(strengths), len(y)))
        for number in range(count):
            if number != outer:
                pair = (min(outer, number), max(outer, number))
                fits = pairs.pop(pair, None) or _fits(
                    training.plus(parts[number], -1), strengths, of(pair)
                )
                if keep:
                    pairs[pair] = fits
                inner[:, rows[number]] = fits.apply(x[rows[number]])
        known = fold != outer
        found = [auroc(y[known], scores[known]) for scores in inner]
        best = int(np.nanargmax(found)) if np.isfinite(found).any() else len(strengths) - 1
        result.train[outer] = inner[best]
        last = _fits(training, [strengths[best]], of((outer,)))
        result.test[rows[outer]] = last.apply(x[rows[outer]])[0]
        result.train[outer, rows[outer]] = result.test[rows[outer]]
        result.strength[outer], result.inner_auroc[outer] = strengths[best], found[best]
    return result


def _choose_columns(
    x: Matrix, y: Ints, fold: Ints, widest: int
) -> tuple[Ints, dict[tuple[int, ...], Ints]]:
    """The columns with the largest correlations with the label, by fit.

    All fits have the same number of columns: the most with which they use `widest` or fewer
    together.

    Returns:
        The columns that a fit uses, ascending; and for each fit, named by the folds that it leaves
        out, its columns as indices in them.
    """
    count = int(fold.max()) + 1
    # By fold: rows, labels, and (folds, columns) sums of columns, squares and products with labels.
    sums = [
        np.array(part, dtype=np.float64)
        for part in zip(
            *(_first_sums(x[fold == number], y[fold == number]) for number in range(count)),
            strict=True,
        )
    ]
    fits = [*((outer,) for outer in range(count)), *itertools.combinations(range(count), 2)]
    ranks = {}
    for without in fits:
        kept = [number for number in range(count) if number not in without]
        order = np.argsort(-_correlation(*(part[kept].sum(axis=0) for part in sums)), kind="stable")
        ranks[without] = np.empty(len(order), dtype=np.int64)
        ranks[without][order] = np.arange(len(order))
    best = np.min(list(ranks.values()), axis=0)
    size = int(np.sort(best)[widest])
    used = np.flatnonzero(best < size)
    return used, {without: np.flatnonzero(rank[used] < size) for without, rank in ranks.items()}


def _first_sums(x: Matrix, y: Ints) -> tuple[float, float, Floats, Floats, Floats]:
    labels = y.astype(np.float64)
    squares = x.multiply(x) if sparse.issparse(x) else np.square(x, dtype=np.float64)

    def flat(values: Any) -> Floats:
        return np.asarray(values, dtype=np.float64).ravel()

    column, square = (flat(each.sum(axis=0, dtype=np.float64)) for each in (x, squares))
    return float(len(y)), float(labels.sum()), column, square, flat(x.T @ labels)


def _correlation(
    rows: float, label: float, column: Floats, square: Floats, with_label: Floats
) -> Floats:
    """Absolute correlations with the label up to a common factor, (columns,); constant ones 0."""
    mean = column / rows
    variance = square / rows - mean**2
    covariance = with_label / rows - mean * label / rows
    usable = variance > _CONSTANT
    return np.where(usable, np.abs(covariance) / np.sqrt(np.where(usable, variance, 1.0)), 0.0)


def _sums(x: Matrix, y: Ints, fold: Ints) -> tuple[list[_Moments], _Moments]:
    """Moments of every fold, and of all rows."""
    parts = []
    for number in range(int(fold.max()) + 1):
        chosen = np.flatnonzero(fold == number)
        width = x.shape[1]
        sums = _Moments(0.0, np.zeros(width), np.zeros((width, width)), np.zeros(width), 0.0)
        for start in range(0, len(chosen), _ROWS):
            rows = chosen[start : start + _ROWS]
            sums = sums.plus(_moments(x[rows], y[rows]))
        parts.append(sums)
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return parts, total


def _moments(x: Matrix, y: Ints) -> _Moments:
    values: Any = x.astype(np.float64)
    product = values.T @ values
    return _Moments(
        float(len(y)),
        np.asarray(values.sum(axis=0), dtype=np.float64).ravel(),
        product.toarray() if sparse.issparse(product) else product,
        np.asarray(values.T @ y.astype(np.float64), dtype=np.float64),
        float(y.sum()),
    )


def _fits(sums: _Moments, strengths: Sequence[float], columns: Ints | None = None) -> _Fits:
    """A fit for every strength, on `columns` (all with None); other columns get no weight."""
    if columns is not None:
        part = _fits(sums.of(columns), strengths)
        every = np.zeros((len(sums.column), len(strengths)))
        every[columns] = part.weights
        return part._replace(weights=every)
    mean, rate = sums.column / sums.rows, sums.label / sums.rows
    covariance = sums.product / sums.rows - np.outer(mean, mean)
    variance = np.diag(covariance)
    # A constant column has only rounding errors, and gets no weight.
    scale = np.sqrt(np.where(variance > _CONSTANT, variance, np.inf))
    target = (sums.with_label / sums.rows - mean * rate) / scale
    correlation = covariance / np.outer(scale, scale)
    weights = np.column_stack(
        [
            linalg.solve(correlation + strength * np.eye(len(mean)), target, assume_a="pos") / scale
            for strength in strengths
        ]
    )
    return _Fits(weights, rate - mean @ weights)
