"""Detector of false statements: linear scores of the whole statement, its polarity, and a distance.

Fitted on statements of several kinds (`facts.statement_kinds`). The scores predict whether the stated
pair belongs together, because negation turns the label around and not this. A probe of the polarity
turns it back:

    log-odds of "hallucinated" = stack of the scores . (1 - 2 P(negated))
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection import probes
from ghosttrack.detection.pooled import SufficientStatistics
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
    def certainty(self) -> Floats:
        """(texts,) above 0: hallucinated. Near 0 if the scores differ or the polarity is unclear."""
        return np.asarray(self.base.mean(axis=1) * (1 - 2 * probes.probability(self.negated)))


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


class Part(NamedTuple):
    """Sums over training statements of one kind about one kind of facts; fits add them up.

    For each base, sums: (columns,); scatter: (columns, columns) products of the columns minus their
    means; pair: (columns,) products with the label of the pair minus its mean in the block.
    polarity: statistics of the first base, with the polarity (-1, 1) as target.
    """

    kind: int
    facts: int
    sums: list[Floats]
    scatter: list[Floats]
    pair: list[Floats]
    polarity: SufficientStatistics


def parts(columns: Sequence[Floats], train: Statements) -> list[Part]:
    """Sums of every kind and kind of facts, from reduced columns of training statements.

    Labels count within blocks (statements of one kind about the same two facts), so that what
    differs between kinds and facts cannot become evidence.
    """
    target: Floats = np.asarray(2.0 * train.pair_false - 1.0, dtype=np.float64)
    polarity: Floats = np.asarray(2.0 * train.negated - 1.0, dtype=np.float64)
    result = []
    for kind, facts in np.unique(np.column_stack([train.kind, train.facts]), axis=0):
        rows = (train.kind == kind) & (train.facts == facts)
        of_pair = target[rows] - _mean_of(target[rows], _codes(train.group[rows]))
        plain = [
            SufficientStatistics.of(x[rows].astype(np.float32), polarity[rows]) for x in columns
        ]
        result.append(
            Part(
                int(kind),
                int(facts),
                [one.columns for one in plain],
                [one.scatter for one in plain],
                [np.asarray(of_pair @ x[rows]) for x in columns],
                plain[0],
            )
        )
    return result


def fit(chosen: Sequence[Part]) -> Fit:
    """Linear discriminants and kind Gaussians from the sums of the chosen parts.

    The covariance is that within parts, so it holds what differs between blocks: a direction in
    which facts differ much is no evidence, even if it separates the training facts.
    """
    first = SufficientStatistics.together([part.polarity for part in chosen])
    rows = first.rows
    weights, shifts = [], []
    for base in range(len(BASES)):
        scatter = sum((part.scatter[base] for part in chosen), np.zeros(1))
        pair = sum((part.pair[base] for part in chosen), np.zeros(1))
        ridge = SufficientStatistics(rows, np.zeros(len(pair)), scatter, 0.0, pair)
        weight = ridge.solve(STRENGTH * _unit(ridge)).weight
        scale = max(float(np.sqrt(max(float(weight @ scatter @ weight), 0.0) / rows)), 1e-12)
        weights.append(weight / scale)
        total = sum(float(part.sums[base] @ weight) for part in chosen)
        shifts.append(-total / rows / scale)
    if abs(first.target) == first.rows:  # one polarity alone
        polarity, shift = np.zeros(len(first.columns)), _ONE_POLARITY * first.target / rows
    else:
        polarity, shift = first.solve(STRENGTH * _unit(first))
    kinds = sorted({part.kind for part in chosen})
    of_kinds = [
        SufficientStatistics.together([part.polarity for part in chosen if part.kind == kind])
        for kind in kinds
    ]
    return Fit(
        weights,
        np.array(shifts),
        polarity,
        np.array([shift]),
        np.array(kinds, dtype=np.int64),
        np.stack([one.columns / one.rows for one in of_kinds]),
        _whitening(np.sum([one.scatter for one in of_kinds], axis=0) / rows),
    )


def _unit(sums: SufficientStatistics) -> float:
    """Mean squared norm of a row."""
    return float(np.trace(sums.squares)) / sums.rows


def _codes(values: Ints) -> Ints:
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)


def _mean_of(values: Floats, code: Ints) -> Floats:
    return np.asarray((np.bincount(code, values) / np.bincount(code))[code])


def _whitening(covariance: Floats) -> Floats:
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    covariance[np.diag_indices_from(covariance)] += 1e-9 * max(float(np.trace(covariance)), 1e-9)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(covariance)))
