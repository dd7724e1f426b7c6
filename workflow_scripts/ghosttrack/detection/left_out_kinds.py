"""The detector of whole statements, and what it reaches on kinds and facts that it was not fitted on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import statistics
from ghosttrack.activations.pooled_statements import TokenScore
from ghosttrack.detection import abstention, statement_model
from ghosttrack.detection.abstention import Abstention
from ghosttrack.detection.probes import Floats, Ints, probability
from ghosttrack.detection.statement_model import (
    BASES,
    Bools,
    Fit,
    Parts,
    Reduction,
    Scores,
    Statements,
)

# Stated confidences of the table.
CONFIDENCES = (0.7, 0.75, 0.9)
# What is left out of a fit: a kind with its facts, all negated kinds, or all facts about something.
KIND, NEGATED_KINDS, FACTS = "kind", "negated kinds", "facts"
# Name of the row of all kinds, and of all facts.
ALL = "all"
# Columns of `evaluate`.
JUDGED = (
    "left_out",
    "name",
    "row",
    "kind",
    "group",
    "label",
    "log_odds",
    "probability",
    "reliability",
    "unlike",
    "selected",
)
# A kind needs so many statements of each label to be left out, and so many kinds must remain.
LEAST_TEXTS, LEAST_KINDS = 4, 4
# Level of the intervals of an error.
_Z = 1.96


class StatementDetector(NamedTuple):
    """Reduction, linear scores and abstention, fitted on all given kinds."""

    reduction: Reduction
    fit: Fit
    abstention: Abstention

    def scores(self, states: NDArray[np.float32], outputs: Floats) -> Scores:
        """Scores of sentences.

        Args:
            states: (texts, pools, columns) as in `Statements`; outputs: (texts, columns).
        """
        return self.fit.apply(self.reduction.apply(states, outputs))

    def judge(self, states: NDArray[np.float32], outputs: Floats) -> "Judged":
        """Results of sentences; arguments as in `scores`."""
        return self.judged(self.scores(states, outputs))

    def judged(self, scores: Scores) -> "Judged":
        """Results of sentences from their scores."""
        return Judged(
            scores.certainty,
            self.abstention.reliability(scores),
            self.abstention.unlike(scores),
            self.abstention.select(scores),
            scores.nearest,
        )

    def token_score(self, layers: int) -> TokenScore:
        """The base score "mean" as a score of single tokens, whose mean it is.

        Args:
            layers: number of layers in a row of the mean pool.
        """
        pool = BASES.index("mean")
        weight = self.reduction.basis[pool].astype(np.float64) @ self.fit.weight[pool]
        weight = (weight / self.reduction.scale[pool]).reshape(layers, -1)
        shift = (weight * self.reduction.mean[pool].reshape(layers, -1)).sum(axis=1)
        return TokenScore(weight, shift, float(self.fit.intercept[pool]))


class Judged(NamedTuple):
    """Results of texts, each (texts,).

    log_odds: certainty of "hallucinated", above 0: hallucinated; reliability: largest stated
    confidence at which the text is decided, 0: never; unlike: whether it is unlike every tested
    kind; selected: log-odds that the verdict is right; nearest: code of the most similar training
    kind.
    """

    log_odds: Floats
    reliability: Floats
    unlike: Bools
    selected: Floats
    nearest: Ints

    @property
    def probability(self) -> Floats:
        """Calibrated probability of "hallucinated", (texts,), on statements that were left out.

        It is never less sure than the reliability, and never on the other side of the log-odds.
        """
        right = np.maximum(probability(self.selected), self.reliability)
        # So that 0.5, which counts as hallucinated, is on neither side, and log-odds are finite.
        right = np.clip(right, 0.5 + 1e-8, 1 - 1e-8)
        return np.where(self.log_odds > 0, right, 1 - right)

    def of_texts(self, text: Ints) -> "Judged":
        """Results of whole texts from those of their sentences, in the order of the codes.

        As `scored_texts.decisive`: one hallucinated sentence makes a text hallucinated, and a text
        is true if all sentences are.

        Args:
            text: (sentences,) codes; every code from 0 on occurs.
        """
        chosen = []
        for code in range(int(text.max()) + 1):
            rows = np.flatnonzero(text == code)
            false = rows[self.log_odds[rows] > 0]
            best = (
                max(false, key=lambda row: (self.reliability[row], self.log_odds[row]))
                if len(false)
                else min(rows, key=lambda row: (self.reliability[row], -self.log_odds[row]))
            )
            chosen.append(best)
        return Judged._make(values[chosen] for values in self)


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
    """Fit on all statements, and the abstention on groups that are left out in turn.

    A group holds the statements of one kind about one kind of facts. The fit that is tried on it
    sees no statement of its kind, and none about its kind of facts.

    Args:
        given: texts of one sentence.
    """
    reduction = statement_model.reduce(given)
    columns = reduction.apply(given.states, given.outputs)
    parts = statement_model.parts(columns, given)
    group = np.empty(len(given.label), dtype=np.int64)
    rows, found = [], []
    each = statement_model.fits(parts, _foreign(parts))
    for number, fitted in enumerate(each):
        held = (given.kind == parts.kind[number]) & (given.facts == parts.facts[number])
        group[held] = number
        rows.append(np.flatnonzero(held))
        found.append(fitted.apply([x[held] for x in columns]))
    order = np.argsort(np.concatenate(rows))
    left_out = Scores(*(np.concatenate(values)[order] for values in zip(*found, strict=True)))
    return StatementDetector(
        reduction, statement_model.fit(parts), abstention.fit(left_out, given.label, group)
    )


def _foreign(parts: Parts) -> Bools:
    """For each part, those of another kind about other facts, (parts, parts).

    A small table may hold one kind of facts alone, or one kind.
    """
    others = parts.kind[:, None] != parts.kind
    foreign = others & (parts.facts[:, None] != parts.facts)
    others[~others.any(axis=1)] = True
    return np.asarray(np.where(foreign.any(axis=1, keepdims=True), foreign, others))


def evaluate(given: Statements, names: Sequence[str], facts: Sequence[str]) -> pd.DataFrame:
    """Results of every text by detectors that were fitted without its kind, or without its facts.

    Nothing of what is left out is used: not for the components, the scores, or the thresholds. Texts
    of several sentences are never fitted on, and judged sentence by sentence, as `score` does.

    Args:
        names: of the kinds, by code; facts: what facts are about, by code.
    Returns:
        One row per text and left-out part, with the columns JUDGED; row: number of its first
        sentence.
    """
    single = np.bincount(given.text)[given.text] == 1
    negated = [code for code in range(len(names)) if given.negated[given.kind == code].all()]
    cases = [
        *((KIND, name, given.kind == code) for code, name in enumerate(names)),
        (NEGATED_KINDS, ALL, np.isin(given.kind, negated)),
        *((FACTS, name, single & (given.facts == code)) for code, name in enumerate(facts)),
    ]
    found = []
    for left_out, name, held in cases:
        kept = single & ~held & ~np.isin(given.group, given.group[held])
        if not _enough(given, held, kept):
            # A small table may hold the same facts in every kind.
            kept = single & ~held
            if not _enough(given, held, kept):
                continue
        _, first, text = np.unique(given.text[held], return_index=True, return_inverse=True)
        judged = fit(given.rows(kept)).judge(given.states[held], given.outputs[held])
        judged = judged.of_texts(text)
        rows = np.flatnonzero(held)[first]
        found.append(
            pd.DataFrame(
                {
                    "left_out": left_out,
                    "name": name,
                    "row": rows,
                    "kind": given.kind[rows],
                    "group": given.group[rows],
                    "label": given.label[rows],
                    "probability": judged.probability,
                    **judged._asdict(),
                }
            )
        )
    if not found:
        return pd.DataFrame(columns=list(JUDGED))
    return pd.concat(found, ignore_index=True)[list(JUDGED)]


def _enough(given: Statements, held: Bools, kept: Bools) -> bool:
    """Whether statements remain, of both labels and in two kinds, and some are held out."""
    return bool(
        held.any()
        and len(np.unique(given.label[kept])) == 2
        and len(np.unique(given.kind[kept])) > 1
    )


def table(judged: pd.DataFrame, confidences: Sequence[float] = CONFIDENCES) -> pd.DataFrame:
    """What is reached on every left-out kind, on all negated kinds, and on every kind of facts.

    Args:
        judged: as from `evaluate`.
    Returns:
        Columns left_out (KIND, NEGATED_KINDS, FACTS), kind (name of what is left out; ALL: all of
        them together), texts, auroc, ece (of the probability); for each stated confidence C
        coverage_C, error_C with its 95 % interval error_C_low, error_C_high (NaN if nothing is
        decided); unlike: share of the texts that are unlike every tested kind. Intervals respect
        that texts of one block are not independent; those of several kinds also that texts of one
        kind are not.
    """
    rows = []
    for left_out, case in judged.groupby("left_out", sort=False):
        parts = list(case.groupby("name", sort=False))
        if left_out != NEGATED_KINDS:
            parts.append((ALL, case))
        rows += [_row(str(left_out), str(name), part, confidences) for name, part in parts]
    measures = [
        f"{name}_{confidence:g}{end}"
        for confidence in confidences
        for name, end in (("coverage", ""), ("error", ""), ("error", "_low"), ("error", "_high"))
    ]
    columns = ["left_out", "kind", "texts", "auroc", "ece", *measures, "unlike"]
    return pd.DataFrame(rows, columns=columns)


def _row(
    left_out: str, name: str, part: pd.DataFrame, confidences: Sequence[float]
) -> dict[str, object]:
    label, odds = (part[column].to_numpy() for column in ("label", "log_odds"))
    wrong = (odds > 0) != (label == 1)
    row: dict[str, object] = {
        "left_out": left_out,
        "kind": name,
        "texts": len(part),
        "auroc": statistics.auroc(label, odds),
        "ece": statistics.decisions(label, part["probability"].to_numpy()).ece,
    }
    units = [part["group"].to_numpy()]
    if name == ALL:
        units.append(part["kind" if left_out != FACTS else "name"].to_numpy())
    for confidence in confidences:
        decided = part["reliability"].to_numpy() >= confidence
        low, high = error_interval(wrong[decided], [unit[decided] for unit in units])
        row[f"coverage_{confidence:g}"] = float(decided.mean())
        row[f"error_{confidence:g}"] = float(wrong[decided].mean()) if decided.any() else np.nan
        row[f"error_{confidence:g}_low"], row[f"error_{confidence:g}_high"] = low, high
    row["unlike"] = float(part["unlike"].mean())
    return row


def error_interval(wrong: Bools, units: Sequence[NDArray[np.generic]]) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927) with the effective number of verdicts.

    The design effect divides the number (Rao and Scott 1992). It is that of the units which make
    the interval widest.

    Args:
        wrong: (verdicts,).
        units: for each way of grouping the verdicts, (verdicts,) codes of what is not independent.
    """
    if not len(wrong):
        return np.nan, np.nan
    share = float(wrong.mean())
    size = min(_effective(wrong, share, np.unique(unit, return_inverse=True)[1]) for unit in units)
    square = _Z**2 / size
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * np.sqrt(share * (1 - share) / size + square / size / 4)
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def _effective(wrong: Bools, share: float, unit: Ints) -> float:
    count = int(unit.max()) + 1
    # Without a spread of the units' errors, a unit is one verdict.
    if count < 2 or share in (0.0, 1.0):
        return float(count)
    residual = np.bincount(unit, wrong - share)
    variance = count / (count - 1) * float((residual**2).sum()) / len(wrong) ** 2
    effect = variance / (share * (1 - share) / len(wrong))
    return len(wrong) / max(effect, 1.0)


def risk_coverage(judged: pd.DataFrame, points: int = 100) -> pd.DataFrame:
    """Error on the statements of left-out kinds whose verdicts are most certain.

    Returns:
        Columns coverage, error: one row per percent of the statements.
    """
    judged = judged[judged["left_out"] == KIND]
    if not len(judged):
        return pd.DataFrame(columns=["coverage", "error"])
    order = np.argsort(-judged["selected"].to_numpy(), kind="stable")
    wrong = ((judged["log_odds"] > 0) != (judged["label"] == 1)).to_numpy()[order]
    count = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))
    return pd.DataFrame(
        {"coverage": count / len(order), "error": np.cumsum(wrong)[count - 1] / count}
    )
