"""Fit a user's detector class on one data set in the outer folds."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack.detection import class_folds, class_runs
from ghosttrack.runtime import files, job, tables


def main(
    *,
    source: Path,
    examples: Path,
    outputs: Path,
    audited: Path,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    track_metrics: list[Path],
    tokens: list[Path],
    scores: Path,
    dataset: str,
    detector_class: str,
    module: str,
    class_name: str,
    reads: list[str],
    layers: list[int],
    seed: int,
    threads: int = 1,
) -> None:
    """Write the out-of-fold scores of the class.

    `source`: the file of the class `class_name`; `module`: the module to import, or "" for a file;
    `detector_class`: name of the class in the settings. `stores`, `manifests` and `weights` are in
    the order of `layers`, or empty if the class does not read them.
    """
    texts = tables.read_parquet(examples)
    where = f"detector class {detector_class} ({class_name} of {source.name}), data set {dataset}"
    with threadpool_limits(threads):
        table = class_runs.score_dataset(
            detector_class,
            dataset,
            class_folds.in_processes(class_folds.ClassSource(source, module, class_name), threads),
            where,
            texts,
            class_runs.read_parts(
                dataset,
                texts,
                tables.read_parquet(outputs),
                class_runs.ClassFiles(stores, manifests, weights, track_metrics, tokens),
                layers,
                reads,
            ),
            tables.read_parquet(audited),
            seed,
        )
    with files.atomic_write(scores, "wb") as stream:
        table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
