"""The detector of whole statements, and what it reaches on kinds that it was not fitted on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import statistics
from ghosttrack.detection import abstention, statement_model
from ghosttrack.detection.abstention import Abstention
from ghosttrack.detection.probes import Floats, Ints, probability
from ghosttrack.detection.statement_model import Bools, Fit, Reduction, Scores, Statements

# Stated confidences of the table, and the name of its last row.
CONFIDENCES = (0.75, 0.9)
ALL = "all"
# Columns of `evaluate`.
JUDGED = ("row", "kind", "label", "log_odds", "probability", "reliability", "unlike", "selected")
# A kind needs so many statements of each label to be left out, and so many kinds must remain.
LEAST_TEXTS, LEAST_KINDS = 4, 4
# Level of the Wilson interval of an error.
_Z = 1.96


class StatementDetector(NamedTuple):
    """Reduction, linear scores and abstention, fitted on all given kinds."""

    reduction: Reduction
    fit: Fit
    abstention: Abstention

    def judge(self, states: NDArray[np.float32], outputs: Floats) -> "Judged":
        """Results of texts.

        Args:
            states: (texts, pools, columns) as in `Statements`; outputs: (texts, columns).
        """
        scores = self.fit.apply(self.reduction.apply(states, outputs))
        combined = self.abstention.combine(scores)
        return Judged(
            combined.log_odds,
            self.abstention.reliability(scores),
            self.abstention.unlike(scores),
            self.abstention.select(combined.features),
            scores.nearest,
        )


class Judged(NamedTuple):
    """Results of texts, each (texts,).

    log_odds: of "hallucinated"; reliability: largest stated confidence at which the text is decided,
    0: never; unlike: whether it is unlike every tested kind; selected: log-odds that the verdict is
    right, by the selection model; nearest: number of the most similar training kind.
    """

    log_odds: Floats
    reliability: Floats
    unlike: Bools
    selected: Floats
    nearest: Ints

    @property
    def probability(self) -> Floats:
        """Calibrated probability of "hallucinated", (texts,), on kinds that were left out.

        It is never less sure than the reliability, and never on the other side of the log-odds.
        """
        right = np.maximum(np.maximum(probability(self.selected), self.reliability), 0.5)
        right = np.minimum(right, 1 - 1e-8)  # so that its log-odds are finite
        return np.where(self.log_odds > 0, right, 1 - right)


def infeasible_reason(given: Statements) -> str:
    """Why no detector can be fitted on these statements, or ""."""
    usable = [
        kind
        for kind in np.unique(given.kind)
        if min(np.bincount(given.label[given.kind == kind], minlength=2)) >= LEAST_TEXTS
    ]
    if len(usable) <= LEAST_KINDS:
        return (
            f"{len(usable)} kinds have {LEAST_TEXTS} true and {LEAST_TEXTS} false statements: more "
            f"than {LEAST_KINDS} are needed; raise detection.statements_per_kind"
        )
    return ""


def fit(given: Statements) -> StatementDetector:
    """Fit on all statements, and the abstention on kinds that are left out in turn.

    A fit that is tried on a kind sees no statement of the kind, and none about its facts.
    """
    reduction = statement_model.reduce(given)
    columns = reduction.apply(given.states, given.outputs)
    rows, parts = [], []
    # The fits read reduced columns; to choose rows of the states takes longer than most of a fit.
    described = given._replace(states=given.states[:, :0])
    for kind in np.unique(given.kind):
        held, others = _split(given, kind)
        made = statement_model.fit([x[others] for x in columns], described.rows(others))
        rows.append(np.flatnonzero(held))
        parts.append(made.apply([x[held] for x in columns]))
    order = np.argsort(np.concatenate(rows))
    left_out = Scores(*(np.concatenate(values)[order] for values in zip(*parts, strict=True)))
    return StatementDetector(
        reduction,
        statement_model.fit(columns, given),
        abstention.fit(left_out, given.label, given.negated, given.kind),
    )


def _split(given: Statements, kind: int) -> tuple[Bools, Bools]:
    """Statements of a kind, and those of other kinds about other facts."""
    held = given.kind == kind
    others = ~held & ~np.isin(given.group, given.group[held])
    # A small table may hold the same facts in every kind.
    return held, others if len(np.unique(given.pair_false[others])) == 2 else ~held


def evaluate(given: Statements, names: Sequence[str]) -> pd.DataFrame:
    """Results of every statement by a detector that was fitted without its kind and its facts.

    Nothing of the left-out kind is used: not for the components, the scores, the stack, or the
    thresholds.

    Args:
        names: of the kinds, by code.
    Returns:
        One row per statement, with the columns JUDGED; row: number of the statement.
    """
    parts = []
    for code, name in enumerate(names):
        held, others = _split(given, code)
        judged = fit(given.rows(others)).judge(given.states[held], given.outputs[held])
        parts.append(
            pd.DataFrame(
                {
                    "row": np.flatnonzero(held),
                    "kind": name,
                    "label": given.label[held],
                    "probability": judged.probability,
                    **judged._asdict(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)[list(JUDGED)]


def table(judged: pd.DataFrame, confidences: Sequence[float] = CONFIDENCES) -> pd.DataFrame:
    """What is reached on every left-out kind, and on all of them.

    Args:
        judged: as from `evaluate`.
    Returns:
        Columns kind, texts, auroc, ece (of the probability); for each stated confidence C coverage_C, error_C with its 95 %
        Wilson interval error_C_low, error_C_high (NaN if nothing is decided); unlike: share of the
        texts that are unlike every tested kind.
    """
    rows = []
    parts = [*judged.groupby("kind", sort=False), (ALL, judged)] if len(judged) else []
    for name, part in parts:
        label, odds = (part[column].to_numpy() for column in ("label", "log_odds"))
        wrong = (odds > 0) != (label == 1)
        decisions = statistics.decisions(label, part["probability"].to_numpy())
        row = {
            "kind": name,
            "texts": len(part),
            "auroc": statistics.auroc(label, odds),
            "ece": decisions.ece,
        }
        for confidence in confidences:
            decided = part["reliability"].to_numpy() >= confidence
            low, high = _wilson(int(wrong[decided].sum()), int(decided.sum()))
            row[f"coverage_{confidence:g}"] = float(decided.mean())
            row[f"error_{confidence:g}"] = float(wrong[decided].mean()) if decided.any() else np.nan
            row[f"error_{confidence:g}_low"], row[f"error_{confidence:g}_high"] = low, high
        row["unlike"] = float(part["unlike"].mean())
        rows.append(row)
    measures = [
        f"{name}_{confidence:g}{end}"
        for confidence in confidences
        for name, end in (("coverage", ""), ("error", ""), ("error", "_low"), ("error", "_high"))
    ]
    return pd.DataFrame(rows, columns=["kind", "texts", "auroc", "ece", *measures, "unlike"])


def _wilson(wrong: int, decided: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    if not decided:
        return np.nan, np.nan
    share, square = wrong / decided, _Z**2 / decided
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * np.sqrt(share * (1 - share) / decided + square / decided / 4)
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def risk_coverage(judged: pd.DataFrame, points: int = 100) -> pd.DataFrame:
    """Error on the statements of left-out kinds with the highest selection scores.

    Returns:
        Columns coverage, error: one row per percent of the statements.
    """
    if not len(judged):
        return pd.DataFrame(columns=["coverage", "error"])
    order = np.argsort(-judged["selected"].to_numpy(), kind="stable")
    wrong = ((judged["log_odds"] > 0) != (judged["label"] == 1)).to_numpy()[order]
    count = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))
    return pd.DataFrame(
        {"coverage": count / len(order), "error": np.cumsum(wrong)[count - 1] / count}
    )
