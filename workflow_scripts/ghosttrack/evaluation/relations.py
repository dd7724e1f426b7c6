"""Generated answers relation by relation: a mean over relations of different difficulty ranks relations, not answers."""

from collections.abc import Sequence

import pandas as pd

from ghosttrack.evaluation import scoreboard
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.settings import EvaluationSettings

# Between the data set and the relation in the names of rows; the mean over a data set's relations.
OF, MEAN = "/", "mean over relations"
# A relation is shown from so many answers of each class on, and carries claims from `evaluation.minimum_answers` on.
SHOWN = 10


def scope_results(
    scores: pd.DataFrame, relation_of: pd.Series, settings: EvaluationSettings, seed: int
) -> list[ScopeResult]:
    """What every signal reached on each relation of a generated data set; none for a data set of one relation.

    Scores are those of the whole data set: nothing is fitted again.

    Args:
        scores: the long table of one data set; relation_of: relation by example id.
    """
    relation = scores["id"].map(relation_of)
    dataset = str(scores["dataset"].iloc[0])
    found = [
        scoreboard.of_dataset(part.assign(dataset=f"{dataset}{OF}{name}"), False, settings, seed)
        for name, part in scores.groupby(relation, sort=True)
        if _least(part) >= SHOWN
    ]
    return found if relation.nunique() > 1 else []


def claimed(found: Sequence[ScopeResult], settings: EvaluationSettings) -> list[ScopeResult]:
    """The relations with enough answers of each class to carry a claim, and their mean."""
    large = [each for each in found if _least_of(each) >= settings.minimum_answers]
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
