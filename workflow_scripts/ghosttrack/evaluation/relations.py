"""Results by relation: a score over all relations may only rank their difficulty."""

from collections.abc import Sequence

import pandas as pd

from ghosttrack.evaluation import scoreboard
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.facts import remarks
from ghosttrack.settings import EvaluationSettings

# Separator of data set and relation in names of scopes; suffix for the mean over a data set's
# relations.
OF, MEAN = "/", "mean over relations"
# Name of the scope of answers that repeat the remark before them.
REPEATED = "answers that repeat the remark"
# Minimum number of correct and of wrong answers for a relation to be shown;
# `evaluation.minimum_answers` is the minimum for a relation to be tested.
SHOWN = 10


def scope_results(
    scores: pd.DataFrame,
    relation_of: pd.Series,
    settings: EvaluationSettings,
    seed: int,
    *,
    control: bool = False,
) -> list[ScopeResult]:
    """Results of every score on each relation of a generated data set; empty with one relation.

    Nothing is fitted again: the scores are those of the whole data set.

    Args:
        scores: long table of one data set; relation_of: relation by example id; control: whether
            the data set is a positive control.
    """
    relation = scores["id"].map(relation_of)
    dataset = str(scores["dataset"].iloc[0])
    results = [
        scoreboard.of_dataset(part.assign(dataset=f"{dataset}{OF}{name}"), control, settings, seed)
        for name, part in scores.groupby(relation, sort=True)
        if _least(part) >= SHOWN
    ]
    return results if relation.nunique() > 1 else []


def repeating(
    scores: pd.DataFrame,
    examples: pd.DataFrame,
    settings: EvaluationSettings,
    seed: int,
    *,
    control: bool = False,
) -> list[ScopeResult]:
    """Results on the generated answers that repeat the remark before them; empty if too few.

    Args:
        scores: long table of one data set; examples: its examples.parquet; control: whether the
            data set is a positive control.
    """
    if not remarks.has_remarks(examples):
        return []
    repeated = set(examples["id"][remarks.agreement(examples)])
    part = scores[scores["id"].isin(repeated)]
    if part.empty or _least(part) < SHOWN:
        return []
    dataset = f"{scores['dataset'].iloc[0]}{OF}{REPEATED}"
    return [scoreboard.of_dataset(part.assign(dataset=dataset), control, settings, seed)]


def tested(results: Sequence[ScopeResult], settings: EvaluationSettings) -> list[ScopeResult]:
    """The scopes with enough answers of each class to be tested."""
    return [each for each in results if _least_of(each) >= settings.minimum_answers]


def claimed(results: Sequence[ScopeResult], settings: EvaluationSettings) -> list[ScopeResult]:
    """The relations with enough answers of each class to be tested, and their mean."""
    large = tested(results, settings)
    if len(large) < 2:
        return large
    dataset = large[0].name.split(OF)[0]
    return [*large, scoreboard.pool(f"{dataset}{OF}{MEAN}", large, settings.confidence)]


def _least(part: pd.DataFrame) -> int:
    labels = part.loc[part["score"] == part["score"].iloc[0], "label"]
    return min(int((labels == 0).sum()), int((labels == 1).sum()))


def _least_of(result: ScopeResult) -> int:
    wrong = int(result.labels.sum())
    return min(wrong, result.n - wrong)
