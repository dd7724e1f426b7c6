"""Metrics of scores against labels, with cluster-bootstrap confidence intervals."""

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Bins of the calibration error, with equal numbers of texts (15 is usual).
CALIBRATION_BINS = 15
# Maximum size of a block of bootstrap weights, in numbers (64 MB).
_BLOCK = 8_000_000
# Minimum fraction of defined draws for an interval; the AUROC of a draw with one class is not
# defined.
_LEAST_DEFINED = 0.95


def auroc(labels: Ints, scores: Floats) -> float:
    """Probability that a hallucinated text scores above a true one; a tie counts half.

    Args:
        labels: (rows,) 0/1, 1 = hallucinated. scores: (rows,).
    Returns:
        AUROC, NaN without both classes.
    """
    return float(weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def weighted_auroc(labels: Ints, scores: Floats, weights: NDArray[Any]) -> Floats:
    """AUROC with midrank ties, for several weightings of the rows.

    Args:
        labels: (rows,) 0/1. scores: (rows,). weights: (draws, rows), not negative.
    Returns:
        (draws,), NaN where a class has no weight, and everywhere if a score is not finite.
    """
    if not len(labels) or not np.isfinite(scores).all():
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # First row of each group of tied scores.
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    positive = labels[order] == 1
    taken = weights[:, order].astype(np.float64, copy=False)  # (draws, rows)
    above = np.add.reduceat(taken * positive, starts, axis=1)  # (draws, distinct scores)
    below = np.add.reduceat(taken * ~positive, starts, axis=1)
    beaten = np.cumsum(below, axis=1) - 0.5 * below
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * beaten).sum(axis=1) / pairs, dtype=np.float64)


def resampled_auroc(labels: Ints, scores: Floats, code: Ints, counts: NDArray[Any]) -> Floats:
    """AUROC in resamples of groups.

    Args:
        labels, scores: (rows,). code: (rows,) group of each row.
        counts: (draws, groups) how often each group is drawn.
    Returns:
        (draws,), NaN as in `weighted_auroc`.
    """
    block = max(1, _BLOCK // max(1, len(labels)))
    parts = [
        weighted_auroc(labels, scores, counts[start : start + block, code])
        for start in range(0, len(counts), block)
    ]
    return np.concatenate(parts)


def bootstrap_auroc(
    labels: Ints, scores: Floats, cv_groups: NDArray[Any], draws: int, seed: int | list[int]
) -> Floats:
    """AUROC of several scores on the same cluster-bootstrap resamples, for paired differences.

    Args:
        labels: (rows,) 0/1. scores: (scores, rows), NaN for a score that was not computed.
        cv_groups: (rows,) groups, which are drawn with replacement. draws: number of resamples.
    Returns:
        (scores, draws), NaN with one group: its resamples are equal, and say nothing of the error.
    """
    names, code, _ = codes_of(cv_groups)
    generator = np.random.default_rng(seed)
    result = np.full((len(scores), draws), np.nan)
    if len(names) < 2:
        return result
    block = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        drawn = generator.integers(len(names), size=(count, len(names)))
        drawn += np.arange(count)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, len(names))
        weights = times[:, code]  # (draws, rows)
        for index, score in enumerate(scores):
            result[index, start : start + count] = weighted_auroc(labels, score, weights)
    return result


class Interval(NamedTuple):
    """Percentile interval; NaN if too few draws are defined."""

    low: float
    high: float


def interval(draws: Floats, confidence: float) -> Interval:
    """Percentile interval of bootstrap draws, (draws,)."""
    defined = draws[np.isfinite(draws)]
    if not len(draws) or len(defined) < _LEAST_DEFINED * len(draws):
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))


class Difference(NamedTuple):
    """Paired difference of AUROCs: percentile interval, and two-sided p by the standard error."""

    value: float
    low: float
    high: float
    p: float


def difference(
    ours: float, control: float, our_draws: Floats, control_draws: Floats, confidence: float
) -> Difference:
    """Difference between two scores on the same draws.

    The p-value assumes normal draws: a thousand draws are too few for the tail probabilities that
    Holm's correction needs.
    """
    from scipy.stats import norm

    paired = our_draws - control_draws
    value, (low, high) = ours - control, interval(paired, confidence)
    if not np.isfinite([value, low, high]).all():
        return Difference(value, low, high, float("nan"))
    spread = float(np.nanstd(paired, ddof=1))
    p = float(2 * norm.sf(abs(value) / spread)) if spread > 0 else float(value == 0)
    return Difference(value, low, high, p)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction of p-values; NaN remains NaN and is not counted."""
    corrected, worst = list(p_values), 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if np.isfinite(p))
    for rank, (p, i) in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p))
        corrected[i] = worst
    return corrected


class Decisions(NamedTuple):
    """Metrics of a probability; NaN for scores that are not probabilities."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    ece: float
    brier: float


def decisions(labels: Ints, probability: Floats) -> Decisions:
    """Metrics at the threshold 0.5, expected calibration error and Brier score.

    Precision without a positive prediction is 0, and so is F1.
    """
    if (
        not len(labels)
        or not np.isfinite(probability).all()
        or probability.min() < 0
        or probability.max() > 1
    ):
        return Decisions(*[float("nan")] * len(Decisions._fields))
    predicted, true = probability >= 0.5, labels == 1
    hits = float((predicted & true).sum())
    return Decisions(
        accuracy=float((predicted == true).mean()),
        precision=hits / max(float(predicted.sum()), 1.0),
        recall=hits / max(float(true.sum()), 1.0),
        f1=2 * hits / max(float(predicted.sum() + true.sum()), 1.0),
        ece=calibration_error(labels, probability),
        brier=float(((probability - labels) ** 2).mean()),
    )


