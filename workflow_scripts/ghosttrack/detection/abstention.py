"""When a verdict on a statement counts as reliable, learned from statements that are foreign to a fit.

Every kind of training statement about every kind of facts is a group. A group is judged by a fit
without its kind and without its facts, as foreign to it as the statements of a user. A verdict needs
a certainty at which a further group has too many errors in at most one of ten cases. Groups, not
statements, are the units, because the statements of a group are wrong together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection.probes import Floats, Ints
from ghosttrack.detection.statement_model import Scores

Bools = NDArray[np.bool_]
# Stated confidences that have a threshold.
CONFIDENCES = np.round(np.arange(0.5, 1.0, 0.01), 2)
# Share of further groups whose error is at most 1 - confidence.
LEVEL = 0.9
# A threshold needs so many decided statements, and decided statements in so many groups.
LEAST_DECIDED, LEAST_GROUPS = 30, 5
# Share of the statements of left-out groups that are nearer than the limit for "unlike".
NEAR = 0.99
# Largest correlation of errors in a group: beyond it, the beta distribution is numerically unstable.
_LARGEST_CORRELATION = 0.97


class Abstention(NamedTuple):
    """Probability of a right verdict, and thresholds of the certainty.

    right: slope on the absolute certainty, and intercept, of the log-odds that the verdict is right.
    thresholds: (CONFIDENCES,) least absolute certainty at every stated confidence; infinite: never.
    farthest: (1,) largest distance of a statement that is like a tested one.
    """

    right: Floats
    thresholds: Floats
    farthest: Floats

    def select(self, scores: Scores) -> Floats:
        """Log-odds that the verdict is right, (texts,)."""
        return np.asarray(self.right[0] * np.abs(scores.certainty) + self.right[1])

    def reliability(self, scores: Scores) -> Floats:
        """Largest stated confidence at which each text is decided, (texts,); 0: never."""
        decided = np.abs(scores.certainty)[:, None] >= self.thresholds
        last = decided.shape[1] - 1 - np.argmax(decided[:, ::-1], axis=1)
        reached = np.where(decided.any(axis=1), CONFIDENCES[last], 0.0)
        return np.where(self.unlike(scores), 0.0, reached)

    def unlike(self, scores: Scores) -> Bools:
        """Whether texts are farther from every training kind than the tested ones were, (texts,)."""
        return np.asarray(scores.distance > self.farthest[0])


def fit(scores: Scores, label: Ints, group: Ints) -> Abstention:
    """Fit on the scores of left-out groups.

    Args:
        scores: of every statement, from a fit without its kind and its facts.
        label, group: (texts,).
    """
    farthest = np.array([float(np.quantile(scores.distance, NEAR))])
    right = (scores.certainty > 0) == (label == 1)
    certainty = np.abs(scores.certainty)
    near = scores.distance <= farthest[0]
    return Abstention(
        _logistic(certainty, right, group_weights(group)),
        thresholds(np.where(near, certainty, -np.inf), right, group),
        farthest,
    )


def group_weights(group: Ints) -> Floats:
    """Weights that give every group the same total, (texts,); their mean is 1."""
    names, code, count = np.unique(group, return_inverse=True, return_counts=True)
    return np.asarray(len(group) / len(names) / count[code])


def thresholds(certainty: Floats, right: Bools, group: Ints) -> Floats:
    """Least certainty for every confidence, so that the error of a further group stays below.

    The bound (`error_bound`) holds at the threshold and at no less than 90 % of the stricter ones,
    so that no lucky threshold is taken. A certainty of minus infinity is never decided.

    Args:
        certainty, right, group: (texts,).
    """
    _, code = np.unique(group, return_inverse=True)
    order = np.argsort(-certainty, kind="stable")
    order = order[np.isfinite(certainty[order])]
    result = np.full(len(CONFIDENCES), np.inf)
    if not len(order):
        return result
    # Decided and wrong verdicts of every group among the first n statements, (statements, groups).
    member = np.zeros((len(order), int(code.max()) + 1))
    member[np.arange(len(order)), code[order]] = 1
    decided = np.cumsum(member, axis=0)
    bound = error_bound(np.cumsum(member * ~right[order][:, None], axis=0), decided)
    allowed = (np.arange(1, len(order) + 1) >= LEAST_DECIDED) & (
        (decided > 0).sum(axis=1) >= min(LEAST_GROUPS, member.shape[1])
    )
    # Equal certainties are decided together.
    allowed[:-1] &= np.diff(certainty[order]) < 0
    for number, confidence in enumerate(CONFIDENCES):
        holds = bound <= 1 - confidence
        share = np.cumsum(holds & allowed) / np.maximum(np.cumsum(allowed), 1)
        fits = np.flatnonzero(holds & allowed & (share >= 0.9))
        if len(fits):
            result[number] = certainty[order[fits[-1]]]
    # A higher confidence is never easier to reach.
    return np.maximum.accumulate(result)


def error_bound(wrong: Floats, decided: Floats) -> Floats:
    """Error that a further group exceeds with a probability of 1 - LEVEL, or the pooled one.

    Errors of groups are beta distributed; their mean and the correlation of errors in a group are
    estimated by moments, with weights that follow from the correlation (Kleinman 1973). What is not
    known about the mean widens the distribution.

    Args:
        wrong, decided: (cases, groups) numbers of verdicts; every case has a decided one.
    Returns:
        (cases,)
    """
    from scipy.stats import beta

    total, groups = decided.sum(axis=1), (decided > 0).sum(axis=1)
    errors = wrong / np.maximum(decided, 1)
    # Half an error in one more verdict (Jeffreys), so that no error is certain to be 0.
    mean = (wrong.sum(axis=1) + 0.5) / (total + 1)
    spread = (decided * (errors - mean[:, None]) ** 2).sum(axis=1) / (mean * (1 - mean))
    pairs = total - (decided**2).sum(axis=1) / total - (groups - 1)
    # One group alone tells nothing about the others.
    correlation = np.where(pairs > 0, (spread - (groups - 1)) / np.maximum(pairs, 1e-9), 1.0)
    correlation = np.clip(correlation, 0, _LARGEST_CORRELATION)
    weights = decided / (1 + correlation[:, None] * np.maximum(decided - 1, 0))
    size = weights.sum(axis=1) + 1
    mean = ((weights * errors).sum(axis=1) + 0.5) / size
    correlation = np.minimum(correlation + 1 / size, _LARGEST_CORRELATION)
    strength = (1 - correlation) / correlation
    quantile = beta.ppf(LEVEL, mean * strength, (1 - mean) * strength)
    return np.asarray(np.maximum(wrong.sum(axis=1) / total, quantile))


def _logistic(certainty: Floats, right: Bools, weight: Floats) -> Floats:
    """Slope, at least 0, and intercept of the log-odds of a right verdict."""
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return np.array([0.0, 3.0 if right.all() else -3.0])
    model = LogisticRegression(C=1.0, solver="newton-cholesky", max_iter=200)
    model.fit(certainty[:, None], right, sample_weight=weight)
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        mean = float(np.average(right, weights=weight))
        return np.array([0.0, np.log(mean / (1 - mean))])
    return np.array([slope, float(model.intercept_[0])])
