"""Draw the figures of one model's run."""

from itertools import product
from pathlib import Path

from ghosttrack import files, frames, job
from ghosttrack.report import tables
from ghosttrack.report.figures import Inputs, draw


def main(
    *,
    metrics: Path,
    curves: Path,
    calibration: Path,
    quality: list[Path],
    answers: Path,
    neighbours: list[Path],
    links: Path,
    signals: list[Path],
    explanations: Path,
    figures: list[Path],
    layers: list[int],
    datasets: list[str],
    variants: list[str],
) -> None:
    """Read the tables and draw every file of `figures`: its stem names the figure, its ending the format.

    `quality` goes with `layers`, `neighbours` with all of them but the last, `signals` with `datasets` x `variants`.
    """
    inputs = Inputs(
        metrics=tables.read(metrics, tables.METRICS),
        curves=tables.read(curves, tables.CURVES),
        calibration=tables.read(calibration, tables.CALIBRATION),
        quality={layer: files.read_json(path) for layer, path in zip(layers, quality, strict=True)},
        answers=tables.read(answers, tables.ANSWERS),
        neighbours={layer: frames.read_npz(path) for layer, path in zip(layers[:-1], neighbours, strict=True)},
        signals={
            key: frames.read_parquet(path) for key, path in zip(product(datasets, variants), signals, strict=True)
        },
        explanations=tables.read(explanations, tables.EXPLANATIONS),
        datasets=datasets,
        firings=tables.read(links, tables.LINKS),
    )
    draw(inputs, figures)


if __name__ == "__main__":
    job.run(main, globals())
