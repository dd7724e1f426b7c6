"""Train detectors on the metrics of one arm, with the run's folds."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack.ablation.scoring import score_all
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import DetectionSettings


def main(
    *,
    audited: list[Path],
    track_metrics: list[Path],
    scores: Path,
    fits: Path,
    datasets: list[str],
    columns: list[str],
    detectors: list[str],
    detection: DetectionSettings,
    seed: int,
    threads: int,
) -> None:
    """Write the out-of-fold scores, and the inner AUROC of each fold's training rows.

    `audited` has one entry per data set of `datasets`. So has `track_metrics`, unless it is one
    table of all data sets.
    """
    metrics = [tables.read_parquet(path) for path in track_metrics]
    if "dataset" in metrics[0]:
        metrics = [metrics[0][metrics[0]["dataset"] == name] for name in datasets]
    folds = {name: tables.read_parquet(path) for name, path in zip(datasets, audited, strict=True)}
    with threadpool_limits(threads):
        scored = score_all(
            folds, dict(zip(datasets, metrics, strict=True)), columns, detectors, detection, seed
        )
    with files.atomic_write(scores, "wb") as stream:
        scored.scores.to_parquet(stream, index=False)
    with files.atomic_write(fits) as text:
        tables.write_csv(scored.fits, text)


if __name__ == "__main__":
    job.run(main, globals())
