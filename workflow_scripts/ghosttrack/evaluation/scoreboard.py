"""From scores to tables: what each signal reached on each data set and pooled, with draws for every comparison."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import controls
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Decisions, Floats, Ints, Selective

# Names of the pooled rows in the column `dataset`.
ALL_STRICT, GENERATED = "all_strict", "generated"
# Points of a drawn curve: more than a figure can show.
_POINTS = 200


class Standing(NamedTuple):
    """What all signals reached in one scope: a data set, or several pooled.

    auroc: by signal, NaN when it was not run; draws: bootstrap AUROCs by signal, (draws,), on the same resamples;
    rows: the lines of metrics.csv; control: a positive control; members: the standings behind a pooled one;
    labels: (n,) and scores: by signal, (n,), of a single data set.
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
    members: tuple["Standing", ...] = ()
    labels: Ints = np.empty(0, dtype=np.int64)
    scores: Mapping[str, Floats] = {}

    def has(self, signal: str) -> bool:
        """Whether the signal was run here and has an AUROC."""
        return bool(np.isfinite(self.auroc.get(signal, float("nan"))))


def of_dataset(
    scores: pd.DataFrame, control: bool, settings: EvaluationSettings, seed: int
) -> Standing:
    """Evaluate every signal of one data set.

    Args:
        scores: the long table of one data set, the same examples in the same order for each signal.
    """
    dataset, mode = str(scores["dataset"].iloc[0]), str(scores["mode"].iloc[0])
    parts = {str(signal): part for signal, part in scores.groupby("signal", sort=False)}
    first = next(iter(parts.values()))
    labels, units = first["label"].to_numpy(dtype=np.int64), first["group"].to_numpy(dtype=object)
    matrix = np.array([part["score"].to_numpy(dtype=np.float64) for part in parts.values()])
    draws = statistics.bootstrap_auroc(
        labels, matrix, units, settings.bootstrap, statistics.stream(seed, dataset)
    )
    standing = Standing(
        dataset,
        mode,
        len(labels),
        len(set(units)),
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
        standing.rows.append(
            _row(
                standing,
                name,
                str(part["family"].iloc[0]),
                labels,
                score,
                reason,
                settings.confidence,
            )
        )
    return standing


def _row(
    where: Standing,
    signal: str,
    family: str,
    labels: Ints,
    score: Floats,
    reason: str,
    confidence: float,
) -> dict[str, Any]:
    if signal in controls.UNTRAINED:  # a rank, not a probability
        decided = Decisions(*[float("nan")] * len(Decisions._fields))
    else:
        decided = statistics.decisions(labels, score)
    low, high = statistics.interval(where.draws[signal], confidence)
    return {
        **_head(where, signal, family),
        "auroc": where.auroc[signal],
        "auroc_low": low,
        "auroc_high": high,
        "auprc": statistics.average_precision(labels, score),
        **decided._asdict(),
        **statistics.selective(labels, score)._asdict(),
        "reason": reason,
    }


def _head(where: Standing, signal: str, family: str) -> dict[str, Any]:
    return {
        "dataset": where.name,
        "mode": where.mode,
        "signal": signal,
        "family": family,
        "n": where.n,
        "groups": where.groups,
        "prevalence": where.prevalence,
    }


def pool(name: str, members: Sequence[Standing], confidence: float) -> Standing:
    """Mean over data sets: each counts the same, each is resampled within itself.

    A signal that was not run on one of them has no pooled value. Scores of different data sets are never ranked
    against each other; a probability means the same everywhere, so its calibration error is that of all texts together.
    """
    signals = list(dict.fromkeys(signal for member in members for signal in member.auroc))
    shared = [signal for signal in signals if all(signal in member.auroc for member in members)]
    n, groups = sum(member.n for member in members), sum(member.groups for member in members)
    prevalence = sum(member.prevalence * member.n for member in members) / n
    pooled = Standing(
        name,
        members[0].mode,
        n,
        groups,
        prevalence,
        False,
        {signal: float(np.mean([member.auroc[signal] for member in members])) for signal in shared},
        {
            signal: np.mean([member.draws[signal] for member in members], axis=0)
            for signal in shared
        },
        [],
        tuple(members),
    )
    for signal in shared:
        rows = [next(row for row in member.rows if row["signal"] == signal) for member in members]
        low, high = statistics.interval(pooled.draws[signal], confidence)
        kinds = ("auprc", *Decisions._fields, *Selective._fields)
        means = {key: float(np.mean([row[key] for row in rows])) for key in kinds}
        if np.isfinite(means["ece"]):
            labels = np.concatenate([member.labels for member in members])
            means["ece"] = statistics.calibration_error(
                labels, np.concatenate([member.scores[signal] for member in members])
            )
        pooled.rows.append(
            {
                **_head(pooled, signal, rows[0]["family"]),
                "auroc": pooled.auroc[signal],
                "auroc_low": low,
                "auroc_high": high,
                **means,
                "reason": f"mean over {len(members)} data sets",
            }
        )
    return pooled


def pools(standings: Sequence[Standing], confidence: float) -> list[Standing]:
    """The pooled standings: strict given data sets, and generated ones. Positive controls and sets too small to train on stay out."""
    run = [each for each in standings if not each.control and each.has(registry.DETECTOR)]
    kinds = ((ALL_STRICT, "given"), (GENERATED, "generated"))
    members = {name: [each for each in run if each.mode == mode] for name, mode in kinds}
    return [pool(name, found, confidence) for name, found in members.items() if found]


def metrics_table(standings: Sequence[Standing]) -> pd.DataFrame:
    """metrics.csv: one row per scope and signal."""
    return pd.DataFrame(
        [row for each in standings for row in each.rows],
        columns=[*registry.METRICS, *Selective._fields, "reason"],
    )


def calibration_table(scores: pd.DataFrame) -> pd.DataFrame:
    """calibration.csv: reliability of every trained signal on every data set."""
    rows = [
        {**head, "bin": number, **each._asdict()}
        for head, labels, score in _usable(scores)
        if head["signal"] not in controls.UNTRAINED
        for number, each in enumerate(statistics.reliability(labels, score))
    ]
    return pd.DataFrame(rows, columns=list(registry.CALIBRATION))


def curves_table(scores: pd.DataFrame) -> pd.DataFrame:
    """curves.csv: points of the ROC, precision-recall and risk curves of the signals that figures show."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    shown = {each.signal for each in registry.SHOWN}
    rows: list[pd.DataFrame] = []
    for head, labels, score in _usable(scores):
        if head["signal"] not in shown or len(set(labels.tolist())) < 2:
            continue
        x, y, _ = roc_curve(labels, score)
        precision, recall, _ = precision_recall_curve(labels, score, drop_intermediate=True)
        coverage, risk = statistics.risk_curve(labels, score)
        for curve, a, b in (("roc", x, y), ("pr", recall, precision), ("risk", coverage, risk)):
            kept = np.unique(np.linspace(0, len(a) - 1, min(_POINTS, len(a))).round().astype(int))
            rows.append(pd.DataFrame({**head, "curve": curve, "x": a[kept], "y": b[kept]}))
    return (
        pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(registry.CURVES))
    )


def _usable(scores: pd.DataFrame) -> list[tuple[Mapping[str, Any], Ints, Floats]]:
    found: list[tuple[Mapping[str, Any], Ints, Floats]] = []
    for (dataset, mode, signal), part in scores.groupby(["dataset", "mode", "signal"], sort=False):
        score = part["score"].to_numpy(dtype=np.float64)
        if np.isfinite(score).all():
            head = {"dataset": str(dataset), "mode": str(mode), "signal": str(signal)}
            found.append((head, part["label"].to_numpy(dtype=np.int64), score))
    return found
