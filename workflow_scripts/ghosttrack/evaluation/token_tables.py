"""Measures of token scores, and claims about them, with intervals by group.

Spans are compared as in the literature on RAGTruth (Niu et al. 2024): precision, recall and F1 over
the characters of all answers together. The score of an answer is the largest score of its tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import token_detectors as names
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Difference, Floats, Ints

# token_metrics.csv: one row per data set and score.
METRICS = (
    "dataset",
    "score",
    "family",
    "tokens",
    "answers",
    "groups",
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
    "auprc_low",
    "auprc_high",
    "span_precision",
    "span_recall",
    "span_f1",
    "span_f1_low",
    "span_f1_high",
    "answer_prevalence",
    "answer_auroc",
    "answer_auroc_low",
    "answer_auroc_high",
)
# token_claims.csv: one row per data set and claim; `measure` is token_auroc or answer_auroc.
CLAIMS = (
    "claim",
    "dataset",
    "measure",
    "ours",
    "control",
    "auroc_ours",
    "auroc_control",
    "difference",
    "difference_low",
    "difference_high",
    "p_holm",
    "groups",
    "verdict",
    "reason",
)
TOKEN, ANSWER = "token_auroc", "answer_auroc"
# Bins of equal numbers of tokens for the interval of AUPRC.
_BINS = 4000
# Columns of the pairs of groups that are in memory at once.
_COLUMNS = 512
# Above this number of pairs of groups per token, the tokens themselves are resampled, which is then
# faster.
_PAIRS = 250
_CLAIMS = (
    ("the token detector beats its best single control", names.DETECTOR, TOKEN),
    ("activations add to all token controls together", names.DETECTOR, TOKEN),
    ("the token probe on raw activations beats the best single control", names.RAW, TOKEN),
    ("the token probe on SAE features beats the best single control", names.SAE, TOKEN),
    ("the token probe on SAE features beats that on raw activations", names.SAE, TOKEN),
    ("the token detector beats its best single control on answers", names.DETECTOR, ANSWER),
    ("activations add to all token controls together on answers", names.DETECTOR, ANSWER),
)


class _Resamples(NamedTuple):
    """Groups drawn with replacement: code of each token's group, and counts (draws, groups)."""

    code: Ints
    counts: NDArray[np.float64]


class _Measured(NamedTuple):
    """AUROC with its draws, by measure and score."""

    auroc: dict[tuple[str, str], float]
    draws: dict[tuple[str, str], Floats]


def tables(
    scores: pd.DataFrame,
    choices: pd.DataFrame,
    settings: EvaluationSettings,
    seed: int,
    *,
    control: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """token_metrics.csv and token_claims.csv of one data set.

    Args:
        scores: span_scores.parquet. choices: span_choices.csv, both of the data set.
        control: whether it is a positive control, which supports no claim.
    """
    dataset = str(scores["dataset"].iloc[0])
    known = [name for name in (*names.CONTROLS, *names.OURS) if name in scores]
    drawn = _resample(scores["group"].to_numpy(), settings.bootstrap, dataset, seed)
    answers = scores.groupby("id", sort=False).agg(
        group=("group", "first"), label=("label", "max"), **{name: (name, "max") for name in known}
    )
    first = ~scores["id"].duplicated().to_numpy()
    of_answer = _Resamples(drawn.code[first], drawn.counts)
    y, answer_y = (table["label"].to_numpy(dtype=np.int64) for table in (scores, answers))
    measured = _Measured({}, {})
    rows = []
    for name in known:
        values = scores[name].to_numpy(dtype=np.float64)
        by_answer = answers[name].to_numpy(dtype=np.float64)
        for measure, labels, found, resamples in (
            (TOKEN, y, values, drawn),
            (ANSWER, answer_y, by_answer, of_answer),
        ):
            measured.auroc[measure, name] = statistics.auroc(labels, found)
            measured.draws[measure, name] = auroc_draws(labels, found, *resamples)
        rows.append(
            {
                "dataset": dataset,
                "score": name,
                "family": _family(name),
                "tokens": len(scores),
                "answers": len(answers),
                "groups": drawn.counts.shape[1],
                "prevalence": float(y.mean()),
                "answer_prevalence": float(answer_y.mean()),
                **_with_interval("auroc", measured, TOKEN, name, settings.confidence),
                **_with_interval("answer_auroc", measured, ANSWER, name, settings.confidence),
                **_auprc(y, values, drawn, settings.confidence),
                **_spans(scores, values, _thresholds(choices, name), drawn, settings.confidence),
            }
        )
    return (
        pd.DataFrame(rows, columns=list(METRICS)),
        _claims(dataset, known, measured, drawn.counts.shape[1], settings, control),
    )


def _family(name: str) -> str:
    if name in names.TEXT_CONTROLS:
        return "text"
    if name in names.OUTPUT_CONTROLS:
        return "output"
    if name == names.LOOKBACK:
        return "attention"
    return "control" if name in names.CONTROLS else "ours"


def _resample(groups: NDArray[Any], draws: int, dataset: str, seed: int) -> _Resamples:
    found = statistics.codes_of(groups)
    count = len(found.names)
    generator = np.random.default_rng(statistics.stream(seed, dataset))
    drawn = generator.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)
    return _Resamples(found.code, counts.astype(np.float64))


