"""Out-of-fold scores of one arm: the run's own folds, other metrics."""

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


class Scored(NamedTuple):
    """scores: one row per example and detector, columns SCORES; fits: one per detector and outer fold, columns FITS."""

    scores: pd.DataFrame
    fits: pd.DataFrame


def score_dataset(
    dataset: str,
    audited: pd.DataFrame,
    signals: pd.DataFrame,
    columns: Sequence[str],
    detectors: Sequence[str],
    detection: DetectionSettings,
    seed: int,
) -> Scored:
    """Fit every detector on the metrics `columns` in the audited folds; nothing for a data set that has no folds.

    A metric that some example lacks is left out for all. `inner_auroc` is over the training rows of a fold, each scored by
    a fit without its inner fold: what a choice may look at.

    Args:
        audited: the controls' scores with folds, of the data set; signals: its metrics, one row an example.
    Raises:
        UserError: the metrics are of other examples, or all of them are missing.
    """
    first = audited[audited["score"] == registry.TEXT_ONLY]
    empty = Scored(pd.DataFrame(columns=list(SCORES)), pd.DataFrame(columns=list(FITS)))
    if str(first["reason"].iloc[0]):
        return empty
    known = signals.set_index("id")
    if not set(first["id"]) <= set(known.index):
        raise UserError(
            f"{dataset}: the metrics lack examples that the audit knows: delete the ablations' tables and run again"
        )
    table = known.loc[list(first["id"]), list(columns)].astype(np.float64)
    table = table.loc[:, np.isfinite(table.to_numpy()).all(axis=0)]
    if table.empty:  # such as steps between tokens, where every answer is one token
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
    return Scored(pd.concat(parts, ignore_index=True), pd.DataFrame(fits, columns=list(FITS)))


def score_all(
    audited: Mapping[str, pd.DataFrame],
    signals: Mapping[str, pd.DataFrame],
    columns: Sequence[str],
    detectors: Sequence[str],
    detection: DetectionSettings,
    seed: int,
) -> Scored:
    """`score_dataset` of every data set, one after another."""
    found = [
        score_dataset(name, audited[name], signals[name], columns, detectors, detection, seed)
        for name in audited
    ]
    kept = [each for each in found if len(each.scores)]
    if not kept:
        return found[0]
    return Scored(*(pd.concat(tables, ignore_index=True) for tables in zip(*kept, strict=True)))


def digest(scores: pd.DataFrame) -> str:
    """16 hex digits of the scores of one detector over all data sets: equal for arms that change nothing."""
    lines = zip(scores["dataset"], scores["id"], scores["value"].round(8), strict=True)
    text = "\n".join(f"{dataset} {name} {score:.8f}" for dataset, name, score in lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
