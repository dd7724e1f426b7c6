"""The default detector and its controls again, in folds of other seeds and on autoencoders of other seeds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.detection import detectors, probes, splits
from ghosttrack.detection.detectors import Inputs
from ghosttrack.detection.probes import Fitted, Floats, Ints
from ghosttrack.detection.representations import LayerBlocks
from ghosttrack.settings import DetectionSettings
from ghosttrack.statistics import auroc

FOLDS, SAE = "folds", "sae"
# The default detector, what it stacks, and what it is compared with. `residual_probe` alone sees an SAE.
SIGNALS = (
    detectors.DEFAULT,
    f"{detectors.DEFAULT}.without_sae",
    detectors.OUTPUT,
    "raw_probe_all",
    "centred_probe",
    "residual_probe",
    detectors.BILINEAR,
)
_KINDS = {"raw_probe_all": "raw", "centred_probe": "centred", "residual_probe": "residual"}


class Reached(NamedTuple):
    """AUROC of one signal under one seed; `source`: what the seed decides, `folds` or `sae`."""

    source: str
    seed: int
    signal: str
    auroc: float


def vary_folds(
    inputs: Inputs,
    labels: Ints,
    units: NDArray[np.object_],
    detection: DetectionSettings,
    seeds: Sequence[int],
) -> Iterator[Reached]:
    """Outer and inner folds anew for every seed; everything else as it is."""
    for seed in seeds:
        fold = splits.assign_folds(labels, units, detection.folds, seed)
        rounds = splits.rounds(labels, units, fold, detection.inner_folds, seed)
        for signal, score in scores(inputs, labels, rounds).items():
            yield Reached(FOLDS, seed, signal, auroc(labels, score))


def vary_saes(
    inputs: Inputs,
    blocks: Mapping[int, Mapping[int, LayerBlocks]],
    labels: Ints,
    rounds: Sequence[splits.Round],
) -> Iterator[Reached]:
    """The same folds for every seed of the autoencoders; `blocks`: by seed and layer."""
    for seed, layers in blocks.items():
        for signal, score in scores(inputs._replace(layers=layers), labels, rounds).items():
            yield Reached(SAE, seed, signal, auroc(labels, score))


def scores(inputs: Inputs, labels: Ints, rounds: Sequence[splits.Round]) -> dict[str, Floats]:
    """Out-of-fold log-odds of SIGNALS, each (examples,); the fits are those of `detectors.train`."""
    result = {signal: np.full(len(labels), np.nan) for signal in SIGNALS}
    for step in rounds:
        y = labels[step.train]
        fits = {
            signal: probes.joint_ridge(
                [getattr(blocks, kind) for blocks in inputs.layers.values()],
                y,
                step.inner,
                step.train,
                step.test,
            )
            for signal, kind in _KINDS.items()
        }
        fits[detectors.BILINEAR] = detectors.bilinear(inputs, y, step)
        fits[detectors.OUTPUT] = _logistic(inputs.outputs, y, step)
        for signal in SIGNALS[:2]:
            fits[signal] = _logistic(
                detectors.stacked(inputs, detectors.STACKS[signal], step, fits), y, step
            )
        for signal in SIGNALS:
            result[signal][step.test] = fits[signal].outer
    return result


def _logistic(table: pd.DataFrame, y: Ints, step: splits.Round) -> Fitted:
    x = table.to_numpy(dtype=np.float64)
    return probes.calibrated(probes.logistic(x[step.train], y, step.inner, x[step.test]), y)
