"""CPU cost of the detection phase: of a finished run, and as a data set grows to 20,000 texts.

    PYTHONPATH=workflow_scripts python benchmarks/detection_cost.py phase results/smollm2-135m
    PYTHONPATH=workflow_scripts python benchmarks/detection_cost.py growth results/smollm2-135m \\
        --figure cost.png

`phase` sums the benchmark tables of the run. Its jobs have one thread each, so their wall time is
an upper bound of their CPU time, however busy the machine is. `growth` repeats the texts of a data
set with added noise, in groups of four, and measures the CPU time of one outer fold of every
detector, of the text baseline, and of the confidence intervals (with a tenth of the bootstrap
draws). The reference is n log n: the exponent of CPU time / (n log n) should not exceed 0.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from finished_run import detection_files, layers_of
from measure import show
from threadpoolctl import threadpool_limits

from ghosttrack import statistics
from ghosttrack.detection import controls, detectors, splits
from ghosttrack.detection import run as detection_run
from ghosttrack.detection.representations import LayerBlocks, PromptAnswerPairs
from ghosttrack.report import costs
from ghosttrack.runtime import tables
from ghosttrack.settings import DetectionSettings, EvaluationSettings

PHASE = ("audit_dataset", "train_detectors", "evaluate_detectors", "save_detector")
SIZES = (1248, 2500, 5000, 10_000, 20_000)
PARTS = ("detectors", "text", "intervals")
# Smallest size in the fit of the exponents: below it, the fixed cost matters.
FITTED = 2500
# Standard deviation of the noise, in standard deviations of a column.
NOISE = 0.5


def phase(given: argparse.Namespace) -> None:
    """Wall seconds of the single-threaded jobs of the detection phase."""
    found = {cost.rule: cost for cost in costs.of_jobs(given.results / "benchmarks")}
    rows: list[list[Any]] = [
        [rule, found[rule].jobs, found[rule].wall_seconds, found[rule].longest_seconds]
        for rule in PHASE
    ]
    rows.append(
        [
            "all",
            sum(row[1] for row in rows),
            sum(row[2] for row in rows),
            max(row[3] for row in rows),
        ]
    )
    show(
        f"detection phase of {given.results.name}", ["rule", "jobs", "s", "longest"], rows, "phase"
    )


def read(run: Path, dataset: str) -> tuple[detectors.DetectorInputs, pd.DataFrame]:
    """What the detectors read of one data set, and its texts."""
    folder = run / "examples" / dataset
    layers = layers_of(run)
    examples = tables.read_parquet(run / "datasets" / dataset / "examples.parquet")
    paths = detection_files(folder, run, layers, [run / "signals" / f"{dataset}.default.parquet"])
    outputs = tables.read_parquet(folder / "outputs.parquet")
    return detection_run.read_inputs(
        dataset, examples, outputs, np.arange(len(examples)), paths, layers, ["default"]
    ), examples


def grown(
    inputs: detectors.DetectorInputs, picked: np.ndarray, generator: np.random.Generator
) -> detectors.DetectorInputs:
    """The rows `picked`, each a little different from the others; zeros of a code stay zeros."""

    def noisy(values: Any) -> Any:
        x = np.asarray(values)[picked]
        x += NOISE * x.std(axis=0) * generator.standard_normal(x.shape, dtype=np.float32) * (x != 0)
        return x

    def table(values: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(noisy(values.to_numpy(dtype=np.float64)), columns=values.columns)

    return detectors.DetectorInputs(
        table(inputs.outputs),
        table(inputs.lens),
        {layer: LayerBlocks(*map(noisy, blocks)) for layer, blocks in inputs.layers.items()},
        PromptAnswerPairs(
            [noisy(block.astype(np.float32)) for block in inputs.pairs.prompt],
            noisy(inputs.pairs.words.astype(np.float32)),
            noisy(inputs.pairs.answer.astype(np.float32)),
            inputs.pairs.relation[picked],
        ),
        inputs.texts.iloc[picked].reset_index(drop=True),
        {name: table(values) for name, values in inputs.metrics.items()},
    )


def growth(given: argparse.Namespace) -> None:
    """CPU seconds of one fold against the number of texts, and the exponents."""
    inputs, examples = read(given.results, given.dataset)
    truth = examples["label"].to_numpy(dtype=np.int64)
    detection, draws = DetectionSettings(), EvaluationSettings().bootstrap // 10
    rows = []
    for size in given.sizes:
        generator = np.random.default_rng(size)
        # The four rows of a minimal-pair block stay together.
        picked = (
            4 * generator.integers(len(truth) // 4, size=size // 4)[:, None] + np.arange(4)
        ).ravel()
        made = grown(inputs, picked, generator)
        labels, cv_groups = (
            truth[picked],
            np.repeat(np.arange(size // 4), 4).astype(str).astype(object),
        )
        outer = splits.outer_folds(
            labels,
            cv_groups,
            splits.assign_folds(labels, cv_groups, detection.folds, 0),
            detection.inner_folds,
            0,
        )[0]
        words = np.array(
            [f"w{number}" for number in generator.integers(size, size=size)], dtype=object
        )
        texts = [
            f"{text} {word}"
            for text, word in zip(examples["text"].to_numpy()[picked], words, strict=True)
        ]
        scores = generator.standard_normal((40, size))
        calls: dict[str, Callable[[], Any]] = {
            "detectors": lambda: detectors.train(
                made, labels, [outer], detection, 0, f"{len(labels)} texts"
            ),
            "text": lambda: controls.fit_text(texts, labels, outer),
            "intervals": lambda: statistics.bootstrap_auroc(labels, scores, cv_groups, draws, 0),
        }
        spent = {}
        for name, call in ((name, call) for name, call in calls.items() if name in given.parts):
            before = time.process_time()
            call()
            spent[name] = time.process_time() - before
        rows.append([size, *spent.values(), sum(spent.values())])
        columns = ["texts", *spent, "all"]
        show(f"{given.dataset}: CPU seconds of one fold", columns, rows, "growth")
    table = pd.DataFrame(rows, columns=columns)
    large = table[table["texts"] >= FITTED]
    n = large["texts"].to_numpy(dtype=float)
    exponents = [
        [name, _slope(n, large[name]), _slope(n, large[name].to_numpy() / (n * np.log(n)))]
        for name in columns[1:]
    ]
    show(
        f"exponents from {FITTED} texts on",
        ["part", "of n", "beyond n log n"],
        exponents,
        "exponents",
    )
    if given.figure:
        draw(table, given.figure)


def _slope(n: np.ndarray, cost: Any) -> float:
    return float(np.polyfit(np.log(n), np.log(np.asarray(cost)), 1)[0])


def draw(table: pd.DataFrame, path: Path) -> None:
    """CPU seconds over texts, and n log n through the last point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    n = table["texts"].to_numpy(dtype=float)
    for name in table.columns[1:]:
        axes.loglog(n, table[name], "o-", label=name)
    curve = n * np.log(n)
    axes.loglog(n, curve * table["all"].iloc[-1] / curve[-1], "k:", label="n log n")
    axes.set_xticks(n, [f"{size:,.0f}" for size in n])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("texts")
    axes.set_ylabel("CPU seconds of one fold")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run `phase` or `growth`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_subparsers(required=True)
    for call in (phase, growth):
        part = chosen.add_parser(call.__name__, help=call.__doc__)
        part.set_defaults(call=call)
        part.add_argument("results", type=Path, help="folder of a finished run, results/NAME")
        if call is growth:
            part.add_argument("--dataset", default="us_cities")
            part.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="multiples of 4")
            part.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
            part.add_argument("--figure", type=Path, help="write the figure to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        given.call(given)


if __name__ == "__main__":
    main()
