"""Take the named reasons out of the running model, and as many others, and see how far the score moves."""

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
) -> None:
    """Write the table, without rows where no detector could be fitted; `examples` goes with `datasets`.

    `detector` lies in detection/ of the run's folder, where the model and the SAEs are, too.
    """
    torch.set_num_threads(threads)
    table = pd.DataFrame(columns=list(registry.EXPLANATIONS))
    described = files.read_json(about)
    if not described["reason"]:
        from ghosttrack.detection.scoring import Scorer

        known = dict(zip(datasets, examples, strict=True))
        chosen = {
            name: tables.read_parquet(known[name]) for name in described["quality"]["datasets"]
        }
        given = {name: own for name, own in chosen.items() if (own["mode"] == "given").any()}
        if given:
            texts = faithfulness.choose(given)
            table = faithfulness.measure(
                Scorer(detector.parent.parent),
                texts,
                seed,
                evaluation.bootstrap,
                evaluation.confidence,
            )
    with files.atomic_write(explanations) as stream:
        tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
