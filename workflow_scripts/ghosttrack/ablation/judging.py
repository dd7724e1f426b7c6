"""Tables of all arms: comparison with the baseline, and choice of an arm inside training folds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.ablation.arms import BASELINE, AblationArm
from ghosttrack.ablation.scoring import digest
from ghosttrack.evaluation import scoreboard
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.settings import EvaluationSettings

# Name of the scores with settings chosen inside the training folds.
TUNED = "tuned"
COLUMNS = (
    "dataset",
    "mode",
    "detector",
    "arm",
    "against",
    "kind",
    "metrics",
    "n",
    "groups",
    "auroc",
    "auroc_low",
    "auroc_high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "output_sha256",
    "void",
)
CHOICES = ("dataset", "detector", "fold", "arm", "inner_auroc", "inner_auroc_baseline")
# Separates the arm from the detector in the names of scores.
_OF = "/"


class ArmTables(NamedTuple):
    """Scores and fits of the arms by name, see `scoring.ArmScores`."""

    scores: Mapping[str, pd.DataFrame]
    fits: Mapping[str, pd.DataFrame]


class TunedScores(NamedTuple):
    """Scores of the arms chosen in each fold, and the choices."""

    scores: pd.DataFrame  # columns as for an arm
    choices: pd.DataFrame  # one row per data set, detector and outer fold, columns CHOICES


def compare(
    arms: Mapping[str, AblationArm],
    scores: Mapping[str, pd.DataFrame],
    positive_controls: Sequence[str],
    misled: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
) -> pd.DataFrame:
    """Compare every arm with the baseline, per data set and pooled.

    The difference arm - baseline has a paired confidence interval from a bootstrap of whole groups.
    `TUNED` is also compared with every null of the tracker. p-values are Holm-corrected over the
    arms of a data set or pool and detector. An arm is void if its scores equal those it is compared
    with: it changed nothing.

    Args:
        arms: the arms named in `scores`; a name without an arm has the kind `choice`.
        positive_controls: data sets that the pools leave out.
        misled: data sets whose texts follow remarks. They have a pool of their own.

    Returns:
        Table with the columns COLUMNS.
    """
    table = pd.concat([frame.assign(arm=name) for name, frame in scores.items()], ignore_index=True)
    table["score"] = table["arm"] + _OF + table["detector"]
    table = table.assign(family="ablation", reason="")
    scope_results = [
        scoreboard.of_dataset(part, str(name) in positive_controls, settings, seed)
        for name, part in table.groupby("dataset", sort=False)
    ]
    scope_results += _pools(scope_results, misled, settings.confidence)
    digests = {
        str(score_name): digest(part) for score_name, part in table.groupby("score", sort=False)
    }
    detectors = list(dict.fromkeys(table["detector"]))
    rows = [
        row
        for scope in scope_results
        for detector in detectors
        for row in _scope(scope, detector, list(scores), arms, digests, settings.confidence)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _pools(
    scope_results: Sequence[ScopeResult], misled: Sequence[str], confidence: float
) -> list[ScopeResult]:
    """Means over the same data sets as in `scoreboard.pools`."""
    kinds = (
        (registry.ALL_GIVEN, "given", False),
        (registry.ALL_GENERATED, "generated", False),
        (registry.ALL_MISLED, "given", True),
    )
    members = {
        name: [
            each
            for each in scope_results
            if each.mode == mode and not each.control and (each.name in misled) == after_remarks
        ]
        for name, mode, after_remarks in kinds
    }
    return [scoreboard.pool(name, found, confidence) for name, found in members.items() if found]


def _pairs(names: Sequence[str], arms: Mapping[str, AblationArm]) -> list[tuple[str, str]]:
    """Pairs of an arm and what it is compared with."""
    nulls = [name for name in names if name in arms and arms[name].variant != "default"]
    return [(name, BASELINE) for name in names] + [
        (TUNED, null) for null in nulls if TUNED in names
    ]


def _scope(
    scope: ScopeResult,
    detector: str,
    names: Sequence[str],
    arms: Mapping[str, AblationArm],
    digests: Mapping[str, str],
    confidence: float,
) -> list[dict[str, Any]]:
    rows = []
    for name, against in _pairs(names, arms):
        score_name, base = name + _OF + detector, against + _OF + detector
        if not scope.has(score_name) or not scope.has(base):
            continue
        gain = statistics.difference(
            scope.auroc[score_name],
            scope.auroc[base],
            scope.draws[score_name],
            scope.draws[base],
            confidence,
        )
        low, high = statistics.interval(scope.draws[score_name], confidence)
        arm = arms.get(name)
        rows.append(
            {
                "dataset": scope.name,
                "mode": scope.mode,
                "detector": detector,
                "arm": name,
                "against": against,
                "kind": arm.kind if arm else "choice",
                "metrics": len(arm.columns) if arm else np.nan,
                "n": scope.n,
                "groups": scope.groups,
                "auroc": scope.auroc[score_name],
                "auroc_low": low,
                "auroc_high": high,
                "difference": gain.value,
                "difference_low": gain.low,
                "difference_high": gain.high,
                "p": np.nan if name == BASELINE else gain.p,
                "output_sha256": digests[score_name],
                "void": name != BASELINE and digests[score_name] == digests[base],
            }
        )
    for row, corrected in zip(
        rows, statistics.holm([float(row["p"]) for row in rows]), strict=True
    ):
        row["p_holm"] = corrected
    return rows


def choose(tables: ArmTables) -> TunedScores:
    """Choose in every outer fold the arm with the best inner AUROC, and keep its test scores.

    The choice is made per data set and detector; the baseline wins ties. The fits and the choice
    use only the training rows of a fold, so its test rows stay unseen.

    Args:
        tables: of all arms but the nulls of the tracker.
    """
    fits = pd.concat(
        [frame.assign(arm=name) for name, frame in tables.fits.items()], ignore_index=True
    )
    thorough = frozenset.intersection(
        *(frozenset(frame["detector"]) for frame in tables.fits.values())
    )
    fits = fits[fits["detector"].isin(thorough)]  # detectors that scored every arm
    scores = {
        name: dict(iter(frame.groupby(["dataset", "detector", "fold"], sort=False)))
        for name, frame in tables.scores.items()
    }
    parts, choices = [], []
    for key, part in fits.groupby(["dataset", "detector", "fold"], sort=False):
        inner = dict(zip(part["arm"], part["inner_auroc"], strict=True))
        best = max(inner, key=lambda name: (inner[name], name == BASELINE))
        parts.append(scores[best][key])
        choices.append((*key, best, inner[best], inner[BASELINE]))
    first = next(iter(tables.scores.values()))
    if not parts:  # no data set has folds
        return TunedScores(first.iloc[:0], pd.DataFrame(columns=list(CHOICES)))
    order = first[["dataset", "id", "detector"]]
    order = order[order["detector"].isin(thorough)]
    joined = order.merge(
        pd.concat(parts), on=["dataset", "id", "detector"], how="left", validate="one_to_one"
    )
    return TunedScores(joined[list(parts[0].columns)], pd.DataFrame(choices, columns=list(CHOICES)))
