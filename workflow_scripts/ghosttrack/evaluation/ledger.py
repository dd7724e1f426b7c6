"""The claim ledger: AUROC differences to controls, with intervals and verdicts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import controls
from ghosttrack.errors import UserError
from ghosttrack.evaluation.claims import (
    ClaimSpec,
    claims,
    on_candidates,
    on_external,
    on_random_decoders,
    on_remarks,
)
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Difference

COLUMNS = (*registry.LEDGER, "p", "reason")
# Controls that read only the text, by name, in words.
_TEXTS = {
    registry.TEXT_ONLY: "the text alone",
    registry.ANSWER_ONLY: "the answer alone",
    registry.TEXT_PAIR: "the text of question and answer together",
    registry.GENERATOR: "who wrote the answer",
}


class _Comparison(NamedTuple):
    claim: ClaimSpec
    scope: ScopeResult
    control: str
    ours_auroc: float
    control_auroc: float
    gain: Difference
    explained: str
    above_chance: bool


def judge(
    scope_results: Sequence[ScopeResult],
    variants: Sequence[str],
    settings: EvaluationSettings,
    *,
    null_rows_differ: bool = False,
) -> pd.DataFrame:
    """Test every claim in every scope, with Holm correction over the claims of a scope.

    Claims on scores from outside change no other claim: they are corrected over all claims of the
    scope, and the others over the claims of the project alone.
    A claim about a score that only some data sets have is left out of the other scopes.

    Args:
        null_rows_differ: whether random decoders were fitted on other rows than the SAEs. Then no
            claim of a gain over random decoders is tested.
    Returns:
        The ledger: one row per claim and scope, columns COLUMNS.
    """
    rows = []
    for scope in scope_results:
        tested = [
            *claims(variants),
            *(on_remarks() if scope.misled else ()),
            *(on_random_decoders() if registry.NULL_DETECTOR in scope.auroc else ()),
            *(on_candidates() if registry.CANDIDATE_GRADIENTS in scope.auroc else ()),
            *on_external(scope.auroc, scope.misled),
        ]
        compared = [_compare(claim, scope, settings.confidence) for claim in tested]
        unfair = [null_rows_differ and registry.has_random_decoder(row.control) for row in compared]
        corrected = _corrected(
            [
                float("nan") if excluded else row.gain.p
                for row, excluded in zip(compared, unfair, strict=True)
            ],
            [registry.is_external(row.claim.ours) for row in compared],
        )
        rows += [
            _line(row, p, excluded, settings)
            for row, p, excluded in zip(compared, corrected, unfair, strict=True)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _corrected(p: list[float], outside: Sequence[bool]) -> list[float]:
    """Holm-corrected p; `outside`: which claims are on scores from outside this project."""
    over_all = statistics.holm(p)
    over_own = statistics.holm(
        [float("nan") if other else value for value, other in zip(p, outside, strict=True)]
    )
    return [
        every if other else own
        for every, own, other in zip(over_all, over_own, outside, strict=True)
    ]


def _compare(claim: ClaimSpec, scope: ScopeResult, confidence: float) -> _Comparison:
    best = best_of(scope, claim.controls)
    ours = scope.auroc.get(claim.ours, float("nan"))
    our_draws = scope.draws.get(claim.ours, np.full(1, np.nan))
    gain = statistics.difference(ours, best.auroc, our_draws, best.draws, confidence)
    return _Comparison(
        claim,
        scope,
        best.name,
        ours,
        best.auroc,
        gain,
        _text_explains(claim.ours, scope, confidence),
        statistics.interval(our_draws, confidence).low > 0.5,
    )


class BestScore(NamedTuple):
    """The best of several scores in a scope, with its bootstrap AUROCs, (draws,)."""

    name: str
    auroc: float
    draws: statistics.Floats


def best_of(scope: ScopeResult, score_names: Sequence[str]) -> BestScore:
    """The best of `score_names`; in a pooled scope the mean over the best one of each data set.

    The control is selected on the test texts, which favours it: the claim is conservative.
    """
    if scope.members and len(score_names) > 1:
        bests = [best_of(member, score_names) for member in scope.members]
        names = [best.name for best in bests]
        listed = sorted(set(names), key=lambda name: (-names.count(name), name))
        name = (
            listed[0]
            if len(listed) == 1
            else "best of each set: " + ", ".join(f"{each} {names.count(each)}" for each in listed)
        )
        auroc = float(np.mean([best.auroc for best in bests]))
        if not np.isfinite(auroc):  # a data set has none of them, and so no draws
            return BestScore(name, auroc, np.full(1, np.nan))
        return BestScore(name, auroc, np.mean([best.draws for best in bests], axis=0))
    known = [score_name for score_name in score_names if scope.has(score_name)]
    if not known:
        return BestScore(score_names[0], float("nan"), np.full(1, np.nan))
    name = max(known, key=lambda score_name: scope.auroc[score_name])
    return BestScore(name, scope.auroc[name], scope.draws[name])


def _text_explains(ours: str, scope: ScopeResult, confidence: float) -> str:
    """The first control of _TEXTS that is above chance and that `ours` does not beat, or ""."""
    if not scope.has(ours):
        return ""
    for text in filter(scope.has, _TEXTS):
        gain = statistics.difference(
            scope.auroc[ours], scope.auroc[text], scope.draws[ours], scope.draws[text], confidence
        )
        if statistics.interval(scope.draws[text], confidence).low > 0.5 and not gain.low > 0:
            return text
    return ""


def _line(
    row: _Comparison, p_holm: float, unfair: bool, settings: EvaluationSettings
) -> dict[str, Any]:
    verdict, reason = _verdict(row, p_holm, unfair, settings)
    return {
        "claim": row.claim.sentence,
        "dataset": row.scope.name,
        "mode": row.scope.mode,
        "ours": row.claim.ours,
        "control": row.control,
        "auroc_ours": row.ours_auroc,
        "auroc_control": row.control_auroc,
        "difference": row.gain.value,
        "difference_low": row.gain.low,
        "difference_high": row.gain.high,
        "p_holm": p_holm,
        "n": row.scope.n,
        "groups": row.scope.groups,
        "verdict": verdict,
        "p": row.gain.p,
        "reason": reason,
    }


def _verdict(
    row: _Comparison, p_holm: float, unfair: bool, settings: EvaluationSettings
) -> tuple[str, str]:
    gain, groups = row.gain, row.scope.groups
    if not np.isfinite([gain.value, gain.low]).all():
        # Both have an AUROC: there is one group, or too many resamples hold one class alone.
        if np.isfinite(gain.value):
            alone = registry.too_few_groups(groups, settings.minimum_groups)
            return registry.NOT_ESTABLISHED, alone if groups == 1 else registry.NO_INTERVAL
        missing = row.claim.ours if not row.scope.has(row.claim.ours) else row.control
        return registry.NOT_ESTABLISHED, _not_run(row.scope, missing)
    if untrained := _without_folds(row):
        return registry.NOT_ESTABLISHED, _not_run(row.scope, untrained)
    if unfair:
        return registry.NOT_ESTABLISHED, registry.NULL_ROWS_DIFFER
    if row.explained:
        what = _TEXTS[row.explained]
        return registry.ARTEFACT, f"{what} is above chance, and the score is not above it"
    if row.scope.control:
        return registry.NOT_ESTABLISHED, registry.POSITIVE_CONTROL
    if groups < settings.minimum_groups:
        return (registry.NOT_ESTABLISHED, registry.too_few_groups(groups, settings.minimum_groups))
    if gain.low > 0 and not row.above_chance:
        return registry.NOT_ESTABLISHED, registry.NOT_ABOVE_CHANCE
    if gain.low > 0 and p_holm < 1 - settings.confidence:
        return registry.ESTABLISHED, ""
    if gain.low > 0:
        return registry.NOT_ESTABLISHED, registry.NOT_AFTER_CORRECTION
    if gain.high < 0:
        return registry.NOT_ESTABLISHED, "the control wins"
    return registry.NOT_ESTABLISHED, "the interval of the difference covers 0"


def _without_folds(row: _Comparison) -> str:
    """The first trained control of a claim that could not be fitted on the data set, or "".

    Then a score from outside, which needs no folds, would be compared with few of its controls.
    """
    return next(
        (
            name
            for name in row.claim.controls
            if name not in controls.UNTRAINED
            and name in row.scope.auroc
            and not row.scope.has(name)
        ),
        "",
    )


def _not_run(scope: ScopeResult, score_name: str) -> str:
    noted = next((str(line["reason"]) for line in scope.rows if line["score"] == score_name), "")
    return f"{score_name} was not run" + (f": {noted}" if noted else "")


def require_headline(table: pd.DataFrame) -> None:
    """Check that the headline claims are established in every pooled scope (`strict: true`).

    Texts after remarks have two headline claims of their own.

    Raises:
        UserError: it is not, or no data set supports it.
    """
    plain = table["dataset"].isin([registry.ALL_GIVEN, registry.ALL_GENERATED])
    misled = (table["dataset"] == registry.ALL_MISLED) & table["claim"].isin(
        [registry.BEYOND_PASS, registry.BEYOND_CLOSED_BOOK]
    )
    headline = table[(plain & (table["claim"] == registry.HEADLINE)) | misled]
    if headline.empty:
        raise UserError(
            "strict: true, and no data set can support the headline claim: add a data set that "
            "is no positive control, or set strict: false"
        )
    for row in headline[headline["verdict"] != registry.ESTABLISHED].to_dict("records"):
        raise UserError(
            f"strict: true, and {row['claim']!r} is {row['verdict']} on {row['dataset']} "
            f"({row['reason']}): {row['auroc_ours']:.3f} against {row['auroc_control']:.3f} of "
            f"{row['control']}, difference {row['difference_low']:+.3f} to "
            f"{row['difference_high']:+.3f}. Set strict: false to keep the run"
        )
