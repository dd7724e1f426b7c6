"""Out-of-fold scores of one arm, with the run's folds."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import classifiers, probes, splits
from ghosttrack.errors import UserError
from ghosttrack.settings import DetectionSettings

SCORES = ("dataset", "mode", "id", "group", "label", "fold", "detector", "value")
FITS = ("dataset", "detector", "fold", "inner_auroc", "features")


class ArmScores(NamedTuple):
    """Scores and fits of one arm."""

    scores: pd.DataFrame  # one row per example and detector, columns SCORES
    fits: pd.DataFrame  # one row per detector and outer fold, columns FITS


def score_dataset(
    dataset: str,
    audited: pd.DataFrame,
    metrics: pd.DataFrame,
    columns: Sequence[str],
    detectors: Sequence[str],
    detection: DetectionSettings,
    seed: int,
) -> ArmScores:
    """Fit every detector on the metrics `columns` in the audited folds.

    The result is empty for a data set without folds. A metric that is unknown for some example is
    left out for all. `inner_auroc` is over the training rows of an outer fold, each scored by a fit
    without its inner fold, so it may guide a choice among arms.

    Args:
        audited: scores and folds of the controls of the data set.
        metrics: track metrics of the data set, one row per example.

    Raises:
        UserError: `metrics` lacks examples of `audited`.
    """
    first = audited[audited["score"] == registry.TEXT_ONLY]
    empty = ArmScores(pd.DataFrame(columns=list(SCORES)), pd.DataFrame(columns=list(FITS)))
    if str(first["reason"].iloc[0]):
        return empty
    by_id = metrics.set_index("id")
    if not set(first["id"]) <= set(by_id.index):
        raise UserError(
            f"{dataset}: the metrics lack examples that the audited folds have: delete "
            "results/MODEL/ablations and run again"
        )
    table = by_id.loc[list(first["id"]), list(columns)].astype(np.float64)
    table = table.loc[:, np.isfinite(table.to_numpy()).all(axis=0)]
    if table.empty:  # such as generation metrics, if every answer is one token
        return empty
    labels, fold = (first[name].to_numpy(dtype=np.int64) for name in ("label", "fold"))
    cv_groups, x = first["group"].to_numpy(dtype=object), table.to_numpy()
    options = classifiers.ClassifierOptions(detection.trees, seed)
    scores = {name: np.full(len(labels), np.nan) for name in detectors}
    fits: list[tuple[object, ...]] = []
    for outer in splits.outer_folds(labels, cv_groups, fold, detection.inner_folds, seed):
        found = classifiers.fit_all(
            detectors, x[outer.train], labels[outer.train], outer.inner_fold, x[outer.test], options
        )
        for name, fit in found.items():
            scores[name][outer.test] = probes.probability(fit.test_log_odds)
            fits.append((dataset, name, outer.number, fit.inner_auroc, x.shape[1]))
    head = first[["dataset", "mode", "id", "group", "label", "fold"]].reset_index(drop=True)
    parts = [head.assign(detector=name, value=score) for name, score in scores.items()]
    return ArmScores(pd.concat(parts, ignore_index=True), pd.DataFrame(fits, columns=list(FITS)))


def score_all(
    audited: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, pd.DataFrame],
    columns: Sequence[str],
    detectors: Sequence[str],
    detection: DetectionSettings,
    seed: int,
) -> ArmScores:
    """Run `score_dataset` for every data set."""
    results = [
        score_dataset(name, audited[name], metrics[name], columns, detectors, detection, seed)
        for name in audited
    ]
    nonempty = [result for result in results if len(result.scores)]
    if not nonempty:
        return results[0]
    return ArmScores(
        *(pd.concat(tables, ignore_index=True) for tables in zip(*nonempty, strict=True))
    )


def digest(scores: pd.DataFrame) -> str:
    """16 hex digits of the scores of one detector over all data sets.

    Arms that change nothing have equal digests.
    """
    lines = zip(scores["dataset"], scores["id"], scores["value"].round(8), strict=True)
    text = "\n".join(f"{dataset} {name} {score:.8f}" for dataset, name, score in lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
