"""Evaluate every score on every data set: metrics, claim ledger, leak audit, curves."""

from pathlib import Path

import pandas as pd

from ghosttrack.evaluation import ledger as claim_ledger
from ghosttrack.evaluation import relations as by_relation
from ghosttrack.evaluation import scoreboard
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    parts: list[Path],
    generated: list[Path],
    selections: list[Path],
    importances: list[Path],
    audits: list[Path],
    scores: Path,
    selection: Path,
    importance: Path,
    metrics: Path,
    ledger: Path,
    leak_audit: Path,
    calibration: Path,
    curves: Path,
    relations: Path,
    controls: list[str],
    variants: list[str],
    null_rows_differ: bool,
    evaluation: EvaluationSettings,
    seed: int,
) -> None:
    """Join the tables of the data sets and write the tables of evaluation/.

    `controls` names the positive controls. `generated`: examples.parquet of the data sets with
    generated answers, each in the folder named as its data set. `null_rows_differ`: whether random
    decoders were fitted on other rows than the SAEs.
    """
    table = pd.concat([tables.read_parquet(part) for part in parts], ignore_index=True)
    scope_results = [
        scoreboard.of_dataset(part, str(name) in controls, evaluation, seed)
        for name, part in table.groupby("dataset", sort=False)
    ]
    scope_results += scoreboard.pools(scope_results, evaluation.confidence)
    single, repeated = [], []
    for path in generated:
        part = table[table["dataset"] == path.parent.name]
        examples = tables.read_parquet(path)
        relation = examples.set_index("id")["relation"]
        single.append(by_relation.scope_results(part, relation, evaluation, seed))
        repeated += by_relation.repeating(part, examples, evaluation, seed)
    claimed = [each for found in single for each in by_relation.claimed(found, evaluation)]
    claimed += by_relation.tested(repeated, evaluation)
    with files.atomic_write(scores, "wb") as stream:
        table.to_parquet(stream, index=False)
    written = {
        metrics: scoreboard.metrics_table(scope_results),
        ledger: claim_ledger.judge(
            [*scope_results, *claimed], variants, evaluation, null_rows_differ=null_rows_differ
        ),
        relations: scoreboard.metrics_table(
            [
                *(each for found in single for each in found),
                *repeated,
                *(each for each in claimed if each.members),
            ]
        ),
        calibration: scoreboard.calibration_table(table),
        curves: scoreboard.curves_table(table),
        **{
            joined: pd.concat([tables.read_csv(part) for part in single], ignore_index=True)
            for joined, single in (
                (leak_audit, audits),
                (selection, selections),
                (importance, importances),
            )
        },
    }
    for path, content in written.items():
        with files.atomic_write(path) as stream:
            tables.write_csv(content, stream)


if __name__ == "__main__":
    job.run(main, globals())
