"""The leak audit: how well text and token embeddings alone predict the label."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import controls, detectors, probes, splits
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import as_read, same_text
from ghosttrack.runtime.progress import Progress
from ghosttrack.settings import DetectionSettings, EvaluationSettings
from ghosttrack.statistics import Floats, Ints

PASS, LEAK, NOT_RUN = "pass", "leak", "not run"
# A leak stops a run if the lower bound of its interval, corrected for the number of controls, is
# above this AUROC. A smaller leak is marked in the table, and the ledger establishes no claim that
# it explains.
STOP_ABOVE = 0.52
# An AUROC below this means a wrong split: texts with the same content and the other label are in
# training.
SPLIT_BUG = 0.4
COLUMNS = (*registry.LEAK_AUDIT, "n", "groups", "prevalence", "control", "reason")


class AuditResult(NamedTuple):
    """Out-of-fold scores of the controls with the common folds, and a table of checks."""

    scores: pd.DataFrame
    checks: pd.DataFrame


def run(
    examples: pd.DataFrame,
    embedding: NDArray[Any],
    dataset: str,
    control: bool,
    detection: DetectionSettings,
    evaluation_settings: EvaluationSettings,
    seed: int,
) -> AuditResult:
    """Assign and check the folds, and measure how well each control predicts the label.

    Args:
        examples: examples.parquet.
        embedding: mean token embedding of each answer, (examples, d_model).
        dataset: name of the data set.
        control: whether it is a positive control.
    Raises:
        UserError: two folds share a group or a verbatim text; or, with `detection.audit: stop`, a
            data set of given texts that is no positive control leaks (see STOP_ABOVE) or is far
            below chance (SPLIT_BUG).
    """
    cv_groups = splits.make_cv_groups(list(examples["group"]), as_read(examples))
    selected = splits.sample_cv_groups(cv_groups, detection.max_statements, seed)
    examples, cv_groups, embedding = (
        examples[selected].reset_index(drop=True),
        cv_groups[selected],
        embedding[selected],
    )
    examples = examples.assign(dataset=dataset, group=cv_groups)
    labels = examples["label"].to_numpy(dtype=np.int64)
    reason = splits.infeasible_reason(labels, cv_groups, detection.folds, detection.inner_folds)
    scores = {name: np.full(len(labels), np.nan) for name in controls.audited(examples)}
    fold = np.full(len(labels), -1, dtype=np.int64)
    if not reason:
        fold = splits.assign_folds(
            labels, cv_groups, detection.folds, seed, least=detection.inner_folds
        )
        splits.check_folds(fold, cv_groups, as_read(examples), list(examples["id"]), dataset)
        scores = _scores(
            examples,
            embedding,
            labels,
            splits.outer_folds(labels, cv_groups, fold, detection.inner_folds, seed),
            dataset,
        )
    table = detectors.frame(examples, fold, scores, dict.fromkeys(scores, reason))
    checks, leaks = _checks(
        examples, fold, labels, scores, reason, control, evaluation_settings, seed
    )
    if (
        leaks
        and detection.audit == "stop"
        and not control
        and str(examples["mode"].iloc[0]) == "given"
    ):
        raise UserError(
            f"{dataset}: the text predicts the label without the model: {'; '.join(leaks)}. "
            f"Expected at most {STOP_ABOVE} at the lower bound of the interval. Fix the texts; or "
            "set control: true in the data set's file, so that it supports no claim; or set "
            "detection.audit: report, which only marks the leak"
        )
    return AuditResult(table, checks)


def _scores(
    examples: pd.DataFrame,
    embedding: NDArray[Any],
    labels: Ints,
    outer_folds: list[splits.OuterFold],
    dataset: str,
) -> dict[str, Floats]:
    scores = {name: np.full(len(labels), np.nan) for name in controls.audited(examples)}
    progress = Progress(f"leak audit of {dataset}", len(outer_folds), "folds")
    for outer in outer_folds:
        fits = {
            registry.TEXT_ONLY: controls.text_only(examples, labels, outer),
            registry.ANSWER_ONLY: controls.answer_only(examples, labels, outer),
            registry.QUESTION_ONLY: controls.question_only(examples, labels, outer),
            registry.LENGTH: controls.length(examples, labels, outer),
            registry.EMBEDDING_PROBE: controls.embedding_probe(embedding, labels, outer),
        }
        if registry.GENERATOR in scores:
            fits[registry.GENERATOR] = controls.generator(examples, labels, outer)
        for name, fit in fits.items():
            scores[name][outer.test] = probes.probability(fit.test_log_odds)
        progress.advance(1)
    return scores


def _checks(
    examples: pd.DataFrame,
    fold: Ints,
    labels: Ints,
    scores: Mapping[str, Floats],
    reason: str,
    control: bool,
    settings: EvaluationSettings,
    seed: int,
) -> tuple[pd.DataFrame, list[str]]:
    """The table of checks, and a description of each leak that stops the run."""
    dataset, texts = str(examples["dataset"].iloc[0]), as_read(examples)
    cv_groups = examples["group"].to_numpy(dtype=object)
    rows: list[dict[str, Any]] = []

    def add(
        check: str,
        value: float,
        verdict: str,
        low: float = float("nan"),
        high: float = float("nan"),
    ) -> None:
        rows.append({"check": check, "value": value, "low": low, "high": high, "verdict": verdict})

    counted = {
        "shared_groups": splits.shared_rows(fold, list(cv_groups)),
        "shared_texts": splits.shared_rows(fold, [same_text(text) for text in texts]),
        "near_duplicates": splits.shared_rows(fold, [splits.same_words(text) for text in texts]),
        "contradictions": splits.shared_rows(labels, [same_text(text) for text in texts]),
    }
    for check, shared in counted.items():
        add(
            check,
            len(shared),
            NOT_RUN if reason and check != "contradictions" else LEAK if len(shared) else PASS,
        )
    matrix = np.array(list(scores.values()))
    draws = statistics.bootstrap_auroc(
        labels, matrix, cv_groups, settings.bootstrap, statistics.stream(seed, dataset)
    )
    low_score, large = 1.0, list[str]()
    corrected = 1 - (1 - settings.confidence) / len(scores)
    for check, score, drawn in zip(scores, matrix, draws, strict=True):
        value, (low, high) = (
            statistics.auroc(labels, score),
            statistics.interval(drawn, settings.confidence),
        )
        add(check, value, NOT_RUN if reason else LEAK if low > 0.5 else PASS, low, high)
        low_score = min(low_score, value if high < 0.5 else 1.0)
        if statistics.interval(drawn, corrected).low > STOP_ABOVE:
            large.append(f"{check} reaches an AUROC of {value:.3f} [{low:.3f}, {high:.3f}]")
    below = low_score < SPLIT_BUG
    if below:
        large.append(
            f"an AUROC of {low_score:.3f} is far below chance: texts with the same content and "
            "the other label are in another fold, so give them one group (group_column)"
        )
    add("below_chance", int(below), NOT_RUN if reason else LEAK if below else PASS)
    leaks = [row["check"] for row in rows if row["verdict"] == LEAK]
    add(
        "status", len(leaks), NOT_RUN if reason else f"leaks: {', '.join(leaks)}" if leaks else PASS
    )
    table = pd.DataFrame(rows).assign(
        dataset=dataset,
        mode=str(examples["mode"].iloc[0]),
        n=len(labels),
        groups=len(set(cv_groups)),
        prevalence=float(labels.mean()),
        control=control,
        reason=reason,
    )[list(COLUMNS)]
    return table, large
