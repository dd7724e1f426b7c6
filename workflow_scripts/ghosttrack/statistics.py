"""Metrics of scores against labels, with intervals that know that texts come in groups."""

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Bins of the calibration error, each with the same number of texts (the field's usual 15).
CALIBRATION_BINS = 15
# Bootstrap weights are held in blocks of about this many numbers (64 MB).
_BLOCK = 8_000_000
# An interval needs nearly all of its draws; a draw without one of the classes has no AUROC.
_LEAST_DEFINED = 0.95


def auroc(labels: Ints, scores: Floats) -> float:
    """Chance that a hallucinated text scores above a true one, ties counting half; NaN without both classes."""
    return float(weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def weighted_auroc(labels: Ints, scores: Floats, weights: NDArray[Any]) -> Floats:
    """AUROC with midrank ties under several weightings of the rows at once.

    Args:
        labels: (rows,) 0/1; scores: (rows,) finite; weights: (draws, rows), not negative.
    Returns:
        (draws,), NaN where a class has no weight.
    """
    if not len(labels) or not np.isfinite(scores).all():
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(
        np.concatenate([[True], ranked[1:] != ranked[:-1]])
    )  # first row of each tie
    positive = labels[order] == 1
    taken = weights[:, order].astype(np.float64, copy=False)  # (draws, rows)
    above = np.add.reduceat(taken * positive, starts, axis=1)  # (draws, distinct scores)
    below = np.add.reduceat(taken * ~positive, starts, axis=1)
    beaten = np.cumsum(below, axis=1) - 0.5 * below
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * beaten).sum(axis=1) / pairs, dtype=np.float64)


def bootstrap_auroc(
    labels: Ints, scores: Floats, units: NDArray[Any], draws: int, seed: int | list[int]
) -> Floats:
    """AUROC of every signal on the same resamples of whole units, so that differences are paired.

    Args:
        labels: (rows,); scores: (signals, rows), a row of NaN for a signal that was not run;
        units: (rows,) what is drawn with replacement; draws: number of resamples.
    Returns:
        (signals, draws).
    """
    names, code, _ = codes_of(units)
    generator = np.random.default_rng(seed)
    result = np.full((len(scores), draws), np.nan)
    block = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        drawn = generator.integers(len(names), size=(count, len(names)))
        drawn += np.arange(count)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, len(names))
        weights = times[:, code]  # (draws, rows)
        for signal, score in enumerate(scores):
            result[signal, start : start + count] = weighted_auroc(labels, score, weights)
    return result


class Interval(NamedTuple):
    """Percentile interval; NaN when too few draws are defined."""

    low: float
    high: float


def interval(draws: Floats, confidence: float) -> Interval:
    """Percentile interval of bootstrap draws, (draws,)."""
    kept = draws[np.isfinite(draws)]
    if not len(draws) or len(kept) < _LEAST_DEFINED * len(draws):
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(float(low), float(high))


class Difference(NamedTuple):
    """A paired difference of AUROCs: interval from the draws, two-sided p from their standard error."""

    value: float
    low: float
    high: float
    p: float


def difference(
    ours: float, control: float, our_draws: Floats, control_draws: Floats, confidence: float
) -> Difference:
    """Compare two signals on the same draws.

    The p-value takes the draws as normal: a thousand draws cannot count as far into the tail as Holm's correction asks.
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
    """Holm's step-down correction; NaN stays NaN and is not counted."""
    corrected, worst = list(p_values), 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if np.isfinite(p))
    for rank, (p, i) in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p))
        corrected[i] = worst
    return corrected


