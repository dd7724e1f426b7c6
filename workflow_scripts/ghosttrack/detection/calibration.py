"""Recalibrate the saved detector on a user's own labelled texts.

A strongly regularised logistic regression on a few numbers of each score gives the probability. A
verdict needs a certainty at which left-out texts have few enough errors.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack import statistics
from ghosttrack.detection import probes, splits
from ghosttrack.detection.scored_texts import HALLUCINATED, TRUE, UNSURE, ScoredText
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# 2: columns of whole statements come from the detector of statements alone.
SCHEMA = 2
# Fewest texts: with fewer, a verdict at a confidence of 0.9 is hardly ever possible.
LEAST = 40
FOLDS = 5
# Inverse regularisation strengths on standardised columns; the strongest weights the mean label.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
# Numbers of a score that the regression reads.
COLUMNS = ("log_odds", "output", "probe_largest", "surprise_largest")
# Fewest left-out texts by whose errors a certainty is chosen.
DECIDED = 15
# Standard errors by which the AUROC of left-out texts must exceed 0.5: one in 20 by chance.
_BEYOND_CHANCE = 1.645
# Confidences of the printed table.
CONFIDENCES = (0.75, 0.8, 0.9, 0.95)
_SEED = 0


class Calibration(NamedTuple):
    """A recalibrated detector.

    mean, scale, weight: (columns,) of the regression on standardised columns; intercept: its log-odds
    at the mean.
    certainty, wrong: (texts,) of left-out texts, by falling certainty: the larger of the two
    probabilities, and whether the likelier label is wrong.
    independent: number of groups per text, at most 1.
    informative: whether the AUROC of left-out texts exceeds chance; otherwise there is no verdict.
    about: what it was fitted on and what it reaches; the content of the file.
    """

    name: str
    mean: Floats
    scale: Floats
    weight: Floats
    intercept: float
    certainty: Floats
    wrong: NDArray[np.bool_]
    independent: float
    informative: bool
    about: Mapping[str, Any]

    def probability(self, columns: Floats) -> Floats:
        """Probability that texts are hallucinated, (texts,), from `columns_of`."""
        return probes.probability((columns - self.mean) / self.scale @ self.weight + self.intercept)

    def threshold(self, confidence: float) -> float:
        """Least certainty of a verdict.

        It is the confidence or, if this is larger, the least certainty down to which left-out texts
        have at most a share of 1 - confidence of errors, one more error counted (conformal
        selection: Jin and Candes 2023). Infinite if the texts are too few for this confidence, or
        do not tell the labels apart.
        """
        if confidence <= 0.5:
            return 0.5
        if not self.informative:
            return float("inf")
        number = np.arange(1, len(self.wrong) + 1) * self.independent
        errors = np.cumsum(self.wrong) * self.independent
        # Texts of equal certainty are decided together.
        last = np.append(self.certainty[1:] != self.certainty[:-1], True)
        enough = last & (number >= DECIDED)
        held = np.flatnonzero(enough & (errors + 1 <= (1 - confidence) * (number + 1) + 1e-12))
        return max(confidence, float(self.certainty[held[-1]])) if len(held) else float("inf")

    def apply(self, score: ScoredText, confidence: float) -> ScoredText:
        """The score with the probability and verdict of this calibration."""
        hallucinated = round(float(self.probability(columns_of([score]))[0]), 4)
        certain = max(hallucinated, 1 - hallucinated) >= self.threshold(confidence)
        verdict = HALLUCINATED if hallucinated >= 0.5 else TRUE
        return score._replace(
            probability=hallucinated, verdict=verdict if certain else UNSURE, calibration=self.name
        )


class Point(NamedTuple):
    """Error among the texts with the most certain verdicts; low, high: 95 % interval."""

    coverage: float
    decided: int
    errors: int
    error: float
    low: float
    high: float
    certainty: float


class Reached(NamedTuple):
    """What a calibration reaches on texts that it was not fitted on.

    probability: (texts,); decided: by confidence, (texts,); curve: by number of decided texts.
    """

    probability: Floats
    decided: dict[float, NDArray[np.bool_]]
    curve: list[Point]


def columns_of(scores: Sequence[ScoredText]) -> Floats:
    """The numbers COLUMNS of each score, (texts, columns)."""
    return np.array(
        [
            [
                score.log_odds,
                score.output,
                max((token.probe for token in score.tokens), default=0.0),
                max((token.surprise for token in score.tokens), default=0.0),
            ]
            for score in scores
        ],
        dtype=np.float64,
    ).reshape(-1, len(COLUMNS))


def require_enough(labels: Ints, cv_groups: splits.Names, where: str) -> None:
    """Check that texts suffice for a calibration; the UserError begins with `where`.

    Args:
        labels: (texts,) 1 = hallucinated.
        cv_groups: (texts,) groups that are never split.
    """
    if len(labels) < LEAST:
        raise UserError(
            f"{where}: {len(labels)} labelled texts, at least {LEAST} are needed for a "
            "calibration; label more texts of the same kind"
        )
    for label, name in ((0, "true"), (1, "hallucinated")):
        if not (labels == label).any():
            raise UserError(
                f"{where}: no text has the label {name}; a calibration needs both labels"
            )
    if reason := splits.infeasible_reason(labels, cv_groups, FOLDS, FOLDS):
        raise UserError(
            f"{where}: {reason}; label more texts of other groups, or name the "
            "groups in a column `group`"
        )


def fit(columns: Floats, labels: Ints, cv_groups: splits.Names) -> Calibration:
    """Fit the regression, and the errors of left-out texts by certainty.

    Cross-validation chooses the strength of the regularisation by log loss. A Platt scaling of the
    left-out log-odds undoes what the regularisation takes from them.

    Args:
        columns: from `columns_of`; labels: (texts,) 1 = hallucinated; cv_groups: (texts,).
    """
    folds = min(FOLDS, *(len(set(cv_groups[labels == label])) for label in (0, 1)))
    fold = splits.assign_folds(labels, cv_groups, max(folds, 2), _SEED)
    left_out = {strength: _left_out(columns, labels, fold, strength) for strength in STRENGTHS}
    strength = min(STRENGTHS, key=lambda each: _log_loss(labels, left_out[each]))
    to_odds = probes.platt(left_out[strength], labels)
    if (
        to_odds.slope <= 0
    ):  # the left-out scores rank no better than chance: do not turn them around
        odds = float(np.log((labels.sum() + 1) / ((labels == 0).sum() + 1)))
        to_odds = probes.Platt(0.0, odds)
    standard, weight, intercept = _regression(columns, labels, strength)
    probability = probes.probability(to_odds.apply(left_out[strength]))
    certainty = np.maximum(probability, 1 - probability)
    order = np.argsort(-certainty, kind="stable")
    return Calibration(
        "",
        standard.mean,
        standard.scale,
        to_odds.slope * weight,
        float(to_odds.slope * intercept + to_odds.intercept),
        certainty[order],
        ((probability >= 0.5) != (labels == 1))[order],
        len(set(cv_groups)) / len(labels),
        _beyond_chance(labels, probability, len(set(cv_groups)) / len(labels)),
        {},
    )


def reached(columns: Floats, labels: Ints, cv_groups: splits.Names) -> Reached:
    """Nested cross-validation of `fit`, with its choice of strength and of thresholds inside."""
    fold = splits.assign_folds(labels, cv_groups, FOLDS, _SEED + 1, least=2)
    probability = np.empty(len(labels))
    decided = {confidence: np.zeros(len(labels), dtype=np.bool_) for confidence in CONFIDENCES}
    for number in range(FOLDS):
        test = fold == number
        made = fit(columns[~test], labels[~test], cv_groups[~test])
        probability[test] = made.probability(columns[test])
        certainty = np.maximum(probability[test], 1 - probability[test])
        for confidence in CONFIDENCES:
            decided[confidence][test] = certainty >= made.threshold(confidence)
    return Reached(probability, decided, risk_coverage(labels, probability, cv_groups))


def risk_coverage(labels: Ints, probability: Floats, cv_groups: splits.Names) -> list[Point]:
    """Error and its interval among the most certain texts, for every number of decided texts."""
    certainty = np.maximum(probability, 1 - probability)
    order = np.argsort(-certainty, kind="stable")
    wrong = ((probability >= 0.5) != (labels == 1))[order]
    _, first = np.unique(cv_groups[order].astype(str), return_index=True)
    groups = np.cumsum(np.isin(np.arange(len(order)), first))
    return [
        Point(number / len(labels), number, int(errors), errors / number, *interval, certain)
        for number, (errors, certain, independent) in enumerate(
            zip(np.cumsum(wrong).tolist(), certainty[order].tolist(), groups.tolist(), strict=True),
            start=1,
        )
        for interval in [error_interval(int(errors), number, independent)]
    ]


def error_interval(errors: int, decided: int, groups: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error rate; (0, 1) without a decision.

    `groups`: number of groups of the decided texts. The texts of a group count as one, because they
    may be wrong together.
    """
    if not decided:
        return 0.0, 1.0
    z, rate = 1.959964, errors / decided
    centre, width = (
        rate + z**2 / (2 * groups),
        z * np.sqrt(rate * (1 - rate) / groups + z**2 / (4 * groups**2)),
    )
    shrink = 1 + z**2 / groups
    return max(0.0, float((centre - width) / shrink)), min(1.0, float((centre + width) / shrink))