class Selective(NamedTuple):
    """Selective prediction: reject the texts with the highest scores. NaN without both classes.

    aurc: area under the risk-coverage curve, the mean fraction of hallucinated texts among those
        that are not rejected (Geifman and El-Yaniv 2017).
    prr, prr_half: prediction rejection ratio (Malinin and Gales 2021), the gain over chance
        relative to an oracle, over all coverages and over coverages of at least a half; 1 = oracle,
        0 = chance.
    """

    aurc: float
    prr: float
    prr_half: float


def selective(labels: Ints, scores: Floats) -> Selective:
    """Metrics of selective prediction; among equal scores, risk is spread evenly."""
    if len(set(labels.tolist())) < 2 or not np.isfinite(scores).all():
        return Selective(*[float("nan")] * len(Selective._fields))
    ordered = _over_ties(labels, scores)[np.argsort(scores, kind="stable")]
    best = np.sort(labels).astype(np.float64)
    coverage = np.arange(1, len(labels) + 1)
    risk, oracle = np.cumsum(ordered) / coverage, np.cumsum(best) / coverage
    chance, half = float(labels.mean()), len(labels) // 2
    ratios = [
        (chance - risk[start:].mean()) / (chance - oracle[start:].mean())
        for start in (0, max(0, half - 1))
    ]
    return Selective(float(risk.mean()), float(ratios[0]), float(ratios[1]))


def _over_ties(values: NDArray[Any], scores: Floats) -> Floats:
    """Each row's mean value over the rows with its score, (rows,), so that no order counts."""
    _, tie, size = np.unique(scores, return_inverse=True, return_counts=True)
    return np.asarray((np.bincount(tie, weights=values) / size)[tie], dtype=np.float64)


def calibration_error(labels: Ints, probability: Floats) -> float:
    """Expected calibration error over bins of equal mass."""
    bins = reliability(labels, probability)
    return sum(part.n * abs(part.predicted - part.observed) for part in bins) / len(labels)


class Bin(NamedTuple):
    """A bin of the reliability diagram."""

    n: int  # texts
    predicted: float  # mean probability
    observed: float  # fraction of hallucinated texts


def reliability(labels: Ints, probability: Floats, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Bins of equal mass by probability; at most one bin per text.

    Texts of equal probability may be in several bins: their hallucinated fraction is the same in
    each, so that the order of the texts changes nothing.
    """
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    observed = _over_ties(labels, probability)
    return [
        Bin(len(part), float(probability[part].mean()), float(observed[part].mean()))
        for part in parts
    ]


def risk_curve(labels: Ints, scores: Floats) -> tuple[Floats, Floats]:
    """Coverage and risk, each (rows,), with the most confident texts first.

    The score may have any scale. Texts above its (1 - prevalence) quantile are predicted as
    hallucinated. Confidence is the distance of a text's rank from this threshold, relative to the
    range on its side. Tied scores have midranks; among equally confident texts, risk is spread
    evenly.

    Returns:
        Coverage: fraction of texts with a prediction. Risk: fraction of wrong predictions among
            them.
    """
    from scipy.stats import rankdata

    rank = (rankdata(scores) - 0.5) / len(scores)
    threshold = 1 - float(labels.mean())
    predicted = rank > threshold
    confidence = np.where(
        predicted,
        (rank - threshold) / max(1 - threshold, 1e-12),
        (threshold - rank) / max(threshold, 1e-12),
    )
    wrong = _over_ties(predicted != (labels == 1), confidence)
    wrong = wrong[np.argsort(-confidence, kind="stable")]
    count = np.arange(1, len(labels) + 1)
    return count / len(labels), np.cumsum(wrong) / count


def average_precision(labels: Ints, scores: Floats) -> float:
    """Average precision: the area under the precision-recall curve.

    Returns:
        NaN without both classes, or if a score is not finite.
    """
    from sklearn.metrics import average_precision_score

    if len(set(labels.tolist())) < 2 or not np.isfinite(scores).all():
        return float("nan")
    return float(average_precision_score(labels, scores))


class Codes(NamedTuple):
    """Integer codes of the rows' values."""

    names: NDArray[np.object_]  # (names,) distinct values as text, ascending
    code: NDArray[np.int64]  # (rows,) index into `names`
    size: NDArray[np.int64]  # (names,) number of rows


def codes_of(values: Iterable[Any]) -> Codes:
    """Codes of the values as text, in the order of np.unique.

    np.unique itself pads all text to the longest value: with one name of 100,000 characters, 8,000
    rows take 3.2 GB.
    """
    texts = np.fromiter((str(value) for value in values), dtype=object)
    code, names = pd.factorize(texts, sort=True)
    return Codes(
        np.asarray(names, dtype=object),
        code.astype(np.int64),
        np.bincount(code, minlength=len(names)),
    )


def stream(seed: int, name: str) -> list[int]:
    """Seed of a data set's random numbers, independent of the other data sets in the run."""
    return [seed, zlib.crc32(name.encode())]
