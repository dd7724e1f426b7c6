"""Audit one data set for leaks, and assign the folds that all detectors use."""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.detection import audit
from ghosttrack.detection.representations import span_mean, spans
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import DetectionSettings, EvaluationSettings


def main(
    *,
    examples: Path,
    outputs: Path,
    embedding: Path,
    embedding_manifest: Path,
    scores: Path,
    checks: Path,
    dataset: str,
    control: bool,
    detection: DetectionSettings,
    evaluation: EvaluationSettings,
    seed: int,
    threads: int = 1,
) -> None:
    """Write the out-of-fold scores of the controls and the table of checks."""
    store = ActivationStore.open([embedding], [embedding_manifest])
    where = spans(tables.read_parquet(outputs), store.rows, dataset)
    with threadpool_limits(threads):
        table = tables.read_parquet(examples)
        result = audit.run(
            table,
            span_mean(np.asarray(store.read()), where),
            dataset,
            control,
            detection,
            evaluation,
            seed,
        )
    with files.atomic_write(scores, "wb") as stream:
        result.scores.to_parquet(stream, index=False)
    with files.atomic_write(checks) as stream:
        tables.write_csv(result.checks, stream)


if __name__ == "__main__":
    job.run(main, globals())
