"""When a verdict on a statement counts as reliable, learned from kinds that the detector has not seen.

Every training kind is left out once. On its statements the detector is right or wrong; a selection
model learns to tell the two cases apart from the detector's confidence, the disagreement of its base
scores, its certainty of the polarity, and the distance from the training kinds. Thresholds are then
set by the error on whole left-out kinds, because statements of one kind are wrong together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection.probes import Floats, Ints, probability
from ghosttrack.detection.statement_model import Scores

Bools = NDArray[np.bool_]
FEATURES = ("confidence", "agreement", "polarity", "nearness")
# Stated confidences that have a threshold.
CONFIDENCES = np.round(np.arange(0.5, 1.0, 0.01), 2)
# Standard errors over kinds (one-sided 90 %) by which the error of left-out kinds stays below
# 1 - confidence.
MARGIN = 1.28
# A threshold needs decided statements in this many kinds, and this many statements.
LEAST_KINDS, LEAST_DECIDED = 5, 30
# Statements by which the error of a kind is drawn to that of all kinds: few verdicts say little.
SMOOTHING = 4.0
# It also needs this share of all statements: a threshold that only a few reach is not tested.
LEAST_SHARE = 0.02
# Share of the statements of left-out kinds that are nearer than the limit for "unlike".
NEAR = 0.99
# Inverse strengths of the regularisation of the small logistic regressions.
_STACK, _SELECTION = 0.1, 0.1


class Combined(NamedTuple):
    """log_odds: (texts,) of "hallucinated"; features: (texts, FEATURES)."""

    log_odds: Floats
    features: Floats


class Abstention(NamedTuple):
    """Stack of the base scores, selection model, and thresholds.

    stack: (bases,) weights; stack_intercept; polarity: slope and intercept of the log-odds of
    negation; scale: slope of the log-odds.
    selection: (FEATURES,), in standardised units of `mean` and `deviation`, and its intercept.
    thresholds: (CONFIDENCES,) least selection score at every stated confidence; infinite: never.
    farthest: largest distance of a statement that is like a tested one.
    """

    stack: Floats
    stack_intercept: Floats
    polarity: Floats
    selection: Floats
    selection_intercept: Floats
    mean: Floats
    deviation: Floats
    thresholds: Floats
    farthest: Floats

    def combine(self, scores: Scores) -> Combined:
        """Log-odds and selection features of texts."""
        parts = scores.base * self.stack
        pair = parts.sum(axis=1) + self.stack_intercept[0]
        sign = 1 - 2 * probability(self.polarity[0] * scores.negated + self.polarity[1])
        log_odds = pair * sign
        # Mean sign of the parts against that of their sum, weighted by their size.
        size = np.maximum(np.abs(parts).sum(axis=1), 1e-12)
        features = np.column_stack(
            [
                np.abs(log_odds),
                np.abs(parts.sum(axis=1)) / size,
                np.abs(sign),
                -np.minimum(scores.distance, 2 * self.farthest[0]),
            ]
        )
        return Combined(log_odds, features)

    def select(self, features: Floats) -> Floats:
        """Selection score, (texts,): log-odds that the verdict is right."""
        return np.asarray(
            (features - self.mean) / self.deviation @ self.selection + self.selection_intercept[0]
        )

    def reliability(self, scores: Scores) -> Floats:
        """Largest stated confidence at which each text is decided, (texts,); 0: never."""
        selected = self.select(self.combine(scores).features)
        decided = selected[:, None] >= self.thresholds
        last = decided.shape[1] - 1 - np.argmax(decided[:, ::-1], axis=1)
        reached = np.where(decided.any(axis=1), CONFIDENCES[last], 0.0)
        return np.where(self.unlike(scores), 0.0, reached)

    def unlike(self, scores: Scores) -> Bools:
        """Whether texts are farther from every training kind than the tested kinds were, (texts,)."""
        return np.asarray(scores.distance > self.farthest[0])


def fit(scores: Scores, label: Ints, negated: Bools, kind: Ints) -> Abstention:
    """Fit on the scores of left-out kinds.

    Args:
        scores: of every statement, from a fit without its kind.
        label, negated, kind: (texts,).
    """
    weight = kind_weights(kind)
    false = np.where(negated, 1 - label, label)
    stack, stack_shift = _logistic(scores.base, false, weight, _STACK)
    # A base score that points the wrong way on left-out kinds is not used.
    if (stack < 0).any():
        used = stack > 0
        stack = np.zeros(len(stack))
        if used.any():
            stack[used], stack_shift = _logistic(scores.base[:, used], false, weight, _STACK)
        stack = np.maximum(stack, 0)
    polarity = (
        np.concatenate(_logistic(scores.negated[:, None], negated, weight, 1.0))
        if 0 < negated.mean() < 1
        else np.array([0.0, 30.0 if negated.all() else -30.0])
    )
    farthest = np.array([float(np.quantile(scores.distance, NEAR))])
    empty = np.zeros(len(FEATURES))
    made = Abstention(
        stack,
        stack_shift,
        polarity,
        empty,
        np.zeros(1),
        empty,
        np.ones(len(FEATURES)),
        np.full(len(CONFIDENCES), np.inf),
        farthest,
    )
    combined = made.combine(scores)
    right = (combined.log_odds > 0) == (label == 1)
    mean, deviation = combined.features.mean(axis=0), combined.features.std(axis=0) + 1e-9
    made = made._replace(mean=mean, deviation=deviation)
    if right.all() or not right.any():
        made = made._replace(selection_intercept=np.array([3.0 if right.all() else -3.0]))
    else:
        standard = (combined.features - mean) / deviation
        selection, shift = _logistic(standard, right, weight, _SELECTION)
        # A feature never counts against its meaning: more confidence, more agreement, more
        # certainty of the polarity and less distance make a verdict more reliable, or nothing.
        if (selection < 0).any():
            used = selection > 0
            selection = np.zeros(len(selection))
            if used.any():
                selection[used], shift = _logistic(standard[:, used], right, weight, _SELECTION)
            selection = np.maximum(selection, 0)
        made = made._replace(selection=selection, selection_intercept=shift)
    near = ~made.unlike(scores)
    selected = np.where(near, made.select(combined.features), -np.inf)
    return made._replace(thresholds=thresholds(selected, right, kind))


def kind_weights(kind: Ints) -> Floats:
    """Weights that give every kind the same total, (texts,); their mean is 1."""
    names, code, count = np.unique(kind, return_inverse=True, return_counts=True)
    return np.asarray(len(kind) / len(names) / count[code])


def thresholds(selected: Floats, right: Bools, kind: Ints) -> Floats:
    """Least selection score for every confidence, so that the error on left-out kinds stays below.

    The error of a kind at a threshold is the share of wrong verdicts among its decided statements.
    Users judge a new kind, so kinds are the units: the bound is the mean error over the kinds, plus
    MARGIN standard errors. Kinds that are decided often and rightly thus cannot pay for others. The
    bound holds at the threshold and at no less than 90 % of the stricter ones, so that no lucky
    threshold is taken.
    """
    names, code = np.unique(kind, return_inverse=True)
    order = np.argsort(-selected, kind="stable")
    order = order[np.isfinite(selected[order])]
    result = np.full(len(CONFIDENCES), np.inf)
    if not len(order):
        return result
    # Decided and wrong verdicts of every kind among the first n statements, (statements, kinds).
    member = np.zeros((len(order), len(names)))
    member[np.arange(len(order)), code[order]] = 1
    decided = np.cumsum(member, axis=0)
    wrong = np.cumsum(member * ~right[order][:, None], axis=0)
    counts = np.arange(1, len(order) + 1)
    pooled = wrong.sum(axis=1) / counts
    reached = decided > 0
    kinds = reached.sum(axis=1)
    errors = (wrong + SMOOTHING * pooled[:, None]) / (decided + SMOOTHING)
    mean = (errors * reached).sum(axis=1) / kinds
    spread = ((errors - mean[:, None]) ** 2 * reached).sum(axis=1) / np.maximum(kinds - 1, 1)
    bound = np.maximum(pooled, mean + MARGIN * np.sqrt(spread / kinds))
    allowed = (counts >= max(LEAST_DECIDED, LEAST_SHARE * len(kind))) & (
        kinds >= min(LEAST_KINDS, len(names))
    )
    # Equal scores are decided together.
    allowed[:-1] &= np.diff(selected[order]) < 0
    for number, confidence in enumerate(CONFIDENCES):
        holds = bound <= 1 - confidence
        share = np.cumsum(holds & allowed) / np.maximum(np.cumsum(allowed), 1)
        fits = np.flatnonzero(holds & allowed & (share >= 0.9))
        if len(fits):
            result[number] = selected[order[fits[-1]]]
    # A higher confidence is never easier to reach.
    return np.maximum.accumulate(result)


def _logistic(
    x: Floats, positive: NDArray[np.generic], weight: Floats, strength: float
) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    scale = x.std(axis=0) + 1e-12
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=200)
    model.fit(x / scale, positive, sample_weight=weight)
    return model.coef_[0] / scale, np.asarray(model.intercept_, dtype=np.float64)
