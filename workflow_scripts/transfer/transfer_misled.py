"""Train detectors and controls on conflict sets without a relation or a wording, and test them there."""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ghosttrack.detection import candidate_scores, misled_transfer, transfer
from ghosttrack.errors import UserError
from ghosttrack.evaluation import transfer_tables
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    examples: list[Path],
    outputs: list[Path],
    closed_books: list[Path],
    backgrounds: list[Path],
    weights: list[Path],
    controls: list[Path],
    metrics: list[Path],
    misled_left_out: Path,
    datasets: list[str],
    layers: list[int],
    null_rows_differ: bool,
    evaluation: EvaluationSettings,
    seed: int,
    threads: int = 1,
) -> None:
    """Write misled_left_out.csv.

    `examples`, `outputs`, `closed_books` and `backgrounds` are in the order of `datasets`, the
    conflict sets of given texts; so are `controls` and `metrics`, the tables of candidate answers,
    or they are empty; `weights` is in the order of `layers`; `null_rows_differ`: whether random
    decoders were fitted on other rows than the SAEs.
    """
    texts, measured, closed = (
        dict(zip(datasets, map(tables.read_parquet, paths), strict=True))
        for paths in (examples, outputs, closed_books)
    )
    stems = [layer_name(layer) for layer in layers]
    paths = {
        name: transfer.TransferFiles(
            [path.parent / f"{stem}.zarr" for stem in stems],
            [path.parent / f"{stem}.json" for stem in stems],
            background,
        )
        for name, path, background in zip(datasets, outputs, backgrounds, strict=True)
    }
    with threadpool_limits(threads):
        blocks = transfer.read_blocks(
            measured,
            paths,
            dict(zip(layers, weights, strict=True)),
            tuple(misled_transfer.PROBES.values()),
        )
        candidates = {
            name: candidate_scores.read_inputs(
                without_sae, with_sae, texts[name], np.arange(len(texts[name]))
            )
            for name, without_sae, with_sae in zip(datasets, controls, metrics, strict=False)
        }
        pool = misled_transfer.pool(texts, measured, closed, blocks, candidates)
        trainings = misled_transfer.trainings(pool)
        if not trainings:
            raise UserError(
                f"transfer: the conflict sets {', '.join(datasets)} have fewer than "
                f"{transfer.LEAST_PARTS} relations and fewer than {transfer.LEAST_PARTS} wordings; "
                "add conflict sets to datasets, or wordings to conflict"
            )
        scored = {kind: misled_transfer.scores(pool, each) for kind, each in trainings.items()}
        table = transfer_tables.judge_misled(
            pool, scored, evaluation, seed, null_rows_differ=null_rows_differ
        )
    with files.atomic_write(misled_left_out) as stream:
        tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