class Decisions(NamedTuple):
    """What a probability is worth when acted on; NaN for scores that are no probabilities."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    ece: float
    brier: float


def decisions(labels: Ints, probability: Floats) -> Decisions:
    """Threshold at .5; expected calibration error over bins of equal mass; Brier score.

    A precision without any prediction, or an F1 of nothing, is 0.
    """
    if (
        not len(labels)
        or not np.isfinite(probability).all()
        or probability.min() < 0
        or probability.max() > 1
    ):
        return Decisions(*[float("nan")] * len(Decisions._fields))
    said, true = probability >= 0.5, labels == 1
    hits = float((said & true).sum())
    return Decisions(
        accuracy=float((said == true).mean()),
        precision=hits / max(float(said.sum()), 1.0),
        recall=hits / max(float(true.sum()), 1.0),
        f1=2 * hits / max(float(said.sum() + true.sum()), 1.0),
        ece=calibration_error(labels, probability),
        brier=float(((probability - labels) ** 2).mean()),
    )


class Selective(NamedTuple):
    """What it is worth to leave the likeliest hallucinations unanswered, for any score; NaN without both classes.

    aurc: mean share of hallucinated texts among those kept, over all coverages (Geifman and El-Yaniv 2017).
    prr, prr_half: how much of an oracle's gain over chance it reaches, when all or up to half of the texts are left
    out (prediction rejection ratio, Malinin and Gales 2021); 1 = the oracle, 0 = chance.
    """

    aurc: float
    prr: float
    prr_half: float


def selective(labels: Ints, scores: Floats) -> Selective:
    """Risk over coverage; texts with equal scores are kept and left out in equal shares."""
    if len(set(labels.tolist())) < 2 or not np.isfinite(scores).all():
        return Selective(*[float("nan")] * len(Selective._fields))
    _, tie, size = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(tie, weights=labels) / size  # hallucinated share of each distinct score
    kept, best = np.repeat(share, size), np.sort(labels).astype(np.float64)
    coverage = np.arange(1, len(labels) + 1)
    risk, oracle = np.cumsum(kept) / coverage, np.cumsum(best) / coverage
    chance, half = float(labels.mean()), len(labels) // 2
    ratios = [
        (chance - risk[start:].mean()) / (chance - oracle[start:].mean())
        for start in (0, max(0, half - 1))
    ]
    return Selective(float(risk.mean()), float(ratios[0]), float(ratios[1]))


def calibration_error(labels: Ints, probability: Floats) -> float:
    """Expected calibration error over bins of equal mass."""
    bins = reliability(labels, probability)
    return sum(each.n * abs(each.predicted - each.observed) for each in bins) / len(labels)


class Bin(NamedTuple):
    """A bin of the reliability plot: texts, mean probability, share of hallucinated texts."""

    n: int
    predicted: float
    observed: float


def reliability(labels: Ints, probability: Floats, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Bins of equal mass in order of probability; fewer when there are fewer texts."""
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return [
        Bin(len(part), float(probability[part].mean()), float(labels[part].mean()))
        for part in parts
    ]


def risk_curve(labels: Ints, scores: Floats) -> tuple[Floats, Floats]:
    """Coverage and risk, each (rows,): share of texts decided, surest first, and the share of these that are decided wrongly.

    Any score will do: texts above its (1 - prevalence) quantile are called hallucinated, and the further a text's rank lies
    from this cut, as a share of its side, the surer it is. Ties have midranks; equally sure ones keep their order.
    """
    from scipy.stats import rankdata

    rank = (rankdata(scores) - 0.5) / len(scores)
    cut = 1 - float(labels.mean())
    said = rank > cut
    sure = np.where(said, (rank - cut) / max(1 - cut, 1e-12), (cut - rank) / max(cut, 1e-12))
    wrong = (said != (labels == 1))[np.argsort(-sure, kind="stable")]
    count = np.arange(1, len(labels) + 1)
    return count / len(labels), np.cumsum(wrong) / count


def average_precision(labels: Ints, scores: Floats) -> float:
    """Area under the precision-recall curve as average precision; NaN without both classes or with NaN scores."""
    from sklearn.metrics import average_precision_score

    if len(set(labels.tolist())) < 2 or not np.isfinite(scores).all():
        return float("nan")
    return float(average_precision_score(labels, scores))


class Codes(NamedTuple):
    """Distinct names in ascending order, and what each row holds.

    names: (names,) text. code: (rows,) place in `names`. size: (names,) rows of each.
    """

    names: NDArray[np.object_]
    code: NDArray[np.int64]
    size: NDArray[np.int64]


def codes_of(values: Iterable[Any]) -> Codes:
    """Codes of the values as text, in the order of np.unique.

    np.unique pads text to the longest: one name of 100,000 characters among 8,000 rows takes 3.2 GB.
    """
    texts = np.fromiter((str(value) for value in values), dtype=object)
    code, names = pd.factorize(texts, sort=True)
    return Codes(
        np.asarray(names, dtype=object),
        code.astype(np.int64),
        np.bincount(code, minlength=len(names)),
    )


def stream(seed: int, name: str) -> list[int]:
    """Seed of one data set's random numbers: other data sets come and go without changing it."""
    return [seed, zlib.crc32(name.encode())]
