"""Train the default detector and its controls on some relations and test them on others."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack import scores as registry
from ghosttrack.detection import transfer as relations
from ghosttrack.errors import UserError
from ghosttrack.evaluation import transfer_tables
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import DetectionSettings, EvaluationSettings


def main(
    *,
    metrics: Path,
    scores: Path,
    examples: list[Path],
    outputs: list[Path],
    backgrounds: list[Path],
    weights: list[Path],
    transfer: Path,
    left_out: Path,
    datasets: list[str],
    controls: list[str],
    layers: list[int],
    detection: DetectionSettings,
    evaluation: EvaluationSettings,
    seed: int,
    threads: int = 1,
) -> None:
    """Write the transfer matrix and the differences on left-out relations.

    `examples`, `outputs` and `backgrounds` go with `datasets`, `weights` with `layers`; `controls` names the positive controls.
    """
    kinds = registry.kinds(registry.read(metrics, registry.METRICS), datasets, controls)
    chosen = [place for place, name in enumerate(datasets) if name in kinds.text_controlled]
    if not chosen:
        raise UserError(
            "transfer: no data set of given texts that their words do not give away (datasets)"
        )
    texts = {datasets[place]: tables.read_parquet(examples[place]) for place in chosen}
    measured = {datasets[place]: tables.read_parquet(outputs[place]) for place in chosen}
    paths = {
        datasets[place]: relations.TransferFiles(
            [outputs[place].parent / f"layer_{layer:02d}.zarr" for layer in layers],
            [outputs[place].parent / f"layer_{layer:02d}.json" for layer in layers],
            backgrounds[place],
        )
        for place in chosen
    }
    with threadpool_limits(threads):
        blocks = relations.read_blocks(measured, paths, dict(zip(layers, weights, strict=True)))
        pool = relations.pool(texts, measured, blocks)
        without = relations.left_out(relations.parts(pool))
        trainings = [*without, *relations.single(pool, texts, detection.inner_folds, seed)]
        scored = relations.scores(pool, trainings)
        found = transfer_tables.judge(
            pool,
            scored,
            [each.name for each in without],
            tables.read_parquet(scores),
            evaluation,
            seed,
        )
    for path, table in ((transfer, found.transfer), (left_out, found.left_out)):
        with files.atomic_write(path) as stream:
            tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
