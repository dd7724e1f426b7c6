"""Join a table of scores that were made elsewhere with the texts of the run."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import score_tables
from ghosttrack.runtime import files, job, tables

log = logging.getLogger("ghosttrack")


def main(
    *,
    table: Path,
    audited: list[Path],
    examples: list[Path],
    scores: Path,
    score_table: str,
    datasets: list[str],
    lower_is_hallucinated: bool,
    tokens: score_tables.Tokens,
) -> None:
    """Write the scores of the table.

    `audited` and `examples` are in the order of `datasets`. `score_table`: name of the table in the
    settings.
    """
    key = f"external.tables: {score_table}"
    texts = pd.concat([tables.read_parquet(path) for path in audited], ignore_index=True)
    joined = score_tables.join(
        score_tables.read(table, score_table, lower=lower_is_hallucinated, tokens=tokens, key=key),
        texts[texts["score"] == registry.TEXT_ONLY],
        {
            name: tables.read_parquet(path, columns=["id"])["id"]
            for name, path in zip(datasets, examples, strict=True)
        },
        f"{key}: {table}",
    )
    log.info("%s: made outside the folds; covers %s", key, ", ".join(joined.datasets))
    with files.atomic_write(scores, "wb") as stream:
        joined.scores.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