def save(made: Calibration, about: Mapping[str, Any], path: Path) -> None:
    """Write a calibration; `about` names the detector (`detector_of`) and the texts."""
    content = {
        "schema": SCHEMA,
        "columns": list(COLUMNS),
        **{
            name: np.asarray(getattr(made, name)).tolist()
            for name in ("mean", "scale", "weight", "intercept", "certainty", "wrong")
        },
        "independent": made.independent,
        "informative": made.informative,
        **about,
    }
    files.write_json(path, {**content, "sha256": files.sha256_json(content)})


def load(path: Path, about: Mapping[str, Any]) -> Calibration:
    """Read a calibration of the detector with the description `about` (`Detector.identity`).

    Raises:
        UserError: the file is missing, damaged, of another version, or of another detector.
    """
    if not path.is_file():
        raise UserError(
            f"calibration: there is no file {path}; make one with make calibrate, which names it"
        )
    try:
        content = files.read_json(path)
    except UserError:  # its advice, to delete the file, is for files of a run
        content = None
    sealed = content.pop("sha256", "") if isinstance(content, dict) else ""
    if not sealed or sealed != files.sha256_json(content):
        raise UserError(
            f"calibration: {path} is not a calibration, or was changed after make calibrate wrote "
            "it; run make calibrate again"
        )
    if content["schema"] != SCHEMA or content["columns"] != list(COLUMNS):
        raise UserError(
            f"calibration: {path} was written by another version of GhostTrack; run make "
            "calibrate again"
        )
    if content["detector"] != detector_of(about):
        raise UserError(
            f"calibration: {path} was made for another detector (run {content['run']}), or the "
            "run's detector has changed since; run make calibrate again"
        )
    mean, scale, weight = (
        np.array(content[name], dtype=np.float64) for name in ("mean", "scale", "weight")
    )
    return Calibration(
        path.name,
        mean,
        scale,
        weight,
        float(content["intercept"]),
        np.array(content["certainty"], dtype=np.float64),
        np.array(content["wrong"], dtype=np.bool_),
        float(content["independent"]),
        bool(content["informative"]),
        content,
    )


