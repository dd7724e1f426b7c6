"""Train the default detector and its controls on some relations and test them on others."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack import scores as registry
from ghosttrack.detection import transfer as relations
from ghosttrack.errors import UserError
from ghosttrack.evaluation import transfer_tables
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import DetectionSettings, EvaluationSettings


def main(
    *,
    metrics: Path,
    scores: Path,
    examples: list[Path],
    outputs: list[Path],
    counterfactual_means: list[Path],
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
    """Write the transfer matrix and the differences to controls on left-out relations.

    `examples`, `outputs` and `counterfactual_means` are in the order of `datasets`, `weights` in
    that of `layers`; `controls` names the positive controls.
    """
    kinds = registry.kinds(registry.read(metrics, registry.METRICS), datasets, controls)
    chosen = [index for index, name in enumerate(datasets) if name in kinds.text_controlled]
    if not chosen:
        raise UserError(
            "transfer: no text-controlled data set (given texts whose text does not predict the "
            "label): add one to datasets"
        )
    texts = {datasets[index]: tables.read_parquet(examples[index]) for index in chosen}
    measured = {datasets[index]: tables.read_parquet(outputs[index]) for index in chosen}
    paths = {
        datasets[index]: relations.TransferFiles(
            [outputs[index].parent / f"{layer_name(layer)}.zarr" for layer in layers],
            [outputs[index].parent / f"{layer_name(layer)}.json" for layer in layers],
            counterfactual_means[index],
        )
        for index in chosen
    }
    with threadpool_limits(threads):
        blocks = relations.read_blocks(measured, paths, dict(zip(layers, weights, strict=True)))
        pool = relations.pool(texts, measured, blocks)
        without = relations.left_out(relations.parts(pool))
        trainings = [*without, *relations.single(pool, texts, detection.inner_folds, seed)]
        scored = relations.scores(pool, trainings)
        judged = transfer_tables.judge(
            pool,
            scored,
            [training.name for training in without],
            tables.read_parquet(scores),
            evaluation,
            seed,
        )
    for path, table in ((transfer, judged.transfer), (left_out, judged.left_out)):
        with files.atomic_write(path) as stream:
            tables.write_csv(table, stream)


if __name__ == "__main__":
    job.run(main, globals())
