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
# One base score for each pool, and one for the output features.
BASES = ("mean", "last", "end", "outputs")


class Statements(NamedTuple):
    """Training statements.

    states: (texts, pools, columns) activations of all layers; outputs: (texts, columns).
    label: (texts,) 1: false; negated: (texts,); kind, group: (texts,) codes.
    """

    states: NDArray[np.float32]
    outputs: Floats
    label: Ints
    negated: Bools
    kind: Ints
    group: Ints

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
    """base: (texts, BASES) log-odds-like scores that the pair is false; negated: (texts,) score of
    negation; distance: (texts,) from the nearest training kind; nearest: (texts,) its number."""

    base: Floats
    negated: Floats
    distance: Floats
    nearest: Ints


class Fit(NamedTuple):
    """Linear scores on reduced columns, and the Gaussians of the training kinds.

    weight: for each base, (columns,); intercept: (BASES,); polarity: (columns of the mean,), with
    polarity_intercept, (1,).
    centres: (kinds, components); whitening: (components, components).
    """

    weight: list[Floats]
    intercept: Floats
    polarity: Floats
    polarity_intercept: Floats
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
            squared.argmin(axis=1).astype(np.int64),
        )


def fit(columns: Sequence[Floats], train: Statements) -> Fit:
    """Ridge scores and kind Gaussians from reduced columns of training statements.

    The ridge probes see each statement minus the mean of its block (statements of one kind about the
    same two facts), so that what differs between kinds and facts cannot become evidence.
    """
    target: Floats = np.asarray(2.0 * train.pair_false - 1.0, dtype=np.float64)
    block = _codes(train.kind * (int(train.group.max()) + 1) + train.group)
    centred_target = target - _mean_of(target, block)
    weights, shifts = [], []
    for x in columns:
        within = x - _means(x, block)[block]
        sums = SufficientStatistics.of(within.astype(np.float32), centred_target)
        unit = float(np.trace(sums.squares)) / len(x)
        weight = sums.solve(STRENGTH * unit).weight
        scores = x @ weight
        scale = max(float(scores.std()), 1e-12)
        weights.append(weight / scale)
        shifts.append(-float(scores.mean()) / scale)
    kinds = _codes(train.kind)
    centres = _means(columns[0], kinds)
    polarity = _ridge(columns[0], train.negated)
    return Fit(
        weights,
        np.array(shifts),
        polarity[0],
        np.array([polarity[1]]),
        centres,
        _whitening(columns[0] - centres[kinds]),
    )


def _codes(values: Ints) -> Ints:
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)


def _means(x: Floats, code: Ints) -> Floats:
    """Mean of the rows of every code, (codes, columns); every code from 0 on occurs."""
    order = np.argsort(code, kind="stable")
    count = np.bincount(code)
    return np.asarray(np.add.reduceat(x[order], np.cumsum(count) - count) / count[:, None])


def _mean_of(values: Floats, code: Ints) -> Floats:
    return np.asarray((np.bincount(code, values) / np.bincount(code))[code])


def _ridge(x: Floats, positive: Bools) -> tuple[Floats, float]:
    if positive.all() or not positive.any():
        return np.zeros(x.shape[1]), 1.0 if positive.all() else -1.0
    sums = SufficientStatistics.of(
        x.astype(np.float32), np.asarray(2.0 * positive - 1.0, dtype=np.float64)
    )
    model = sums.solve(STRENGTH * float(np.trace(sums.squares)) / len(x))
    return model.weight, model.intercept


def _whitening(x: Floats) -> Floats:
    covariance = x.T @ x / len(x)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    covariance[np.diag_indices_from(covariance)] += 1e-9 * max(float(np.trace(covariance)), 1e-9)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(covariance)))
