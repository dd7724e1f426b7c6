"""Detector of false statements: linear scores of the whole statement, its polarity, and a distance.

Fitted on statements of several kinds (`facts.statement_kinds`). The scores predict whether the stated
pair belongs together, because negation turns the label around and not this. A probe of the polarity
turns it back:

    log-odds of "hallucinated" = stack of the scores . (1 - 2 P(negated))
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection import probes
from ghosttrack.detection.pooled import SufficientStatistics, ridge
from ghosttrack.detection.probes import Floats, Ints

Bools = NDArray[np.bool_]
# Principal components per pool, and the ridge strength in units of the mean squared norm of a row. The
# mean AUROC on left-out kinds was .648 with 192 and 3, .657 with 384 and 10 (SmolLM2-135M).
COMPONENTS = 384
# Fewer statements for a component make every new kind look far away.
ROWS_PER_COMPONENT = 6
STRENGTH = 10.0
# Strength of the shrinkage of the within-kind covariance toward its diagonal, in the distance.
_SHRINKAGE = 0.1
# Score of negation if all training statements have one polarity.
_ONE_POLARITY = 3.0
# One base score for each pool, and one for the output features.
BASES = ("mean", "last", "end", "outputs")


class Statements(NamedTuple):
    """Training statements by sentence.

    states: (texts, pools, columns) activations of all layers; outputs: (texts, columns).
    label: (texts,) 1: false; negated: (texts,); kind, facts, group: (texts,) codes of the kind, of
    what the facts are about, and of the block of facts; text: (texts,) codes, equal for sentences of
    one text.
    """

    states: NDArray[np.float32]
    outputs: Floats
    label: Ints
    negated: Bools
    kind: Ints
    facts: Ints
    group: Ints
    text: Ints

    @property
    def pair_false(self) -> Ints:
        """(texts,) 1: the stated pair does not belong together."""
        return np.where(self.negated, 1 - self.label, self.label)

    def rows(self, rows: Bools) -> "Statements":
        """The statements of some rows."""
        return Statements._make(values[rows] for values in self)


class Reduction(NamedTuple):
    """Standardised states of each pool on their principal components; standardised outputs.

    mean, scale: (pools, columns); basis: (pools, columns, components).
    """

    mean: Floats
    scale: Floats
    basis: NDArray[np.float32]
    output_mean: Floats
    output_scale: Floats

    def apply(self, states: NDArray[np.float32], outputs: Floats) -> list[Floats]:
        """Columns of every base score, in the order of BASES: each (texts, columns)."""
        reduced = [
            np.asarray((states[:, pool] - mean) / scale @ basis, dtype=np.float64)
            for pool, (mean, scale, basis) in enumerate(
                zip(
                    self.mean.astype(np.float32),
                    self.scale.astype(np.float32),
                    self.basis,
                    strict=True,
                )
            )
        ]
        return [*reduced, (outputs - self.output_mean) / self.output_scale]


def reduce(train: Statements) -> Reduction:
    """Principal components of the training statements; labels are not read."""
    from sklearn.utils.extmath import randomized_svd

    means, scales, bases = [], [], []
    components = min(
        COMPONENTS, max(len(train.label) // ROWS_PER_COMPONENT, 1), train.states.shape[2]
    )
    for pool in range(train.states.shape[1]):
        x = train.states[:, pool]
        standard = probes.standardise(x)
        z = ((x - standard.mean) / standard.scale).astype(np.float32)
        _, _, right = randomized_svd(z, components, n_iter=1, random_state=0)
        means.append(standard.mean)
        scales.append(standard.scale)
        bases.append(right.T.astype(np.float32))
    standard = probes.standardise(train.outputs)
    return Reduction(
        np.stack(means), np.stack(scales), np.stack(bases), standard.mean, standard.scale
    )


class Scores(NamedTuple):
    """base: (texts, BASES) scores that the pair is false, of deviation 1; negated: (texts,) score of
    negation, fitted to -1 and 1; distance: (texts,) from the nearest training kind; nearest:
    (texts,) its code."""

    base: Floats
    negated: Floats
    distance: Floats
    nearest: Ints

    @property
    def polarity(self) -> Floats:
        """(texts,) 1: affirmed, so that a false pair is hallucinated; -1: negated."""
        return np.asarray(1 - 2 * probes.probability(self.negated))

    @property
    def certainty(self) -> Floats:
        """(texts,) above 0: hallucinated. Near 0 if the scores differ or the polarity is unclear."""
        return np.asarray(self.base.mean(axis=1) * self.polarity)


class Fit(NamedTuple):
    """Linear scores on reduced columns, and the Gaussians of the training kinds.

    weight: for each base, (columns,); intercept: (BASES,); polarity: (columns of the mean,), with
    polarity_intercept, (1,).
    kinds: (kinds,) codes; centres: (kinds, components); whitening: (components, components).
    """

    weight: list[Floats]
    intercept: Floats
    polarity: Floats
    polarity_intercept: Floats
    kinds: Ints
    centres: Floats
    whitening: Floats

    def apply(self, columns: Sequence[Floats]) -> Scores:
        """Scores of texts from their reduced columns."""
        base = np.stack(
            [
                x @ weight + shift
                for x, weight, shift in zip(columns, self.weight, self.intercept, strict=True)
            ],
            axis=1,
        )
        white = columns[0] @ self.whitening  # (texts, components)
        centres = self.centres @ self.whitening
        squared = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T + (centres**2).sum(axis=1)
        return Scores(
            base,
            columns[0] @ self.polarity + self.polarity_intercept[0],
            np.sqrt(np.maximum(squared.min(axis=1), 0) / self.whitening.shape[1]),
            self.kinds[squared.argmin(axis=1)],
        )


class Parts(NamedTuple):
    """Sums over training statements by part: statements of one kind about one kind of facts.

    kind, facts, rows: (parts,) codes, and the number of statements.
    For each base, sums: (parts, columns); scatter: (parts, columns, columns) products of the columns
    minus their means; pair: (parts, columns) products with the label of the pair minus its mean in
    the block.
    polarity: (parts,) sums of the polarities, -1 or 1; with_polarity: (parts, columns of the mean).
    """

    kind: Ints
    facts: Ints
    rows: Ints
    sums: list[Floats]
    scatter: list[Floats]
    pair: list[Floats]
    polarity: Floats
    with_polarity: Floats


def parts(columns: Sequence[Floats], train: Statements) -> Parts:
    """Sums of every kind and kind of facts, from reduced columns of training statements.

    Labels count within blocks (statements of one kind about the same two facts), so that what
    differs between kinds and facts cannot become evidence.
    """
    target: Floats = np.asarray(2.0 * train.pair_false - 1.0, dtype=np.float64)
    polarity: Floats = np.asarray(2.0 * train.negated - 1.0, dtype=np.float64)
    both = np.column_stack([train.kind, train.facts])
    names, part = np.unique(both, axis=0, return_inverse=True)
    held = [np.flatnonzero(part.ravel() == number) for number in range(len(names))]
    pair = np.concatenate([_without_means(target[rows], train.group[rows]) for rows in held])
    order = np.concatenate(held)
    starts = np.cumsum([0, *map(len, held[:-1])])
    sums = [np.empty((len(held), x.shape[1])) for x in columns]
    scatter = [np.empty((len(held), x.shape[1], x.shape[1])) for x in columns]
    with_polarity = np.empty_like(sums[0])
    for base, x in enumerate(columns):
        for number, rows in enumerate(held):
            one = SufficientStatistics.of(x[rows].astype(np.float32), polarity[rows])
            sums[base][number], scatter[base][number] = one.columns, one.scatter
            if base == 0:
                with_polarity[number] = one.products
    return Parts(
        names[:, 0],
        names[:, 1],
        np.array([len(rows) for rows in held]),
        sums,
        scatter,
        [np.add.reduceat(x[order] * pair[:, None], starts) for x in columns],
        np.add.reduceat(polarity[order], starts),
        with_polarity,
    )


def fits(given: Parts, chosen: Bools) -> Iterator[Fit]:
    """Linear discriminants and kind Gaussians of several fits, each from its chosen parts.

    The covariance is that within parts, so it holds what differs between blocks: a direction in
    which facts differ much is no evidence, even if it separates the training facts.

    Args:
        chosen: (fits, parts).
    """
    share = chosen.astype(np.float64)
    rows = share @ given.rows
    weights, shifts = [], []
    # The first base comes last: its scatter also serves polarity and distance.
    for base in reversed(range(len(BASES))):
        scatter = np.tensordot(share, given.scatter[base], 1)  # (fits, columns, columns)
        found = [
            _unit_weight(*values)
            for values in zip(scatter, share @ given.pair[base], rows, strict=True)
        ]
        weights.append(found)
        shifts.append(-((share @ given.sums[base]) * found).sum(axis=1) / rows)
    for number, used in enumerate(chosen):
        yield Fit(
            [of_base[number] for of_base in reversed(weights)],
            np.array([of_base[number] for of_base in reversed(shifts)]),
            *_polarity_and_kinds(given, used, scatter[number]),
        )


def fit(given: Parts) -> Fit:
    """The fit from all parts."""
    return next(fits(given, np.ones((1, len(given.rows)), dtype=np.bool_)))


def _unit_weight(scatter: Floats, pair: Floats, rows: float) -> Floats:
    """Discriminant with scores of deviation 1 within parts, (columns,)."""
    weight = ridge(scatter, pair, STRENGTH * float(np.trace(scatter)) / rows)
    deviation = float(np.sqrt(max(float(weight @ scatter @ weight), 0.0) / rows))
    return np.asarray(weight / max(deviation, 1e-12))


def _polarity_and_kinds(
    given: Parts, used: Bools, scatter: Floats
) -> tuple[Floats, Floats, Ints, Floats, Floats]:
    """Fields of a fit after the intercept.

    Args:
        used: (parts,); scatter: (columns, columns) of the first base, summed over these parts.
    """
    rows, kind, sums = given.rows[used], given.kind[used], given.sums[0][used]
    total, column, target = rows.sum(), sums.sum(axis=0), float(given.polarity[used].sum())
    squares = scatter + _squares_of_means(sums, rows)
    if abs(target) == total:  # one polarity alone
        polarity, shift = np.zeros(len(column)), _ONE_POLARITY * target / total
    else:
        products = given.with_polarity[used].sum(axis=0)
        first = SufficientStatistics(int(total), column, squares, target, products)
        polarity, shift = first.solve(STRENGTH * float(np.trace(squares)) / total)
    kinds, code = np.unique(kind, return_inverse=True)
    member = (code == np.arange(len(kinds))[:, None]).astype(np.float64)  # (kinds, parts)
    kind_sums, kind_rows = member @ sums, member @ rows
    return (
        polarity,
        np.array([shift]),
        kinds,
        kind_sums / kind_rows[:, None],
        _whitening((squares - _squares_of_means(kind_sums, kind_rows)) / total),
    )


def _squares_of_means(sums: Floats, rows: NDArray[Any]) -> Floats:
    """Products of group means, weighted by the groups' rows: (groups, columns) -> (columns, columns)."""
    return np.asarray(sums.T @ (sums / rows[:, None]))


def _without_means(values: Floats, group: Ints) -> Floats:
    """The values minus the mean of their group, (rows,)."""
    code = np.unique(group, return_inverse=True)[1]
    return np.asarray(values - (np.bincount(code, values) / np.bincount(code))[code])


def _whitening(covariance: Floats) -> Floats:
    """Columns times it have the unit covariance, after shrinkage: (columns, columns)."""
    from scipy.linalg import solve_triangular

    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    covariance[np.diag_indices_from(covariance)] += 1e-9 * max(float(np.trace(covariance)), 1e-9)
    # cholesky(C)^-T: its product with its transpose is C^-1, at a fraction of the cost of inv(C).
    lower = np.linalg.cholesky(covariance)
    return np.asarray(solve_triangular(lower, np.eye(len(lower)), lower=True, check_finite=False).T)
