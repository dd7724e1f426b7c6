"""Compare two models on the same texts: AUROC differences with a paired bootstrap over groups."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Floats

# One row per pair of models, scope and score: the model's AUROC minus the reference's, on their
# shared texts.
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
    """A run to compare: its out-of-fold scores and its texts.

    scores: columns dataset, mode, id, group, label, score, value; texts: columns dataset, id, text,
    each text with its context.
    """

    scores: pd.DataFrame
    texts: pd.DataFrame


class _Pair(NamedTuple):
    """AUROCs of reference and model in one scope, with bootstrap AUROCs on the same resamples."""

    n: int
    groups: int
    share: float
    auroc: tuple[float, float]
    draws: tuple[Floats, Floats]


def differences(
    runs: Mapping[str, RunScores], controls: Sequence[str], settings: EvaluationSettings, seed: int
) -> pd.DataFrame:
    """Compare each pair of models on their shared given texts, for each score in registry.SHOWN.

    A text is shared if data set, id, context, text and label are the same. Generated answers differ between
    models and are never paired. The means are unweighted, over shared data sets that are no positive
    control: one over texts without remarks, one over texts after remarks. Holm's correction is over
    the data sets of one pair and score.

    Args:
        runs: by model; controls: names of the positive controls.
    Returns:
        Columns COLUMNS; share: fraction of the reference's texts that are shared. A difference is
        established if its interval excludes 0, p_holm is below 1 - confidence, and there are enough
        groups.
    """
    rows: list[dict[str, Any]] = []
    for reference, model in combinations(runs, 2):
        joined = _shared(runs[reference], runs[model])
        misled = set(joined.loc[joined["score"] == registry.AGREEMENT, "dataset"])
        for shown in registry.SHOWN:
            pairs = _by_dataset(joined[joined["score"] == shown.name], settings.bootstrap, seed)
            free = [name for name in pairs if name not in controls]
            for pool, names in (
                (registry.ALL_GIVEN, [name for name in free if name not in misled]),
                (registry.ALL_MISLED, [name for name in free if name in misled]),
            ):
                if len(names) > 1:
                    pairs[pool] = _mean([pairs[name] for name in names])
            head = {"reference": reference, "model": model, "score": shown.name}
            rows += _verdicts(
                [
                    {**head, "dataset": name, **_compared(pair, settings.confidence)}
                    for name, pair in pairs.items()
                ],
                settings,
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shared(reference: RunScores, model: RunScores) -> pd.DataFrame:
    """Shared texts with the columns value and value_model.

    `of`: number of the reference's texts in the data set.
    """
    keys = ["dataset", "id", "score", "label", "text"]
    first, second = (
        each.scores[each.scores["mode"] == "given"].merge(
            each.texts, on=["dataset", "id"], validate="many_to_one"
        )
        for each in (reference, model)
    )
    first = first.assign(of=first.groupby(["dataset", "score"])["id"].transform("size"))
    return first.merge(
        second[[*keys, "value"]], on=keys, suffixes=("", "_model"), validate="one_to_one"
    )


def _by_dataset(joined: pd.DataFrame, draws: int, seed: int) -> dict[str, _Pair]:
    pairs = {}
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
            pairs[str(name)] = _Pair(
                len(part), len(set(cv_groups)), share, (first, second), (drawn[0], drawn[1])
            )
    return pairs


def _mean(members: Sequence[_Pair]) -> _Pair:
    """Unweighted mean over data sets, each resampled separately."""
    first, second = (float(np.mean([pair.auroc[side] for pair in members])) for side in (0, 1))
    drawn = [np.mean([pair.draws[side] for pair in members], axis=0) for side in (0, 1)]
    n, groups = sum(pair.n for pair in members), sum(pair.groups for pair in members)
    share = n / sum(pair.n / pair.share for pair in members)
    return _Pair(n, groups, share, (first, second), (drawn[0], drawn[1]))


def _compared(pair: _Pair, confidence: float) -> dict[str, Any]:
    gain = statistics.difference(
        pair.auroc[1], pair.auroc[0], pair.draws[1], pair.draws[0], confidence
    )
    return {
        "n": pair.n,
        "groups": pair.groups,
        "share": pair.share,
        "auroc_reference": pair.auroc[0],
        "auroc_model": pair.auroc[1],
        "difference": gain.value,
        "difference_low": gain.low,
        "difference_high": gain.high,
        "p": gain.p,
    }


def _verdicts(rows: list[dict[str, Any]], settings: EvaluationSettings) -> list[dict[str, Any]]:
    for row, corrected in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        reason = ""
        if np.isnan(row["difference_low"]):
            single = registry.too_few_groups(1, settings.minimum_groups)
            reason = single if row["groups"] == 1 else registry.NO_INTERVAL
        elif not row["difference_low"] > 0 and not row["difference_high"] < 0:
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
