"""From the scores of all arms to tables: each arm against the baseline, and a choice among arms inside training folds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.ablation.arms import BASELINE, Arm
from ghosttrack.ablation.scoring import digest
from ghosttrack.evaluation import scoreboard
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.settings import EvaluationSettings

# The name of the scores whose settings were chosen inside the training folds.
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
# Between the arm and the detector in the names of signals.
_OF = "/"


class Results(NamedTuple):
    """What the arms came to, by name: scores and fits as in `scoring.Scored`."""

    scores: Mapping[str, pd.DataFrame]
    fits: Mapping[str, pd.DataFrame]


class Chosen(NamedTuple):
    """scores: of the chosen arms, as those of an arm; choices: one row a data set, detector and fold, columns CHOICES."""

    scores: pd.DataFrame
    choices: pd.DataFrame


def compare(
    arms: Mapping[str, Arm],
    scores: Mapping[str, pd.DataFrame],
    positive_controls: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
) -> pd.DataFrame:
    """Every arm on every data set and pooled, as arm minus baseline with a paired interval from draws of whole groups.

    What was chosen among arms (`TUNED`) is held against every null of the tracker as well. p-values are Holm-corrected over
    the arms of a scope and detector. An arm whose scores are those of the other to the last digit is void: it changed nothing.

    Args:
        arms: what the names in `scores` stand for; names without an arm are of kind `choice`.
        positive_controls: data sets that stay out of the means.
    Returns:
        Columns COLUMNS.
    """
    table = pd.concat([found.assign(arm=name) for name, found in scores.items()], ignore_index=True)
    table["score"] = table["arm"] + _OF + table["detector"]
    table = table.assign(family="ablation", reason="")
    scope_results = [
        scoreboard.of_dataset(part, str(name) in positive_controls, settings, seed)
        for name, part in table.groupby("dataset", sort=False)
    ]
    scope_results += _pools(scope_results, settings.confidence)
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


def _pools(scope_results: Sequence[ScopeResult], confidence: float) -> list[ScopeResult]:
    kinds = ((registry.ALL_GIVEN, "given"), (registry.ALL_GENERATED, "generated"))
    members = {
        name: [each for each in scope_results if each.mode == mode and not each.control]
        for name, mode in kinds
    }
    return [scoreboard.pool(name, found, confidence) for name, found in members.items() if found]


def _pairs(names: Sequence[str], arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Arms and what each is held against."""
    nulls = [name for name in names if name in arms and arms[name].variant != "default"]
    return [(name, BASELINE) for name in names] + [
        (TUNED, null) for null in nulls if TUNED in names
    ]


def _scope(
    scope: ScopeResult,
    detector: str,
    names: Sequence[str],
    arms: Mapping[str, Arm],
    digests: Mapping[str, str],
    confidence: float,
) -> list[dict[str, Any]]:
    rows = []
    for name, against in _pairs(names, arms):
        score_name, base = name + _OF + detector, against + _OF + detector
        if not scope.has(score_name):
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


def choose(found: Results) -> Chosen:
    """In every outer fold the arm with the best inner AUROC, and its scores for the rows that no choice has seen.

    Nulls of the tracker are not among `found`. Data set by data set and detector by detector; the baseline wins a tie. The scores of a fold's test rows come from fits
    on its training rows, and so does the choice.
    """
    fits = pd.concat(
        [each.assign(arm=name) for name, each in found.fits.items()], ignore_index=True
    )
    thorough = frozenset.intersection(
        *(frozenset(each["detector"]) for each in found.fits.values())
    )
    fits = fits[fits["detector"].isin(thorough)]  # those that scored every arm
    scores = {
        name: dict(iter(each.groupby(["dataset", "detector", "fold"], sort=False)))
        for name, each in found.scores.items()
    }
    parts, choices = [], []
    for key, part in fits.groupby(["dataset", "detector", "fold"], sort=False):
        inner = dict(zip(part["arm"], part["inner_auroc"], strict=True))
        best = max(inner, key=lambda name: (inner[name], name == BASELINE))
        parts.append(scores[best][key])
        choices.append((*key, best, inner[best], inner[BASELINE]))
    order = next(iter(found.scores.values()))[["dataset", "id", "detector"]]
    order = order[order["detector"].isin(thorough)]
    joined = order.merge(
        pd.concat(parts), on=["dataset", "id", "detector"], how="left", validate="one_to_one"
    )
    return Chosen(joined[list(parts[0].columns)], pd.DataFrame(choices, columns=list(CHOICES)))
