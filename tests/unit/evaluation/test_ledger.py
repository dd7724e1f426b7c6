"""The ledger: a real gain is established, noise is not, what the text explains is an artefact."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from ghosttrack import scores as registry
from ghosttrack.detection import candidate_scores, detectors
from ghosttrack.errors import UserError
from ghosttrack.evaluation import claims, ledger, scoreboard
from ghosttrack.evaluation.scoreboard import ScopeResult
from ghosttrack.settings import EvaluationSettings
from ghosttrack.tracks import candidate_run

SETTINGS = EvaluationSettings(bootstrap=200)
VARIANTS = ["default", "permuted"]
SCORE_NAMES = [
    "ghosttrack",
    "ghosttrack.without_sae",
    "ghosttrack.with_metrics",
    "ghosttrack.with_metrics.permuted",
    "raw_probe_all",
    "output_regression",
    "output_regression.without_candidates",
    "output_and_words",
    "text_only",
    "length",
    "question_only",
    "answer_logprob_mean",
    "metrics_forest",
    "metrics_forest.permuted",
]


def scores(
    apart: dict[str, float],
    dataset: str = "cities",
    groups: int = 80,
    seed: int = 0,
    mode: str = "given",
) -> pd.DataFrame:
    """A long table: each score is noise plus `apart` for hallucinated texts."""
    rng = np.random.default_rng(seed)
    labels, cv_groups = (
        np.tile([0, 0, 1, 1], groups),
        np.repeat([f"g{n:03d}" for n in range(groups)], 4),
    )
    parts = []
    for score_name in SCORE_NAMES:
        score = 1 / (
            1
            + np.exp(-rng.standard_normal(4 * groups) - apart.get(score_name, 0.0) * (labels - 0.5))
        )
        parts.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "mode": mode,
                    "id": [f"e{row}" for row in range(4 * groups)],
                    "group": cv_groups,
                    "label": labels,
                    "fold": 0,
                    "score": score_name,
                    "family": registry.get(score_name).family,
                    "value": score,
                    "reason": "",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def scope_result(apart: dict[str, float], **how: object) -> ScopeResult:
    control = bool(how.pop("control", False))
    return scoreboard.of_dataset(scores(apart, **how), control, SETTINGS, 0)  # type: ignore[arg-type]


def judged(scope: ScopeResult, claim: str = registry.HEADLINE) -> dict[str, object]:
    table = ledger.judge([scope], VARIANTS, SETTINGS)
    return {str(key): value for key, value in table[table["claim"] == claim].iloc[0].items()}


def test_a_planted_gain_is_established_and_names_the_control_it_beat() -> None:
    row = judged(scope_result({"ghosttrack": 3.0, "answer_logprob_mean": 1.0, "length": 0.3}))
    assert row["verdict"] == registry.ESTABLISHED
    assert row["control"] == "answer_logprob_mean"
    assert (
        0
        < float(str(row["difference_low"]))
        < float(str(row["difference"]))
        < float(str(row["difference_high"]))
    )


def test_what_the_text_explains_is_an_artefact() -> None:
    row = judged(scope_result({"ghosttrack": 2.0, "text_only": 2.2, "answer_logprob_mean": 0.1}))
    assert row["verdict"] == registry.ARTEFACT
    assert row["control"] == "text_only"


def test_a_detector_above_a_leaky_text_is_no_artefact() -> None:
    assert (
        judged(scope_result({"ghosttrack": 4.0, "text_only": 1.0}))["verdict"]
        == registry.ESTABLISHED
    )


def exact(
    auroc: dict[str, float], error: float = 0.0, groups: int = 80, name: str = "exact"
) -> ScopeResult:
    """A data set with these AUROCs.

    Only the detector's draws vary, with the standard error `error`.
    """
    everything = dict.fromkeys(SCORE_NAMES, 0.5) | auroc
    noise = norm.ppf((np.arange(4_000) + 0.5) / 4_000)
    draws = {
        score_name: value + error * noise * score_name.startswith("ghosttrack")
        for score_name, value in everything.items()
    }
    return ScopeResult(name, "given", 4 * groups, groups, 0.5, False, everything, draws, [])


@pytest.mark.parametrize(
    ("groups", "verdict"), [(19, registry.NOT_ESTABLISHED), (20, registry.ESTABLISHED)]
)
def test_as_many_groups_as_the_setting_asks_for_are_enough(groups: int, verdict: str) -> None:
    assert SETTINGS.minimum_groups == 20
    assert judged(exact({"ghosttrack": 0.8}, groups=groups))["verdict"] == verdict


# .96 of a claim's standard errors make the interval; Holm's correction asks for about 3 of them
# here.
@pytest.mark.parametrize(
    ("errors", "verdict", "reason"),
    [
        (5.0, registry.ESTABLISHED, ""),
        (
            2.1,
            registry.NOT_ESTABLISHED,
            "the interval is above 0, but not after correction for the number of claims",
        ),
        (1.8, registry.NOT_ESTABLISHED, "the interval of the difference covers 0"),
        (0.0, registry.NOT_ESTABLISHED, "the interval of the difference covers 0"),
        (-1.8, registry.NOT_ESTABLISHED, "the interval of the difference covers 0"),
        (-2.1, registry.NOT_ESTABLISHED, "the control wins"),
    ],
)
def test_a_verdict_is_that_of_the_interval_and_of_the_corrected_p(
    errors: float, verdict: str, reason: str
) -> None:
    row = judged(exact({"ghosttrack": 0.7 + 0.01 * errors, "answer_logprob_mean": 0.7}, error=0.01))
    assert (row["verdict"], row["reason"]) == (verdict, reason)


def test_no_difference_at_all_is_neither_a_gain_nor_a_loss() -> None:
    row = judged(exact({"ghosttrack": 0.7, "answer_logprob_mean": 0.7}))
    assert row["reason"] == "the interval of the difference covers 0"


@pytest.mark.parametrize(
    ("text", "error", "artefact"),
    [
        (
            0.69,
            0.01,
            True,
        ),  # above chance, and the detector is not above it: .70 less 1.96 times .01
        (0.70, 0.0, True),  # no difference at all
        (0.69, 0.0, False),
        (0.60, 0.01, False),
        (0.50, 0.2, False),  # the text is at chance, whatever the detector is
    ],
)
def test_a_text_explains_a_score_when_it_is_above_chance_and_the_score_is_not_above_it(
    text: float, error: float, artefact: bool
) -> None:
    row = judged(exact({"ghosttrack": 0.7, "text_only": text}, error=error))
    assert (row["verdict"] == registry.ARTEFACT) == artefact


@pytest.mark.parametrize("count", [2, 3])
def test_a_pooled_claim_is_held_against_the_best_of_any_number_of_controls(count: int) -> None:
    control_names = ["length", "question_only", "answer_logprob_mean"][:count]
    sets = [
        exact({control: 0.6 + 0.05 * number}, name=control)
        for number, control in enumerate(control_names)
    ]
    scope = exact({control_names[0]: 0.53})._replace(members=tuple(sets))
    found = ledger.best_of(scope, control_names)
    assert found.auroc == pytest.approx(np.mean([0.6 + 0.05 * number for number in range(count)]))
    assert found.draws == pytest.approx(np.full(4_000, found.auroc))
    assert found.name == "best of each set: " + ", ".join(
        f"{control} 1" for control in sorted(control_names)
    )
    alone = ledger.best_of(scope, control_names[:1])
    assert (alone.name, alone.auroc) == (control_names[0], 0.53)
    same = [exact({"length": 0.6}, name="one"), exact({"length": 0.7}, name="two")]
    assert ledger.best_of(scope._replace(members=tuple(same)), control_names).name == "length"


def test_few_groups_and_positive_controls_establish_nothing() -> None:
    few = judged(scope_result({"ghosttrack": 6.0}, groups=12))
    assert few["verdict"] == registry.NOT_ESTABLISHED
    assert "12 groups, fewer than evaluation.minimum_groups = 20" in str(few["reason"])
    assert (
        judged(scope_result({"ghosttrack": 6.0}, control=True))["verdict"]
        == registry.NOT_ESTABLISHED
    )


def test_a_score_that_was_not_computed_is_named_with_its_reason() -> None:
    table = scores({})
    gone = table["score"].str.startswith("ghosttrack")
    table.loc[gone, "value"], table.loc[gone, "reason"] = np.nan, "3 of 320 texts are true"
    scope = scoreboard.of_dataset(table, False, SETTINGS, 0)
    row = judged(scope)
    assert row["verdict"] == registry.NOT_ESTABLISHED
    assert row["reason"] == "ghosttrack was not run: 3 of 320 texts are true"
    assert scoreboard.pools([scope], 0.95) == []


@pytest.mark.parametrize("missing", ["ghosttrack", "raw_probe_all"])
@pytest.mark.parametrize("reason", ["3 of 320 texts are true", ""])
def test_the_reason_is_that_of_the_missing_score_and_of_no_other(missing: str, reason: str) -> None:
    rows = [
        {"score": score_name, "reason": f"because of {score_name}"} for score_name in SCORE_NAMES
    ]
    rows = [{**row, "reason": reason} if row["score"] == missing else row for row in rows]
    row = judged(
        exact({missing: float("nan")})._replace(rows=rows),
        "the detector beats probes on raw activations",
    )
    assert row["reason"] == f"{missing} was not run" + (f": {reason}" if reason else "")


@pytest.mark.parametrize(
    ("ours", "verdict", "reason"),
    [
        (0.45, registry.NOT_ESTABLISHED, "the score is not above chance"),
        (0.51, registry.NOT_ESTABLISHED, "the score is not above chance"),
        (0.53, registry.ESTABLISHED, ""),
    ],
)
def test_a_score_at_chance_beats_nothing(ours: float, verdict: str, reason: str) -> None:
    row = judged(
        exact({"ghosttrack": ours, "raw_probe_all": 0.3}, error=0.01),
        "the detector beats probes on raw activations",
    )
    assert (row["verdict"], row["reason"]) == (verdict, reason)


def test_an_interval_that_the_groups_do_not_allow_is_not_a_score_that_was_not_run() -> None:
    table = scores({"ghosttrack": 6.0})
    rare = table["group"].isin(["g000", "g001"])
    scope = scoreboard.of_dataset(table[rare | (table["label"] == 0)], False, SETTINGS, 0)
    row = judged(scope, "the detector beats probes on raw activations")
    assert float(str(row["difference"])) > 0
    assert (row["verdict"], row["reason"]) == (registry.NOT_ESTABLISHED, registry.NO_INTERVAL)


def test_one_group_is_no_artefact_and_has_no_interval() -> None:
    scope = scope_result({"text_only": 30.0, "length": -30.0}, groups=1)
    row = judged(scope, "the detector beats probes on raw activations")
    reason = registry.too_few_groups(1, SETTINGS.minimum_groups)
    assert (row["verdict"], row["reason"]) == (registry.NOT_ESTABLISHED, reason)
    assert reason.startswith("1 group, fewer than")
    table = scoreboard.metrics_table([scope]).set_index("score")
    assert table.loc[["text_only", "length"], "auroc"].tolist() == [1.0, 0.0]
    assert table[["auroc_low", "auroc_high"]].isna().all(axis=None)


def test_a_mean_has_no_best_control_if_a_data_set_has_none() -> None:
    table = scores({}, "mine")
    table.loc[table["score"].isin(["length", "text_only"]), "value"] = np.nan
    sets = [scope_result({}), scoreboard.of_dataset(table, False, SETTINGS, 0)]
    found = ledger.best_of(scoreboard.pool("all_given", sets, 0.95), ("length", "text_only"))
    assert np.isnan(found.auroc)
    assert np.isnan(found.draws).all()


def test_the_pooled_claim_is_held_against_the_best_control_of_each_set() -> None:
    sets = [
        scope_result({"ghosttrack": 3.0, "answer_logprob_mean": 1.0}, dataset="one"),
        scope_result({"ghosttrack": 3.0, "length": 1.0}, dataset="two", seed=1),
        scope_result({"ghosttrack": 3.0, "text_only": 3.0}, dataset="leaky", seed=2, control=True),
        scope_result({"ghosttrack": 3.0}, dataset="asked", seed=3, mode="generated"),
    ]
    given, generated = scoreboard.pools(sets, 0.95)
    assert (given.name, generated.name) == ("all_given", "generated")
    assert [member.name for member in given.members] == ["one", "two"]
    assert given.auroc["ghosttrack"] == pytest.approx(
        np.mean([each.auroc["ghosttrack"] for each in sets[:2]])
    )
    row = judged(given)
    assert row["control"] == "best of each set: answer_logprob_mean 1, length 1"
    expected = np.mean([sets[0].auroc["answer_logprob_mean"], sets[1].auroc["length"]])
    assert row["auroc_control"] == pytest.approx(expected)
    narrow, wide = (
        np.diff([line["auroc_low"], line["auroc_high"]]).item()
        for line in (given.rows[0], sets[0].rows[0])
    )
    assert narrow < wide


def test_p_values_are_corrected_within_a_scope() -> None:
    table = ledger.judge([scope_result({"ghosttrack": 1.5})], VARIANTS, SETTINGS)
    assert (table["p_holm"] >= table["p"]).all()
    assert list(table.columns[: len(registry.LEDGER)]) == list(registry.LEDGER)


def test_tracking_is_always_claimed_against_its_nulls_and_itself() -> None:
    sentences = {claim.sentence for claim in claims.claims(["default", "permuted", "untracked"])}
    assert {
        "tracking metrics beat their permuted null",
        "tracking metrics beat their untracked null",
    } <= sentences
    assert "tracking metrics add to the detector" in sentences
    assert "tracking metrics add to the detector more than their untracked null" in sentences
    assert "sparse autoencoders add to the detector" in sentences


def test_scores_and_controls_of_claims_about_candidates_both_know_the_candidates() -> None:
    compared = candidate_scores.score_names(candidate_run.VARIANTS)
    stacks = detectors.stacks(compared)
    for claim in claims.on_candidates():
        for name in (claim.ours, *claim.controls):
            assert name in compared or set(compared) & set(stacks[name]), (claim.sentence, name)


def test_claims_about_candidates_are_tested_only_where_there_are_candidates() -> None:
    plain = ledger.judge([scope_result({})], VARIANTS, SETTINGS)
    sentences = {claim.sentence for claim in claims.on_candidates()}
    assert not sentences & set(plain["claim"])
    table = scores({})
    compared = [
        table[table["score"] == "raw_probe_all"].assign(score=name)
        for name in ("candidate_gradients", "candidate_features", "candidate_features.decoders")
    ]
    scope = scoreboard.of_dataset(pd.concat([table, *compared]), False, SETTINGS, 0)
    judged_rows = ledger.judge([scope], VARIANTS, SETTINGS).set_index("claim")
    row = judged_rows.loc["feature attribution adds more than random decoders"]
    assert (row["difference"], row["verdict"]) == (0, registry.NOT_ESTABLISHED)
    row = judged_rows.loc["candidate tracks beat no links"]
    assert row["reason"] == "candidate_tracks was not run"


def test_random_decoders_of_other_rows_support_no_claim() -> None:
    names = [
        name
        for claim in (*claims.on_candidates(), *claims.on_random_decoders())
        for name in (claim.ours, *claim.controls)
    ]
    strong = {name: 0.6 if name.endswith(".decoders") else 0.9 for name in names}
    scope = exact({**strong, registry.CANDIDATE_LOGIT: 0.6}, error=0.001)
    fair, unfair = (
        ledger.judge([scope], VARIANTS, SETTINGS, null_rows_differ=differ).set_index("claim")
        for differ in (False, True)
    )
    learned = "learned SAEs add more than random decoders"
    assert fair.loc[learned, "verdict"] == registry.ESTABLISHED
    over_null = fair["control"].str.endswith(".decoders")
    assert over_null.sum() == 5
    assert set(unfair.loc[over_null, "verdict"]) == {registry.NOT_ESTABLISHED}
    assert set(unfair.loc[over_null, "reason"]) == {registry.NULL_ROWS_DIFFER}
    assert unfair.loc[over_null, "p_holm"].isna().all()
    assert unfair.loc[learned, "difference"] == pytest.approx(0.3)
    pd.testing.assert_series_equal(
        unfair.loc[~over_null, "verdict"], fair.loc[~over_null, "verdict"]
    )


def test_strict_refuses_a_headline_that_does_not_hold() -> None:
    def pooled(apart: dict[str, float]) -> pd.DataFrame:
        return ledger.judge(scoreboard.pools([scope_result(apart)], 0.95), VARIANTS, SETTINGS)

    ledger.require_headline(pooled({"ghosttrack": 3.0}))
    with pytest.raises(UserError, match=r"strict: true, and .* not established on all_given"):
        ledger.require_headline(pooled({}))
    with pytest.raises(UserError, match="no data set can support"):
        ledger.require_headline(ledger.judge([], VARIANTS, SETTINGS))


def test_tables_have_the_columns_their_readers_expect() -> None:
    table = scores({"ghosttrack": 2.0})
    metrics = scoreboard.metrics_table([scoreboard.of_dataset(table, False, SETTINGS, 0)])
    assert list(metrics.columns[: len(registry.METRICS)]) == list(registry.METRICS)
    untrained = metrics.set_index("score").loc["answer_logprob_mean"]
    assert np.isfinite(untrained["auroc"])
    assert np.isnan(untrained["f1"])
    assert np.isnan(untrained["ece"])
    assert list(scoreboard.curves_table(table).columns) == list(registry.CURVES)
    calibration = scoreboard.calibration_table(table)
    assert list(calibration.columns) == list(registry.CALIBRATION)
    assert "answer_logprob_mean" not in set(calibration["score"])


def test_pure_noise_is_not_established_in_95_of_100_runs() -> None:
    tables_of_noise = [
        ledger.judge([scope_result({}, seed=seed, groups=40)], VARIANTS, SETTINGS)
        for seed in range(600)
    ]
    wrong = sum(bool((table["verdict"] == registry.ESTABLISHED).any()) for table in tables_of_noise)
    assert wrong <= 30  # any claim at all: Holm's correction holds for the whole ledger of a scope


def misled(apart: dict[str, float], name: str, mode: str = "given") -> ScopeResult:
    """A data set of texts after remarks."""
    table = scores(apart, dataset=name, mode=mode)
    extra = [
        table[table["score"] == "ghosttrack"].assign(
            score=score,
            family="output",
            value=table["value"].iloc[0]
            if copy is None
            else table[table["score"] == copy]["value"].to_numpy(),
        )
        for score, copy in (
            (registry.AGREEMENT, None),
            (registry.SAME_PASS, "answer_logprob_mean"),
            (registry.CLOSED_BOOK_AND_CONTEXT, "length"),
            (registry.WITH_AGREEMENT, "ghosttrack"),
            (registry.WITH_CLOSED_BOOK, "ghosttrack"),
        )
    ]
    return scoreboard.of_dataset(pd.concat([table, *extra]), False, SETTINGS, 0)


def test_texts_after_remarks_have_a_pool_and_two_headline_claims_of_their_own() -> None:
    apart = {"ghosttrack": 3.0, "answer_logprob_mean": 1.0, "length": 0.5}
    plain = [scope_result(apart, dataset=name) for name in ("a", "b")]
    after = [misled(apart, name) for name in ("c", "d")]
    generated = misled(apart, "e", mode="generated")
    pools = scoreboard.pools([*plain, *after, generated], 0.95)
    assert {pool.name: [each.name for each in pool.members] for pool in pools} == {
        registry.ALL_GIVEN: ["a", "b"],
        registry.ALL_MISLED: ["c", "d"],
    }
    table = ledger.judge([*plain, *after, *pools], VARIANTS, SETTINGS)
    for claim, control in (
        (registry.BEYOND_PASS, registry.SAME_PASS),
        (registry.BEYOND_CLOSED_BOOK, registry.CLOSED_BOOK_AND_CONTEXT),
    ):
        rows = table[table["claim"] == claim]
        assert rows["dataset"].tolist() == ["c", "d", registry.ALL_MISLED]
        assert set(rows["verdict"]) == {registry.ESTABLISHED}
        assert rows["control"].iloc[-1] in (control, "answer_logprob_mean")


def test_the_headline_claim_after_remarks_knows_the_agreement() -> None:
    apart = {"ghosttrack": 2.0, "answer_logprob_mean": 0.5, "length": 0.5}
    plain, after = scope_result(apart, dataset="a"), misled(apart, "c")
    stronger = misled(apart, "d")
    stronger.auroc[registry.SAME_PASS] = 0.99
    stronger.draws[registry.SAME_PASS] = np.full_like(stronger.draws["ghosttrack"], 0.99)
    table = ledger.judge([plain, after, stronger], VARIANTS, SETTINGS)
    rows = table[table["claim"] == registry.HEADLINE].set_index("dataset")
    assert rows.loc["a", "verdict"] == rows.loc["c", "verdict"] == registry.ESTABLISHED
    assert rows.loc["d", "control"] == registry.SAME_PASS
    assert rows.loc["d", "reason"] == "the control wins"


def test_strict_holds_texts_after_remarks_to_their_headline_claims() -> None:
    apart = {"ghosttrack": 3.0, "answer_logprob_mean": 1.0, "length": 0.5}
    good = [misled(apart, name) for name in ("c", "d")]
    bad = [misled({**apart, "answer_logprob_mean": 3.0}, name) for name in ("c", "d")]
    for scopes, fails in ((good, False), (bad, True)):
        table = ledger.judge(scoreboard.pools(scopes, 0.95), VARIANTS, SETTINGS)
        if fails:
            with pytest.raises(UserError, match=f"'{registry.BEYOND_PASS}' is not established"):
                ledger.require_headline(table)
        else:
            ledger.require_headline(table)
