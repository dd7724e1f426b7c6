"""Draw the figures of one model's run."""

from itertools import product
from pathlib import Path

from ghosttrack import scores as registry
from ghosttrack.report.figures import FigureInputs, draw
from ghosttrack.runtime import files, job, tables


def main(
    *,
    metrics: Path,
    curves: Path,
    calibration: Path,
    quality: list[Path],
    answers: Path,
    neighbours: list[Path],
    links: Path,
    track_metrics: list[Path],
    explanations: Path,
    verdicts: Path,
    figures: list[Path],
    layers: list[int],
    datasets: list[str],
    variants: list[str],
) -> None:
    """Read the tables and draw every file of `figures`; stem and suffix name figure and format.

    `quality` is in the order of `layers`, `neighbours` in that of all but the last layer,
    `track_metrics` in that of `datasets` x `variants`.
    """
    inputs = FigureInputs(
        metrics=registry.read(metrics, registry.METRICS),
        curves=registry.read(curves, registry.CURVES),
        calibration=registry.read(calibration, registry.CALIBRATION),
        quality={
            layer: files.read_object(path) for layer, path in zip(layers, quality, strict=True)
        },
        answers=registry.read(answers, registry.ANSWERS),
        neighbours={
            layer: tables.read_npz(path)
            for layer, path in zip(layers[:-1], neighbours, strict=True)
        },
        track_metrics={
            key: tables.read_parquet(path)
            for key, path in zip(product(datasets, variants), track_metrics, strict=True)
        },
        explanations=registry.read(explanations, registry.EXPLANATIONS),
        verdicts=tables.read_csv(verdicts),
        datasets=datasets,
        firings=registry.read(links, registry.LINKS),
    )
    draw(inputs, figures)


if __name__ == "__main__":
    job.run(main, globals())
