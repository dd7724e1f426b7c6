"""Test explanations: ablate the named and other features, and measure the score's change."""

from pathlib import Path

import pandas as pd
import torch

from ghosttrack import scores as registry
from ghosttrack.detection import faithfulness
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    detector: Path,
    about: Path,
    examples: list[Path],
    explanations: Path,
    datasets: list[str],
    evaluation: EvaluationSettings,
    seed: int,
    threads: int = 1,
    gpu: int = 1,
) -> None:
    """Write explanations.csv, without rows if no detector could be fitted.

    `examples` is in the order of `datasets`. `detector` is in detection/ of the run's folder, which
    also holds model, SAEs and feature tables.
    """
    torch.set_num_threads(threads)
    table = pd.DataFrame(columns=list(registry.EXPLANATIONS))
    described = files.read_object(about)
    if not described["reason"]:
        from ghosttrack.detection.reasons import Meanings
        from ghosttrack.detection.scoring import Scorer

        known = dict(zip(datasets, examples, strict=True))
        chosen = {
            name: tables.read_parquet(known[name]) for name in described["quality"]["datasets"]
        }
        given = {name: table for name, table in chosen.items() if (table["mode"] == "given").any()}
        if given:
            run = detector.parent.parent
            scorer = Scorer(run, gpu)
            table = faithfulness.measure(
                scorer,
                faithfulness.choose(given, length=faithfulness.tokens_of(scorer)),
                seed,
                evaluation.bootstrap,
                evaluation.confidence,
                Meanings(run),
            )
    with files.atomic_write(explanations) as stream:
        tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