def detector_of(about: Mapping[str, Any]) -> str:
    """SHA-256 of a detector's description, which holds the digests of its weights."""
    return files.sha256_json(dict(about))


def auroc(labels: Ints, probability: Iterable[float]) -> float:
    """AUROC of probabilities, rounded."""
    return round(statistics.auroc(labels, np.array(list(probability))), 4)


def _beyond_chance(labels: Ints, probability: Floats, independent: float) -> bool:
    """Whether an AUROC exceeds 0.5 by _BEYOND_CHANCE of its standard errors under chance."""
    positive, negative = (independent * float((labels == label).sum()) for label in (1, 0))
    spread = np.sqrt((positive + negative + 1) / (12 * positive * negative))
    return bool(statistics.auroc(labels, probability) > 0.5 + _BEYOND_CHANCE * spread)


def _left_out(columns: Floats, labels: Ints, fold: Ints, strength: float) -> Floats:
    """Log-odds of every text by the regression on the other folds, (texts,)."""
    result = np.empty(len(labels))
    for number in range(int(fold.max()) + 1):
        test = fold == number
        standard, weight, intercept = _regression(columns[~test], labels[~test], strength)
        result[test] = standard.apply(columns[test]) @ weight + intercept
    return result


def _regression(
    columns: Floats, labels: Ints, strength: float
) -> tuple[probes.Standardiser, Floats, float]:
    from sklearn.linear_model import LogisticRegression

    standard = probes.standardise(columns)
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=200).fit(
        standard.apply(columns), labels
    )
    return standard, np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])


def _log_loss(labels: Ints, log_odds: Floats) -> float:
    return float(np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds)).mean())
