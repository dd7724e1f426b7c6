"""Train every detector on one data set with nested cross-validation."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack.detection import run as detection_run
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import DetectionSettings


def main(
    *,
    examples: Path,
    outputs: Path,
    audited: Path,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    counterfactual_mean: Path,
    prompt_states: Path,
    track_metrics: list[Path],
    samples: list[Path],
    candidates: list[Path],
    random_decoders: list[Path],
    closed_book: list[Path],
    scores: Path,
    selection: Path,
    importance: Path,
    dataset: str,
    layers: list[int],
    variants: list[str],
    detection: DetectionSettings,
    seed: int,
    without_context: list[Path] | None = None,
    threads: int = 1,
) -> None:
    """Write the scores of every detector, the chosen hyperparameters and the feature importances.

    `stores`, `manifests` and `weights` are in the order of `layers`, `track_metrics` of
    `variants`.
    `samples`: samples.parquet of a generated data set, or empty; `candidates`: controls and metrics
    of the candidate answers, or empty; `random_decoders`: weights of the SAEs with random decoders
    in the order of `layers`, or empty; `closed_book`: closed_book.parquet of a conflict set, or
    empty; `without_context`: without_context.parquet of a data set with contexts, or empty.
    """
    drawn = [detection_run.DrawnAnswers(tables.read_parquet(path), path) for path in samples]
    with threadpool_limits(threads):
        trained = detection_run.train_dataset(
            dataset,
            tables.read_parquet(examples),
            tables.read_parquet(outputs),
            tables.read_parquet(audited),
            detection_run.DatasetFiles(
                stores,
                manifests,
                weights,
                counterfactual_mean,
                prompt_states,
                track_metrics,
                candidates,
                random_decoders,
            ),
            layers,
            variants,
            detection,
            seed,
            drawn[0] if drawn else None,
            tables.read_parquet(closed_book[0]) if closed_book else None,
            tables.read_parquet(without_context[0]) if without_context else None,
        )
    with files.atomic_write(scores, "wb") as stream:
        trained.scores.to_parquet(stream, index=False)
    for path, table in ((selection, trained.selection), (importance, trained.importance)):
        with files.atomic_write(path) as stream:
            tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
