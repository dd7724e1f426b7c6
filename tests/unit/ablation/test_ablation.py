"""Arms of ablations and tuning: their definition, their scores, and the choice among them."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ghosttrack.ablation import arms, judging, scoring
from ghosttrack.ablation.arms import BASELINE, AblationArm
from ghosttrack.errors import UserError
from ghosttrack.planning.configuration import load
from ghosttrack.report import ablation_page
from ghosttrack.settings import DetectionSettings, EvaluationSettings, Settings
from ghosttrack.tracks.metrics import ORIGINAL
from tests.conftest import ROOT

DETECTION = DetectionSettings(folds=4, inner_folds=3, trees=10)
EVALUATION = EvaluationSettings(bootstrap=200)


def settings(**given: Any) -> Settings:
    return load({"model": "tiny-gpt2", **given}, ROOT / "config")["tiny-gpt2"]


def audited(dataset: str, n: int, folds: int = 4, reason: str = "") -> pd.DataFrame:
    """Two rows per group, one of each class, with folds as in the audited scores."""
    return pd.DataFrame(
        {
            "dataset": dataset,
            "mode": "given",
            "id": [f"{dataset}-{row}" for row in range(n)],
            "group": [f"g{row // 2}" for row in range(n)],
            "label": np.arange(n) % 2,
            "fold": np.arange(n) // 2 % folds,
            "score": "text_only",
            "reason": reason,
        }
    )


def metrics(found: pd.DataFrame, seed: int, strength: float) -> pd.DataFrame:
    """One metric that depends on the label, a constant, noise, and one with an unknown value."""
    rng, n = np.random.default_rng(seed), len(found)
    table = pd.DataFrame(
        {
            "id": found["id"],
            "entropy_mean": strength * found["label"] + rng.standard_normal(n),
            "entropy_max": 1.0,
            "churn_births": rng.standard_normal(n),
            "generation_births": rng.standard_normal(n),
        }
    )
    table.loc[3, "generation_births"] = np.nan
    return table


def scored(dataset: str, seed: int, strength: float, columns: list[str]) -> scoring.ArmScores:
    folds = audited(dataset, 160)
    return scoring.score_dataset(
        dataset, folds, metrics(folds, seed, strength), columns, ["logistic"], DETECTION, 0
    )


def test_every_part_of_the_metrics_is_left_out_once() -> None:
    arms_by_name = arms.ablation_arms(settings())
    assert next(iter(arms_by_name)) == BASELINE
    assert arms_by_name[BASELINE].columns == tuple(ORIGINAL)
    singles = [
        set(ORIGINAL) - set(arm.columns) for arm in arms_by_name.values() if arm.kind == "feature"
    ]
    assert sorted(name for (name,) in singles) == sorted(ORIGINAL)
    left_out = [
        set(ORIGINAL) - set(arm.columns) for arm in arms_by_name.values() if arm.kind == "family"
    ]
    assert set.union(*left_out) == set(ORIGINAL)
    assert sum(map(len, left_out)) == len(ORIGINAL)
    sizes = [len(arm.columns) for arm in arms_by_name.values() if arm.kind == "cumulative"]
    assert sizes == sorted(set(sizes))
    assert len(sizes) == len(arms.FAMILIES)
    assert arms_by_name["single_hypothesis"].changes == {"top_k": 1}
    assert {name for name, arm in arms_by_name.items() if arm.tracked} == {
        *arms.NULLS,
        "single_hypothesis",
    }


def test_each_tuning_arm_changes_one_setting_to_another_value() -> None:
    own = settings(
        tuning={"top_k": [16, 4], "gate_quantile": [0.99], "links": ["identity", "cosine"]}
    )
    arms_by_name = arms.tuning_arms(own)
    changes = {
        name: dict(arm.changes) for name, arm in arms_by_name.items() if arm.kind == "tuning"
    }
    assert changes["top_k_4"] == {"top_k": 4}
    assert "top_k_16" not in changes
    assert changes["gate_quantile_0_99"] == {"gate_quantile": 0.99}
    assert arms_by_name["gate_quantile_0_99"].recompute_links
    assert not arms_by_name["top_k_4"].recompute_links
    assert "links_identity" in changes
    assert "links_cosine" not in changes
    independent = settings(sae={"dictionaries": "independent"})
    assert "links_identity" not in arms.tuning_arms(independent)


def test_names_of_tuning_arms_are_wildcards_of_the_rules() -> None:
    own = settings(tuning={"activation_weight": [0.00001, 0.5]})
    names = list(arms.tuning_arms(own))
    assert "activation_weight_1e_05" in names
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_ablations_need_the_default_variant_and_tuning_the_gated_mode() -> None:
    with pytest.raises(UserError, match=r"tracking\.variants has only nulls"):
        arms.ablation_arms(settings(tracking={"variants": ["untracked"]}))
    with pytest.raises(UserError, match=r"target tuning needs tracking\.mode: gated"):
        arms.tuning_arms(settings(tracking={"mode": "original"}))


def test_metrics_unknown_for_an_example_and_data_sets_without_folds_are_left_out() -> None:
    fits = scored("a", 0, 1.0, ["entropy_mean", "generation_births"]).fits
    assert set(fits["features"]) == {1}
    assert scored("a", 0, 1.0, ["generation_births"]).scores.empty
    folds = audited("a", 8, reason="too few")
    assert scoring.score_dataset(
        "a", folds, metrics(folds, 0, 1.0), ["entropy_mean"], ["logistic"], DETECTION, 0
    ).scores.empty
    with pytest.raises(UserError, match="the metrics lack examples"):
        scoring.score_dataset(
            "a",
            audited("a", 160),
            metrics(folds, 0, 1.0),
            ["entropy_mean"],
            ["logistic"],
            DETECTION,
            0,
        )


def results(**columns: list[str]) -> dict[str, pd.DataFrame]:
    return {
        name: pd.concat(
            [scored(dataset, seed, 1.5, chosen).scores for seed, dataset in enumerate("ab")]
        )
        for name, chosen in columns.items()
    }


def test_an_arm_without_the_planted_metric_loses_and_one_that_changes_nothing_is_void() -> None:
    every = ["entropy_mean", "entropy_max", "churn_births"]
    named = {
        BASELINE: AblationArm(BASELINE, tuple(every)),
        "without_entropy": AblationArm("family", ("churn_births",)),
        "without_entropy_max": AblationArm("feature", ("entropy_mean", "churn_births")),
    }
    scores = results(**{name: list(arm.columns) for name, arm in named.items()})
    table = judging.compare(named, scores, ["b"], [], EVALUATION, 0).set_index(["dataset", "arm"])
    assert table.loc[("a", "without_entropy"), "difference_high"] < 0
    assert not table.loc[("a", "without_entropy"), "void"]
    assert table.loc[("a", "without_entropy_max"), "void"]  # a constant column: the same scores
    assert table.loc[("a", "without_entropy_max"), "difference"] == 0
    assert (
        table.loc[("all_given", BASELINE), "n"] == 160
    )  # the positive control stays out of the mean
    assert len(set(table["output_sha256"])) == 2


def test_texts_after_remarks_have_a_mean_of_their_own() -> None:
    parts = [
        scored(dataset, seed, 1.5, ["entropy_mean"]).scores for seed, dataset in enumerate("abcd")
    ]
    parts[2]["mode"] = parts[3]["mode"] = "generated"
    scores = {BASELINE: pd.concat(parts)}
    named = {BASELINE: AblationArm(BASELINE, ("entropy_mean",))}
    table = judging.compare(named, scores, [], ["b", "d"], EVALUATION, 0).set_index("dataset")
    for name, member in (("all_given", "a"), ("generated", "c"), ("all_misled", "b")):
        assert table.loc[name, "n"] == 160
        assert table.loc[name, "auroc"] == table.loc[member, "auroc"]
    assert len(table) == 4 + 3  # generated answers after remarks are in no mean
    page = ablation_page.render("tiny", "ablations", table.reset_index(), pd.DataFrame(), [], "1.0")
    assert "given texts after remarks" in page


def test_choices_use_only_training_rows() -> None:
    """An arm with the best inner AUROC in every fold loses on test rows, and is still chosen."""
    good, bad = scored("a", 0, 1.5, ["entropy_mean"]), scored("a", 0, 1.5, ["churn_births"])
    fits = {
        BASELINE: good.fits.assign(inner_auroc=0.6),
        "best_inside": bad.fits.assign(inner_auroc=0.7),
    }
    chosen = judging.choose(
        judging.ArmTables({BASELINE: good.scores, "best_inside": bad.scores}, fits)
    )
    assert set(chosen.choices["arm"]) == {"best_inside"}
    pd.testing.assert_frame_equal(chosen.scores, bad.scores)
    fits["best_inside"].loc[fits["best_inside"]["fold"] == 2, "inner_auroc"] = (
        0.6  # a tie goes to the baseline
    )
    chosen = judging.choose(
        judging.ArmTables({BASELINE: good.scores, "best_inside": bad.scores}, fits)
    )
    held = good.scores["fold"] == 2
    assert chosen.scores.loc[held, "value"].tolist() == good.scores.loc[held, "value"].tolist()
    assert chosen.scores.loc[~held, "value"].tolist() == bad.scores.loc[~held, "value"].tolist()


def test_without_folds_there_is_nothing_to_tune_and_the_page_has_no_table() -> None:
    empty = pd.DataFrame(columns=list(scoring.SCORES))
    fits = pd.DataFrame(columns=list(scoring.FITS))
    arm = AblationArm("tuning", ("entropy_mean",), changes={"top_k": 10})
    named = {BASELINE: AblationArm(BASELINE, ("entropy_mean",)), "top_k_10": arm}
    scores = dict.fromkeys(named, empty)
    chosen = judging.choose(judging.ArmTables(scores, dict.fromkeys(named, fits)))
    assert chosen.choices.empty
    assert list(chosen.choices) == list(judging.CHOICES)
    tuned = {**scores, judging.TUNED: chosen.scores}
    table = judging.compare(named, tuned, [], [], EVALUATION, 0)
    assert table.empty
    ablation_page.draw(table)
    page = ablation_page.render("m", "tuning", table, chosen.choices, [], "1.0")
    assert "<table" not in page


def test_the_tuned_scores_are_compared_with_every_null_on_the_page() -> None:
    scores = results(baseline=["entropy_mean"], random=["churn_births"])
    scores[judging.TUNED] = scores[BASELINE]
    named = {
        BASELINE: AblationArm(BASELINE, ("entropy_mean",)),
        "random": AblationArm("tracking", ("entropy_mean",), "random"),
    }
    table = judging.compare(named, scores, [], [], EVALUATION, 0)
    rows = table[table["arm"] == judging.TUNED].set_index(["dataset", "against"])
    assert rows.loc[("all_given", "random"), "difference_low"] > 0
    assert rows.loc[("all_given", BASELINE), "void"]
    choices = pd.DataFrame([("a", "logistic", 0, "<b>", 0.7, 0.6)], columns=list(judging.CHOICES))
    page = ablation_page.render("tiny", "tuning", table, choices, [], "1.0")
    assert "&lt;b&gt;" in page
    assert "void: equal scores" in page
    ablation_page.draw(table)
