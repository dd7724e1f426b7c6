"""Evaluate every score on every data set: metrics, claim ledger, leak audit, curves."""

from pathlib import Path

import pandas as pd

from ghosttrack.evaluation import judgement, scoreboard
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    parts: list[Path],
    external: list[Path],
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

    `external`: scores of the user's tables and classes. `controls` names the positive controls.
    `generated`: examples.parquet of the data sets with generated answers, each in the folder named
    as its data set. `null_rows_differ`: whether random decoders were fitted on other rows than the
    SAEs.
    """
    table = pd.concat(
        [tables.read_parquet(part) for part in [*parts, *external]], ignore_index=True
    )
    judged = judgement.judge(
        table,
        {path.parent.name: tables.read_parquet(path) for path in generated},
        controls,
        variants,
        evaluation,
        seed,
        null_rows_differ=null_rows_differ,
    )
    with files.atomic_write(scores, "wb") as stream:
        table.to_parquet(stream, index=False)
    written = {
        metrics: judged.metrics,
        ledger: judged.ledger,
        relations: judged.relations,
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
