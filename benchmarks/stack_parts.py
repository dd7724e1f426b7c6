"""Contribution of each part of the default detector: stacks with fewer or other parts.

    PYTHONPATH=workflow_scripts python benchmarks/stack_parts.py results/smollm2-135m

All stacks are fitted in the folds of the finished run, on the same base scores, so differences come
from the parts. `landmarks` fits the two pair kernels again with weights in the span of a quarter of
the training rows, as happens above 1,024 rows. This table is computed on the evaluated data sets: a
detector chosen by it needs other data sets for its evaluation.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from finished_run import detection_files, layers_of
from measure import show

from ghosttrack import scores as registry
from ghosttrack.detection import controls, detectors, probes, splits
from ghosttrack.detection import run as detection_run
from ghosttrack.detection.detectors import BASE_LEARNERS, PAIRS, DetectorInputs
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.detection.representations import CANDIDATES
from ghosttrack.detection.splits import OuterFold
from ghosttrack.facts import statements
from ghosttrack.runtime import tables
from ghosttrack.scores import BILINEAR_PROBE
from ghosttrack.settings import DetectionSettings
from ghosttrack.statistics import auroc

JOINT = {"centred_probe": "centred", "residual_probe": "residual"}
LENS = "lens"
# Output features of the stack, with or without candidate answers; base learners, among them the logit lens.
OUTPUTS, ALONE = "output features", "output features without candidate answers"
STACKS: dict[str, tuple[str, tuple[str, ...]]] = {
    ALONE: (ALONE, ()),
    f"{ALONE}, two probes": (ALONE, tuple(JOINT)),
    OUTPUTS: (OUTPUTS, ()),
    f"{OUTPUTS}, words": (OUTPUTS, PAIRS),
    f"{OUTPUTS}, two probes": (OUTPUTS, tuple(JOINT)),
    f"{OUTPUTS}, lens": (OUTPUTS, (LENS,)),
    f"{OUTPUTS}, embedding_pair": (OUTPUTS, (registry.EMBEDDING_PAIR,)),
    f"{OUTPUTS}, bilinear probe": (OUTPUTS, (BILINEAR_PROBE,)),
    "the default detector": (OUTPUTS, (LENS, *BASE_LEARNERS)),
    **{
        f"without {part}": (OUTPUTS, tuple(each for each in (LENS, *BASE_LEARNERS) if each != part))
        for part in (LENS, *BASE_LEARNERS)
    },
}
CUT = {BILINEAR_PROBE: "bilinear probe, landmarks", registry.TEXT_PAIR: "text_pair, landmarks"}


def score(inputs: DetectorInputs, labels: Ints, outer_folds: list[OuterFold]) -> dict[str, Floats]:
    """Out-of-fold log-odds of every stack and of the kernels of pairs, each (examples,)."""
    found: dict[str, Floats] = {
        name: np.empty(len(labels)) for name in (*STACKS, *BASE_LEARNERS, *PAIRS, *CUT.values())
    }
    for outer in outer_folds:
        fits = _parts(inputs, labels, outer)
        quarter = len(outer.train) // 4
        with patch.object(probes, "EXACT", quarter), patch.object(probes, "LANDMARKS", quarter):
            fits[CUT[BILINEAR_PROBE]] = detectors.bilinear(inputs, labels[outer.train], outer)
            fits[CUT[registry.TEXT_PAIR]] = controls.text_pair(inputs.texts, labels, outer)
        for name, fit in {**fits, **_stacks(inputs, labels[outer.train], outer, fits)}.items():
            found[name][outer.test] = fit.test_log_odds
    return found


def _parts(inputs: DetectorInputs, labels: Ints, outer: OuterFold) -> dict[str, FoldFit]:
    y = labels[outer.train]
    fits = {
        name: probes.joint_ridge(
            [getattr(blocks, kind) for blocks in inputs.layers.values()],
            y,
            outer.inner_fold,
            outer.train,
            outer.test,
        )
        for name, kind in JOINT.items()
    }
    fits[BILINEAR_PROBE] = detectors.bilinear(inputs, y, outer)
    fits[registry.TEXT_PAIR] = controls.text_pair(inputs.texts, labels, outer)
    fits[registry.EMBEDDING_PAIR] = controls.embedding_pair(inputs.pairs, labels, outer)
    return fits


def _stacks(
    inputs: DetectorInputs, y: Ints, outer: OuterFold, fits: Mapping[str, FoldFit]
) -> dict[str, FoldFit]:
    without_candidates = [name for name in inputs.outputs if not str(name).startswith(CANDIDATES)]
    made = {}
    for name, (outputs, parts) in STACKS.items():
        given = inputs._replace(
            outputs=inputs.outputs if outputs == OUTPUTS else inputs.outputs[without_candidates],
            lens=inputs.lens if LENS in parts else inputs.lens.iloc[:, :0],
        )
        table = detectors.stacked(given, [part for part in parts if part != LENS], outer, fits)
        x = table.to_numpy(dtype=np.float64)
        made[name] = probes.calibrated(
            probes.logistic(x[outer.train], y, outer.inner_fold, x[outer.test]), y
        )
    return made


def of_dataset(
    run: Path, dataset: str, layers: list[int], detection: DetectionSettings, seed: int
) -> dict[str, float]:
    """AUROC of every stack and kernel on one data set of a finished run."""
    folder = run / "examples" / dataset
    examples = tables.read_parquet(run / "datasets" / dataset / "examples.parquet")
    outputs = tables.read_parquet(folder / "outputs.parquet")
    audited = tables.read_parquet(run / "detection" / dataset / "controls.parquet")
    first = audited[audited["score"] == registry.TEXT_ONLY]
    rows = pd.Index(examples["id"]).get_indexer(first["id"])
    labels, fold = (first[column].to_numpy(dtype=np.int64) for column in ("label", "fold"))
    paths = detection_files(folder, run, layers)
    inputs = detection_run.read_inputs(dataset, examples, outputs, rows, paths, layers, [])
    outer_folds = splits.outer_folds(
        labels, first["group"].to_numpy(dtype=object), fold, detection.inner_folds, seed
    )
    return {
        name: auroc(labels, each) for name, each in score(inputs, labels, list(outer_folds)).items()
    }


def main() -> None:
    """Fit, and print a row per stack and a column per strict set, plus their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    parser.add_argument(
        "--datasets", nargs="+", help="data sets of the run; default: the strict ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    given = parser.parse_args()
    layers = layers_of(given.run)
    metrics = registry.read(given.run / "evaluation" / "metrics.csv", registry.METRICS)
    known = [
        str(name)
        for name in dict.fromkeys(metrics["dataset"])
        if (given.run / "examples" / str(name)).is_dir()
    ]
    chosen = (
        given.datasets
        or registry.kinds(metrics, known, list(statements.CONTROL_SETS)).text_controlled
    )
    found = {
        name: of_dataset(given.run, name, layers, DetectionSettings(), given.seed)
        for name in chosen
    }
    rows = [
        [
            part,
            *(f"{found[name][part]:.4f}" for name in chosen),
            f"{np.mean([found[name][part] for name in chosen]):.4f}",
        ]
        for part in found[chosen[0]]
    ]
    show("AUROC by stack", ["stack", *chosen, "mean"], rows)


if __name__ == "__main__":
    main()
