"""Two models on the same texts: differences of AUROCs in which both share every draw of groups."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Floats

# One row per pair of models, scope and signal: the model's AUROC minus the reference's, both on the shared texts alone.
COLUMNS = (
    "reference",
    "model",
    "dataset",
    "score",
    "n",
    "groups",
    "share",
    "auroc_reference",
    "auroc_model",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "verdict",
    "reason",
)


class RunScores(NamedTuple):
    """One model's out-of-fold scores (dataset, mode, id, group, label, signal, score), and the text of each (dataset, id, text)."""

    scores: pd.DataFrame
    texts: pd.DataFrame


class _Pair(NamedTuple):
    """Both models' AUROCs in one scope, and their draws on the same resamples."""

    n: int
    groups: int
    share: float
    auroc: tuple[float, float]
    draws: tuple[Floats, Floats]


def differences(
    runs: Mapping[str, RunScores], controls: Sequence[str], settings: EvaluationSettings, seed: int
) -> pd.DataFrame:
    """Compare every later model with every earlier one, signal by signal, on the given texts that both have.

    A text is shared if data set, id, text and label are the same. Generated answers are each model's own and are never paired. The mean
    is over shared sets that are no positive control; each counts the same, as in metrics.csv. Holm's correction is over the
    data sets of one pair and signal.

    Returns:
        COLUMNS; `share`: of the reference's texts, those that are shared. Established: the interval excludes 0, p_holm is
        below 1 - confidence, and there are enough groups.
    """
    rows: list[dict[str, Any]] = []
    for reference, model in combinations(runs, 2):
        joined = _shared(runs[reference], runs[model])
        for shown in registry.SHOWN:
            found = _by_dataset(joined[joined["score"] == shown.name], settings.bootstrap, seed)
            members = [pair for name, pair in found.items() if name not in controls]
            if len(members) > 1:
                found[registry.ALL_GIVEN] = _mean(members)
            head = {"reference": reference, "model": model, "score": shown.name}
            rows += _verdicts(
                [
                    {**head, "dataset": name, **_compared(pair, settings.confidence)}
                    for name, pair in found.items()
                ],
                settings,
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shared(reference: RunScores, model: RunScores) -> pd.DataFrame:
    """Rows that both have, value and value_model side by side; `of`: texts of the reference in the data set."""
    keys = ["dataset", "id", "score", "label", "text"]
    own, other = (
        each.scores[each.scores["mode"] == "given"].merge(
            each.texts, on=["dataset", "id"], validate="many_to_one"
        )
        for each in (reference, model)
    )
    own = own.assign(of=own.groupby(["dataset", "score"])["id"].transform("size"))
    return own.merge(
        other[[*keys, "value"]], on=keys, suffixes=("", "_model"), validate="one_to_one"
    )


def _by_dataset(joined: pd.DataFrame, draws: int, seed: int) -> dict[str, _Pair]:
    found = {}
    for name, part in joined.groupby("dataset", sort=False):
        labels, cv_groups = (
            part["label"].to_numpy(dtype=np.int64),
            part["group"].to_numpy(dtype=object),
        )
        scores = part[["value", "value_model"]].to_numpy(dtype=np.float64).T
        drawn = statistics.bootstrap_auroc(
            labels, scores, cv_groups, draws, statistics.stream(seed, str(name))
        )
        first, second = (statistics.auroc(labels, score) for score in scores)
        if np.isfinite([first, second]).all():
            share = len(part) / int(part["of"].iloc[0])
            found[str(name)] = _Pair(
                len(part), len(set(cv_groups)), share, (first, second), (drawn[0], drawn[1])
            )
    return found


def _mean(members: Sequence[_Pair]) -> _Pair:
    """Every data set counts the same, and is drawn within itself."""
    first, second = (float(np.mean([each.auroc[side] for each in members])) for side in (0, 1))
    drawn = [np.mean([each.draws[side] for each in members], axis=0) for side in (0, 1)]
    n, groups = sum(each.n for each in members), sum(each.groups for each in members)
    share = n / sum(each.n / each.share for each in members)
    return _Pair(n, groups, share, (first, second), (drawn[0], drawn[1]))


def _compared(pair: _Pair, confidence: float) -> dict[str, Any]:
    found = statistics.difference(
        pair.auroc[1], pair.auroc[0], pair.draws[1], pair.draws[0], confidence
    )
    return {
        "n": pair.n,
        "groups": pair.groups,
        "share": pair.share,
        "auroc_reference": pair.auroc[0],
        "auroc_model": pair.auroc[1],
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "p": found.p,
    }


def _verdicts(rows: list[dict[str, Any]], settings: EvaluationSettings) -> list[dict[str, Any]]:
    for row, corrected in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        reason = ""
        if not row["difference_low"] > 0 and not row["difference_high"] < 0:
            reason = "the interval of the difference covers 0"
        elif not corrected < 1 - settings.confidence:
            reason = "not after correction for the number of data sets"
        elif row["groups"] < settings.minimum_groups:
            reason = f"fewer than {settings.minimum_groups} groups"
        row |= {
            "p_holm": corrected,
            "verdict": registry.NOT_ESTABLISHED if reason else registry.ESTABLISHED,
            "reason": reason,
        }
    return rows
