"""Evaluate every score on each data set and pooled, with bootstrap draws for paired comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import controls
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Decisions, Floats, Ints, Selective

# Maximum number of points of a curve in curves.csv.
_POINTS = 200


class ScopeResult(NamedTuple):
    """Results of all scores in one scope: a data set, a relation, or several pooled.

    control: whether it is a positive control; auroc: by score, NaN if it was not computed; draws:
    bootstrap AUROCs by score, (draws,), all on the same resamples; rows: rows of metrics.csv;
    members: results that a pooled scope averages; labels: (n,) and scores: by score, (n,), only of
    a single data set.
    """

    name: str
    mode: str
    n: int
    groups: int
    prevalence: float
    control: bool
    auroc: dict[str, float]
    draws: dict[str, Floats]
    rows: list[dict[str, Any]]
    members: tuple["ScopeResult", ...] = ()
    labels: Ints = np.empty(0, dtype=np.int64)
    scores: Mapping[str, Floats] = {}

    @property
    def misled(self) -> bool:
        """Whether the texts follow remarks."""
        return registry.AGREEMENT in self.auroc

    def has(self, score_name: str) -> bool:
        """Whether the score has an AUROC in this scope."""
        return bool(np.isfinite(self.auroc.get(score_name, float("nan"))))


def of_dataset(
    scores: pd.DataFrame, control: bool, settings: EvaluationSettings, seed: int
) -> ScopeResult:
    """Evaluate every score of one data set.

    Args:
        scores: long table of one data set, with the same examples in the same order for each score.
        control: whether the data set is a positive control.
    """
    dataset, mode = str(scores["dataset"].iloc[0]), str(scores["mode"].iloc[0])
    parts = {str(score_name): part for score_name, part in scores.groupby("score", sort=False)}
    first = next(iter(parts.values()))
    labels, cv_groups = (
        first["label"].to_numpy(dtype=np.int64),
        first["group"].to_numpy(dtype=object),
    )
    matrix = np.array([part["value"].to_numpy(dtype=np.float64) for part in parts.values()])
    draws = statistics.bootstrap_auroc(
        labels, matrix, cv_groups, settings.bootstrap, statistics.stream(seed, dataset)
    )
    result = ScopeResult(
        dataset,
        mode,
        len(labels),
        len(set(cv_groups)),
        float(labels.mean()),
        control,
        {name: statistics.auroc(labels, score) for name, score in zip(parts, matrix, strict=True)},
        dict(zip(parts, draws, strict=True)),
        [],
        (),
        labels,
        dict(zip(parts, matrix, strict=True)),
    )
    for name, score in zip(parts, matrix, strict=True):
        part = parts[name]
        reason = str(part["reason"].iloc[0])
        result.rows.append(
            _row(
                result,
                name,
                str(part["family"].iloc[0]),
                labels,
                score,
                reason,
                settings.confidence,
            )
        )
    return result


def _row(
    scope: ScopeResult,
    score_name: str,
    family: str,
    labels: Ints,
    score: Floats,
    reason: str,
    confidence: float,
) -> dict[str, Any]:
    if not _is_probability(score_name):  # so it has no threshold metrics
        decided = Decisions(*[float("nan")] * len(Decisions._fields))
    else:
        decided = statistics.decisions(labels, score)
    low, high = statistics.interval(scope.draws[score_name], confidence)
    return {
        **_head(scope, score_name, family),
        "auroc": scope.auroc[score_name],
        "auroc_low": low,
        "auroc_high": high,
        "auprc": statistics.average_precision(labels, score),
        **decided._asdict(),
        **statistics.selective(labels, score)._asdict(),
        "reason": reason,
    }


def _is_probability(score_name: str) -> bool:
    return score_name not in controls.UNTRAINED and not registry.is_external(score_name)


def _head(scope: ScopeResult, score_name: str, family: str) -> dict[str, Any]:
    return {
        "dataset": scope.name,
        "mode": scope.mode,
        "score": score_name,
        "family": family,
        "n": scope.n,
        "groups": scope.groups,
        "prevalence": scope.prevalence,
    }


def pool(name: str, members: Sequence[ScopeResult], confidence: float) -> ScopeResult:
    """Unweighted mean of the metrics over data sets, each resampled separately.

    A score that one data set lacks has no pooled row. Texts of different data sets are never ranked
    together; only the calibration error is computed on the texts of all data sets together.
    """
    score_names = list(
        dict.fromkeys(score_name for member in members for score_name in member.auroc)
    )
    shared = [
        score_name
        for score_name in score_names
        if all(score_name in member.auroc for member in members)
    ]
    n, groups = sum(member.n for member in members), sum(member.groups for member in members)
    prevalence = sum(member.prevalence * member.n for member in members) / n
    pooled = ScopeResult(
        name,
        members[0].mode,
        n,
        groups,
        prevalence,
        any(member.control for member in members),
        {
            score_name: float(np.mean([member.auroc[score_name] for member in members]))
            for score_name in shared
        },
        {
            score_name: np.mean([member.draws[score_name] for member in members], axis=0)
            for score_name in shared
        },
        [],
        tuple(members),
    )
    for score_name in shared:
        rows = [
            next(row for row in member.rows if row["score"] == score_name) for member in members
        ]
        low, high = statistics.interval(pooled.draws[score_name], confidence)
        kinds = ("auprc", *Decisions._fields, *Selective._fields)
        means = {key: float(np.mean([row[key] for row in rows])) for key in kinds}
        if np.isfinite(means["ece"]):
            labels = np.concatenate([member.labels for member in members])
            means["ece"] = statistics.calibration_error(
                labels, np.concatenate([member.scores[score_name] for member in members])
            )
        pooled.rows.append(
            {
                **_head(pooled, score_name, rows[0]["family"]),
                "auroc": pooled.auroc[score_name],
                "auroc_low": low,
                "auroc_high": high,
                **means,
                "reason": f"mean over {len(members)} data sets",
            }
        )
    return pooled


def pools(scope_results: Sequence[ScopeResult], confidence: float) -> list[ScopeResult]:
    """Pooled results of given texts, generated answers and given texts after remarks.

    Positive controls and generated answers after remarks are in no pool.
    """
    trained = [each for each in scope_results if not each.control and each.has(registry.DETECTOR)]
    kinds = (
        (registry.ALL_GIVEN, "given", False),
        (registry.ALL_GENERATED, "generated", False),
        (registry.ALL_MISLED, "given", True),
    )
    members = {
        name: [each for each in trained if each.mode == mode and each.misled == misled]
        for name, mode, misled in kinds
    }
    return [pool(name, parts, confidence) for name, parts in members.items() if parts]


def metrics_table(scope_results: Sequence[ScopeResult]) -> pd.DataFrame:
    """metrics.csv: one row per scope and score."""
    return pd.DataFrame(
        [row for each in scope_results for row in each.rows],
        columns=[*registry.METRICS, *Selective._fields, "reason"],
    )


def calibration_table(scores: pd.DataFrame) -> pd.DataFrame:
    """calibration.csv: reliability of every trained score on every data set."""
    rows = [
        {**head, "bin": number, **each._asdict()}
        for head, labels, score in _usable(scores)
        if _is_probability(head["score"])
        for number, each in enumerate(statistics.reliability(labels, score))
    ]
    return pd.DataFrame(rows, columns=list(registry.CALIBRATION))


def curves_table(scores: pd.DataFrame) -> pd.DataFrame:
    """curves.csv: ROC, precision-recall and risk-coverage curves of registry.SHOWN."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    shown = {each.name for each in registry.SHOWN}
    rows: list[pd.DataFrame] = []
    for head, labels, score in _usable(scores):
        if head["score"] not in shown or len(set(labels.tolist())) < 2:
            continue
        x, y, _ = roc_curve(labels, score)
        precision, recall, _ = precision_recall_curve(labels, score, drop_intermediate=True)
        coverage, risk = statistics.risk_curve(labels, score)
        for curve, a, b in (("roc", x, y), ("pr", recall, precision), ("risk", coverage, risk)):
            points = np.unique(np.linspace(0, len(a) - 1, min(_POINTS, len(a))).round().astype(int))
            rows.append(pd.DataFrame({**head, "curve": curve, "x": a[points], "y": b[points]}))
    return (
        pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(registry.CURVES))
    )


def _usable(scores: pd.DataFrame) -> list[tuple[Mapping[str, Any], Ints, Floats]]:
    usable: list[tuple[Mapping[str, Any], Ints, Floats]] = []
    for (dataset, mode, score_name), part in scores.groupby(
        ["dataset", "mode", "score"], sort=False
    ):
        score = part["value"].to_numpy(dtype=np.float64)
        if np.isfinite(score).all():
            head = {"dataset": str(dataset), "mode": str(mode), "score": str(score_name)}
            usable.append((head, part["label"].to_numpy(dtype=np.int64), score))
    return usable
