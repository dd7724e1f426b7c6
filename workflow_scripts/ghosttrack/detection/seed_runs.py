"""The default detector and its controls with other seeds of the folds and of the SAEs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import detectors, probes, splits
from ghosttrack.detection.detectors import DetectorInputs
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.detection.representations import LayerBlocks
from ghosttrack.settings import DetectionSettings
from ghosttrack.statistics import auroc

FOLDS, SAE = "folds", "sae"
# The default detector, its base learners and its controls. Of these only `residual_probe` reads an
# SAE.
SCORE_NAMES = (
    registry.DETECTOR,
    registry.WITHOUT_SAE,
    registry.OUTPUT_REGRESSION,
    "raw_probe_all",
    "centred_probe",
    "residual_probe",
    registry.BILINEAR_PROBE,
)
_KINDS = {"raw_probe_all": "raw", "centred_probe": "centred", "residual_probe": "residual"}


class SeedResult(NamedTuple):
    """AUROC of a score with one seed; `source`: what the seed varies, `folds` or `sae`."""

    source: str
    seed: int
    score: str
    auroc: float


def vary_folds(
    inputs: DetectorInputs,
    labels: Ints,
    cv_groups: NDArray[np.object_],
    detection: DetectionSettings,
    seeds: Sequence[int],
) -> Iterator[SeedResult]:
    """AUROCs in new outer and inner folds for each seed; `cv_groups`: (examples,)."""
    for seed in seeds:
        fold = splits.assign_folds(
            labels, cv_groups, detection.folds, seed, least=detection.inner_folds
        )
        outer_folds = splits.outer_folds(labels, cv_groups, fold, detection.inner_folds, seed)
        for score_name, score in scores(inputs, labels, outer_folds).items():
            yield SeedResult(FOLDS, seed, score_name, auroc(labels, score))


def vary_saes(
    inputs: DetectorInputs,
    blocks: Mapping[int, Mapping[int, LayerBlocks]],
    labels: Ints,
    outer_folds: Sequence[splits.OuterFold],
) -> Iterator[SeedResult]:
    """AUROCs in the same folds for SAEs of each seed; `blocks`: by seed and layer."""
    for seed, layers in blocks.items():
        for score_name, score in scores(
            inputs._replace(layers=layers), labels, outer_folds
        ).items():
            yield SeedResult(SAE, seed, score_name, auroc(labels, score))


def scores(
    inputs: DetectorInputs, labels: Ints, outer_folds: Sequence[splits.OuterFold]
) -> dict[str, Floats]:
    """Out-of-fold log-odds of SCORE_NAMES, (examples,), by the fits of `detectors.train`."""
    result = {score_name: np.full(len(labels), np.nan) for score_name in SCORE_NAMES}
    for outer in outer_folds:
        y = labels[outer.train]
        fits = {
            score_name: probes.joint_ridge(
                [getattr(blocks, kind) for blocks in inputs.layers.values()],
                y,
                outer.inner_fold,
                outer.train,
                outer.test,
            )
            for score_name, kind in _KINDS.items()
        }
        fits[registry.BILINEAR_PROBE] = detectors.bilinear(inputs, y, outer)
        fits[registry.OUTPUT_REGRESSION] = _logistic(inputs.outputs, y, outer)
        for score_name in SCORE_NAMES[:2]:
            fits[score_name] = _logistic(
                detectors.stacked(inputs, detectors.STACKS[score_name], outer, fits), y, outer
            )
        for score_name in SCORE_NAMES:
            result[score_name][outer.test] = fits[score_name].test_log_odds
    return result


def _logistic(table: pd.DataFrame, y: Ints, outer: splits.OuterFold) -> FoldFit:
    x = table.to_numpy(dtype=np.float64)
    return probes.calibrated(probes.logistic(x[outer.train], y, outer.inner_fold, x[outer.test]), y)