def auroc_draws(labels: Ints, scores: Floats, code: Ints, counts: NDArray[Any]) -> Floats:
    """AUROC in resamples of groups, from the number of ordered pairs of every two groups.

    With many small groups, the tokens are resampled instead; the AUROC is the same.

    Args:
        labels, scores: (rows,). code: (rows,) group of each row.
        counts: (draws, groups) how often each group is drawn.
    Returns:
        (draws,), NaN without both classes.
    """
    groups = counts.shape[1]
    if not np.isfinite(scores).all():
        return np.full(len(counts), np.nan)
    if groups**2 > _PAIRS * len(labels):
        return statistics.resampled_auroc(labels, scores, code, counts)
    positive = labels == 1
    above, owner = scores[positive], code[positive]
    order = np.argsort(code[~positive], kind="stable")
    values = scores[~positive][order]
    edges = np.searchsorted(code[~positive][order], np.arange(groups + 1))
    pairs = np.zeros(len(counts))
    for start in range(0, groups, _COLUMNS):
        columns = range(start, min(start + _COLUMNS, groups))
        wins = np.zeros((groups, len(columns)))
        for column, group in enumerate(columns):
            below = np.sort(values[edges[group] : edges[group + 1]])
            if len(below):
                beaten = np.searchsorted(below, above, "left")
                beaten += np.searchsorted(below, above, "right")
                wins[:, column] = np.bincount(owner, beaten / 2, minlength=groups)
        pairs += ((counts @ wins) * counts[:, columns.start : columns.stop]).sum(axis=1)
    positives, negatives = (
        counts @ np.bincount(code[labels == label], minlength=groups) for label in (1, 0)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(pairs / (positives * negatives), dtype=np.float64)


def _with_interval(
    column: str, measured: _Measured, measure: str, name: str, confidence: float
) -> dict[str, float]:
    low, high = statistics.interval(measured.draws[measure, name], confidence)
    return {column: measured.auroc[measure, name], f"{column}_low": low, f"{column}_high": high}


def _auprc(labels: Ints, scores: Floats, drawn: _Resamples, confidence: float) -> dict[str, float]:
    """Average precision; its interval is computed with scores in bins of equal mass."""
    value = statistics.average_precision(labels, scores)
    if not np.isfinite(value):
        return {"auprc": value}
    # Equal scores have one place: their order says nothing.
    order = rankdata(-scores, method="max").astype(np.int64) - 1
    width = min(_BINS, len(scores))
    place = order * width // len(scores)
    shape = (width, drawn.counts.shape[1])
    found, all_tokens = (
        (sparse.csr_array((weights, (place, drawn.code)), shape=shape) @ drawn.counts.T).T
        for weights in (labels.astype(np.float64), np.ones(len(labels)))
    )  # (draws, bins)
    total = np.cumsum(all_tokens, axis=1)
    precision = np.cumsum(found, axis=1) / np.maximum(total, 1)
    with np.errstate(invalid="ignore"):
        draws = (precision * found).sum(axis=1) / found.sum(axis=1)
    low, high = statistics.interval(draws, confidence)
    return {"auprc": value, "auprc_low": low, "auprc_high": high}


def _thresholds(choices: pd.DataFrame, name: str) -> dict[int, float]:
    part = choices[choices["score"] == name]
    return dict(zip(part["fold"].astype(int), part["threshold"].astype(float), strict=True))


def _spans(
    scores: pd.DataFrame,
    values: Floats,
    thresholds: dict[int, float],
    drawn: _Resamples,
    confidence: float,
) -> dict[str, float]:
    """Precision, recall and F1 of characters at the thresholds of the training folds."""
    limit = np.array([thresholds[int(fold)] for fold in scores["fold"]])
    chosen = values >= limit
    groups = drawn.counts.shape[1]
    hits, predicted, marked = (
        np.bincount(drawn.code, numbers, minlength=groups)
        for numbers in (
            scores["marked"].to_numpy() * chosen,
            scores["characters"].to_numpy() * chosen,
            scores["marked"].to_numpy(),
        )
    )

    def f1(weights: NDArray[Any]) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(
                2 * (weights @ hits) / (weights @ predicted + weights @ marked), dtype=np.float64
            )

    low, high = statistics.interval(f1(drawn.counts), confidence)
    return {
        "span_precision": float(hits.sum() / max(predicted.sum(), 1)),
        "span_recall": float(hits.sum() / max(marked.sum(), 1)),
        "span_f1": float(f1(np.ones(groups))),
        "span_f1_low": low,
        "span_f1_high": high,
    }


def _claims(
    dataset: str,
    known: Sequence[str],
    measured: _Measured,
    groups: int,
    settings: EvaluationSettings,
    control: bool,
) -> pd.DataFrame:
    """The claims of `_CLAIMS`, with Holm's correction over them."""
    single = [name for name in known if name in names.CONTROLS and name != names.ALL_CONTROLS]
    rows: list[dict[str, Any]] = []
    for claim, ours, measure in _CLAIMS if set(names.OURS) <= set(known) else ():
        against = (
            names.ALL_CONTROLS
            if claim.startswith("activations")
            else names.RAW
            if claim.endswith("raw activations") and ours == names.SAE
            else max(single, key=lambda name: np.nan_to_num(measured.auroc[measure, name]))
        )
        gain = statistics.difference(
            measured.auroc[measure, ours],
            measured.auroc[measure, against],
            measured.draws[measure, ours],
            measured.draws[measure, against],
            settings.confidence,
        )
        rows.append(
            {
                "claim": claim,
                "dataset": dataset,
                "measure": measure,
                "ours": ours,
                "control": against,
                "auroc_ours": measured.auroc[measure, ours],
                "auroc_control": measured.auroc[measure, against],
                "difference": gain.value,
                "difference_low": gain.low,
                "difference_high": gain.high,
                "groups": groups,
                "gain": gain,
                "explained": _not_beaten(
                    ours,
                    measure,
                    [name for name in known if name in names.LEAKS],
                    measured,
                    settings,
                ),
                "single": _not_beaten(ours, measure, single, measured, settings),
                "chance": not statistics.interval(
                    measured.draws[measure, ours], settings.confidence
                ).low
                > 0.5,
            }
        )
    corrected = statistics.holm([row["gain"].p for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = p
        row["verdict"], row["reason"] = _verdict(
            row.pop("gain"),
            p,
            row.pop("explained"),
            row.pop("single"),
            row.pop("chance"),
            groups,
            settings,
            control,
        )
    return pd.DataFrame(rows, columns=list(CLAIMS))


def _not_beaten(
    ours: str,
    measure: str,
    controls: Sequence[str],
    measured: _Measured,
    settings: EvaluationSettings,
) -> str:
    """The best of the controls above chance that a score does not beat, or ""."""
    for name in sorted(controls, key=lambda name: -measured.auroc[measure, name]):
        draws = measured.draws[measure, name]
        gain = statistics.difference(
            measured.auroc[measure, ours],
            measured.auroc[measure, name],
            measured.draws[measure, ours],
            draws,
            settings.confidence,
        )
        if statistics.interval(draws, settings.confidence).low > 0.5 and not gain.low > 0:
            return name
    return ""


def _verdict(
    gain: Difference,
    p: float,
    explained: str,
    single: str,
    chance: bool,
    groups: int,
    settings: EvaluationSettings,
    control: bool,
) -> tuple[str, str]:
    if not np.isfinite([gain.value, gain.low]).all():
        return registry.NOT_ESTABLISHED, "the scores have no AUROC"
    if explained:
        return (
            registry.ARTEFACT,
            f"{explained} reads neither model nor context and is above chance, and the score is "
            "not above it",
        )
    if control:
        return registry.NOT_ESTABLISHED, registry.POSITIVE_CONTROL
    if groups < settings.minimum_groups:
        return (
            registry.NOT_ESTABLISHED,
            f"{groups} groups, fewer than evaluation.minimum_groups = {settings.minimum_groups}",
        )
    if gain.low > 0 and chance:
        return registry.NOT_ESTABLISHED, registry.NOT_ABOVE_CHANCE
    if gain.low > 0 and single:
        return registry.NOT_ESTABLISHED, f"the score is not above {single} alone"
    if gain.low > 0 and p < 1 - settings.confidence:
        return registry.ESTABLISHED, ""
    if gain.low > 0:
        return registry.NOT_ESTABLISHED, registry.NOT_AFTER_CORRECTION
    if gain.high < 0:
        return registry.NOT_ESTABLISHED, "the control wins"
    return registry.NOT_ESTABLISHED, "the interval of the difference covers 0"
