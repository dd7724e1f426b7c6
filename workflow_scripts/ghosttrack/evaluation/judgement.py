"""Metric tables and claim ledger of all data sets of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from ghosttrack.evaluation import ledger as claim_ledger
from ghosttrack.evaluation import relations as by_relation
from ghosttrack.evaluation import scoreboard
from ghosttrack.settings import EvaluationSettings


class Judgement(NamedTuple):
    """Tables of a run: metrics.csv, ledger.csv and relations.csv.

    pools: number of data sets in each mean over data sets.
    """

    metrics: pd.DataFrame
    ledger: pd.DataFrame
    relations: pd.DataFrame
    pools: Mapping[str, int]


def judge(
    scores: pd.DataFrame,
    generated: Mapping[str, pd.DataFrame],
    controls: Sequence[str],
    variants: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
    *,
    null_rows_differ: bool = False,
    minimum_pooled: int = 1,
) -> Judgement:
    """Evaluate every score on each data set and pooled, and test every claim.

    Args:
        scores: long table of all data sets, with the same examples in the same order for each score
            of a data set.
        generated: examples.parquet by data set, of those with generated answers.
        controls: names of the positive controls.
        variants: the tracker (default) and its nulls.
        null_rows_differ: whether random decoders were fitted on other rows than the SAEs.
        minimum_pooled: means over fewer data sets are left out.
    """
    scope_results = [
        scoreboard.of_dataset(part, str(name) in controls, settings, seed)
        for name, part in scores.groupby("dataset", sort=False)
    ]
    pooled = [
        each
        for each in scoreboard.pools(scope_results, settings.confidence)
        if len(each.members) >= minimum_pooled
    ]
    scope_results += pooled
    single, repeated = [], []
    for name, examples in generated.items():
        part = scores[scores["dataset"] == name]
        relation = examples.set_index("id")["relation"]
        control = name in controls
        single.append(by_relation.scope_results(part, relation, settings, seed, control=control))
        repeated += by_relation.repeating(part, examples, settings, seed, control=control)
    claimed = [each for found in single for each in by_relation.claimed(found, settings)]
    claimed += by_relation.tested(repeated, settings)
    return Judgement(
        scoreboard.metrics_table(scope_results),
        claim_ledger.judge(
            [*scope_results, *claimed], variants, settings, null_rows_differ=null_rows_differ
        ),
        scoreboard.metrics_table(
            [
                *(each for found in single for each in found),
                *repeated,
                *(each for each in claimed if each.members),
            ]
        ),
        {each.name: len(each.members) for each in pooled},
    )
