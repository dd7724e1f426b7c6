"""Train the default detector of one data set with other seeds of the folds and of the SAEs."""

from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ghosttrack import scores as registry
from ghosttrack.detection import run as detection_run
from ghosttrack.detection import seed_runs, splits
from ghosttrack.detection.detectors import DetectorInputs
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
    samples: list[Path],
    without_context: list[Path],
    sweeps: list[Path],
    seeds: Path,
    dataset: str,
    layers: list[int],
    arms: dict[str, int],
    detection: DetectionSettings,
    seed: int,
    threads: int = 1,
) -> None:
    """Write one row per seed and score.

    `samples`: samples.parquet of a generated data set, or empty; `without_context`:
    without_context.parquet of a data set with contexts, or empty; `sweeps`: folders of the swept
    SAEs by layer, or empty; `arms`: seed by the name of an SAE's folder in them.
    """
    texts, measured, first = (
        tables.read_parquet(examples),
        tables.read_parquet(outputs),
        tables.read_parquet(audited),
    )
    drawn = [detection_run.DrawnAnswers(tables.read_parquet(path), path) for path in samples]
    measured = detection_run.with_other_passes(
        dataset,
        texts,
        measured,
        drawn[0] if drawn else None,
        tables.read_parquet(without_context[0]) if without_context else None,
    )
    first = first[first["score"] == registry.TEXT_ONLY]
    reason = str(first["reason"].iloc[0])
    rows_by_seed: list[seed_runs.SeedResult] = []
    if not reason:
        row_of = {name: row for row, name in enumerate(texts["id"])}
        rows = np.array([row_of[name] for name in first["id"]], dtype=np.int64)
        labels, cv_groups = (
            first["label"].to_numpy(dtype=np.int64),
            first["group"].to_numpy(dtype=object),
        )

        def read(saes: list[Path]) -> DetectorInputs:
            paths = detection_run.DatasetFiles(
                stores, manifests, saes, counterfactual_mean, prompt_states, []
            )
            return detection_run.read_inputs(dataset, texts, measured, rows, paths, layers, [])

        with threadpool_limits(threads):
            inputs = read(weights)
            chosen = list(dict.fromkeys([seed, *detection.fold_seeds]))
            rows_by_seed += seed_runs.vary_folds(inputs, labels, cv_groups, detection, chosen)
            fold = first["fold"].to_numpy(dtype=np.int64)
            outer_folds = splits.outer_folds(labels, cv_groups, fold, detection.inner_folds, seed)
            for name, number in arms.items() if sweeps else ():
                blocks = read(
                    [folder / name / "sae_weights.safetensors" for folder in sweeps]
                ).layers
                rows_by_seed += seed_runs.vary_saes(inputs, {number: blocks}, labels, outer_folds)
    table = pd.DataFrame(rows_by_seed, columns=list(seed_runs.SeedResult._fields))
    table.insert(0, "dataset", dataset)
    with files.atomic_write(seeds) as stream:
        tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
