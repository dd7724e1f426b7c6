"""Planted scores from outside: what the ledger says of signal, author, noise and leaks."""

import numpy as np
import pandas as pd
import pytest

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import controls, splits
from ghosttrack.evaluation import judgement, ledger, scoreboard
from ghosttrack.settings import EvaluationSettings

SETTINGS = EvaluationSettings(bootstrap=200)
GROUPS = 60
LABELS = np.tile([0, 1], GROUPS)
ROWS = pd.DataFrame(
    {
        "dataset": "facts",
        "mode": "given",
        "id": [f"t{row}" for row in range(2 * GROUPS)],
        "group": np.repeat([f"g{number}" for number in range(GROUPS)], 2),
        "label": LABELS,
        "fold": np.repeat(np.arange(GROUPS) % 3, 2),
    }
)
BEST, SINGLE = "mine (table) beats its best control", "mine (table) beats its best single control"


def frame(score: str, value: np.ndarray) -> pd.DataFrame:
    return ROWS.assign(score=score, family=registry.get(score).family, value=value, reason="")


def long_table(**scores: np.ndarray) -> pd.DataFrame:
    """The scores of one data set; `mine` is a score of a table."""
    return pd.concat(
        [frame("table.mine" if name == "mine" else name, value) for name, value in scores.items()]
    )


def run_of(rng: np.random.Generator, signal: float = 0.0) -> dict[str, np.ndarray]:
    """A detector and controls: all know the label equally well, plus noise of their own."""
    return {
        name: signal * LABELS + rng.standard_normal(len(LABELS))
        for name in ("ghosttrack", "text_only", "answer_logprob_mean", "output_regression")
    }


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    judged = judgement.judge(table, {}, [], [], SETTINGS, 0)
    own = judged.ledger[judged.ledger["dataset"] == "facts"]
    return dict(zip(own["claim"], own["verdict"], strict=True))


def test_label_plus_noise_is_established() -> None:
    rng = np.random.default_rng(0)
    found = verdicts(long_table(**run_of(rng), mine=3 * LABELS + rng.standard_normal(len(LABELS))))
    assert found[BEST] == found[SINGLE] == registry.ESTABLISHED


def test_noise_is_not_established_in_95_of_100_seeds() -> None:
    """The hardest noise: all controls are noise, too, so the best one is near chance."""
    won = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        table = long_table(**run_of(rng), mine=rng.standard_normal(len(LABELS)))
        scope = scoreboard.of_dataset(table, False, SETTINGS, seed)
        judged = ledger.judge([scope], [], SETTINGS)
        won += (judged.loc[judged["claim"] == BEST, "verdict"] == registry.ESTABLISHED).any()
    assert won <= 5


def test_what_a_control_knows_as_well_is_not_established() -> None:
    rng = np.random.default_rng(1)
    table = run_of(rng, signal=2.0) | {"text_only": rng.standard_normal(len(LABELS))}
    found = verdicts(long_table(**table, mine=table["output_regression"] + 0.01 * LABELS))
    assert found[BEST] == registry.NOT_ESTABLISHED


@pytest.mark.parametrize("leak", [0.75, 0.9])
def test_who_wrote_the_text_is_an_artefact_where_the_words_show_it(leak: float) -> None:
    """Two authors: one errs more often, and each has words of its own."""
    rng = np.random.default_rng(2)
    author = np.where(rng.random(len(LABELS)) < leak, LABELS, 1 - LABELS)
    words = (("indeed", "thus", "hence"), ("well", "so", "okay"))
    texts = [
        f"{rng.choice(words[who])} {rng.integers(10**6)} {rng.choice(words[who])}" for who in author
    ]
    fold = ROWS["fold"].to_numpy(np.int64)
    groups = ROWS["group"].to_numpy(dtype=object)
    text_only = np.full(len(LABELS), np.nan)
    for outer in splits.outer_folds(LABELS, groups, fold, 3, 0):
        text_only[outer.test] = controls.fit_text(texts, LABELS, outer).test_log_odds
    table = run_of(rng) | {"text_only": text_only}
    found = verdicts(long_table(**table, mine=author.astype(np.float64)))
    assert found[BEST] == registry.ARTEFACT


def test_scores_from_outside_change_no_other_claim() -> None:
    rng = np.random.default_rng(3)
    table = run_of(rng, signal=1.0)
    before = judgement.judge(long_table(**table), {}, [], [], SETTINGS, 0)
    after = judgement.judge(
        long_table(**table, mine=rng.standard_normal(len(LABELS))), {}, [], [], SETTINGS, 0
    )
    own = after.ledger["ours"] == "table.mine"
    kept = after.ledger[~own].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before.ledger)
    assert own.sum() == 4  # two claims on the data set, and two on the mean over data sets
    rows = after.metrics[after.metrics["score"] == "table.mine"]
    assert list(rows["family"]) == ["external"] * 2
    assert rows["auroc_low"].notna().all()
    assert rows["f1"].isna().all()  # a score from outside need not be a probability


def test_twenty_scores_from_outside_leave_a_verdict_and_are_corrected_together() -> None:
    """In one family with these scores, the detector would lose its verdict."""
    rng = np.random.default_rng(9)
    table = run_of(rng) | {"ghosttrack": LABELS + rng.standard_normal(len(LABELS))}
    many = {f"table.big.n{n}": LABELS + rng.standard_normal(len(LABELS)) for n in range(20)}
    before, after = (
        judgement.judge(long_table(**scores), {}, [], [], SETTINGS, 0).ledger
        for scores in (table, table | many)
    )
    own = after["ours"].map(registry.is_external)
    pd.testing.assert_frame_equal(after[~own].reset_index(drop=True), before)
    facts = after[(after["dataset"] == "facts") & after["p"].notna()]
    held = (facts["ours"] == "ghosttrack") & (facts["verdict"] == registry.ESTABLISHED)
    assert held.any()
    assert (np.array(statistics.holm(list(facts["p"])))[held.to_numpy()] > 0.05).all()
    outside = facts[facts["ours"].map(registry.is_external)]
    smallest = outside.loc[outside["p"].idxmin()]
    rank = int((facts["p"] < smallest["p"]).sum())
    assert smallest["p_holm"] >= smallest["p"] * (len(facts) - rank)


def test_a_score_is_not_established_where_its_trained_controls_could_not_be_fitted() -> None:
    """A table needs no folds, but the controls do: here one class has too few groups."""
    rng = np.random.default_rng(5)
    reason = "9 of 120 texts are hallucinated, in 9 groups: 10 groups are needed for 5 folds"
    table = run_of(rng) | {"mine": 4 * LABELS + rng.standard_normal(len(LABELS))}
    complete = long_table(**table)
    assert verdicts(complete)[BEST] == registry.ESTABLISHED
    trained = complete["score"].isin(["ghosttrack", "text_only", "output_regression"])
    unfitted = complete.assign(
        value=complete["value"].where(~trained), reason=np.where(trained, reason, "")
    )
    judged = judgement.judge(unfitted, {}, [], [], SETTINGS, 0).ledger
    own = judged[judged["ours"] == "table.mine"]
    assert list(own["verdict"]) == [registry.NOT_ESTABLISHED] * 2
    assert set(own["reason"]) == {f"text_only was not run: {reason}"}


def test_a_mean_over_data_sets_needs_a_score_on_each() -> None:
    rng = np.random.default_rng(4)
    first = long_table(**run_of(rng), mine=rng.standard_normal(len(LABELS)))
    second = long_table(**run_of(rng)).assign(dataset="others")
    judged = judgement.judge(pd.concat([first, second]), {}, [], [], SETTINGS, 0)
    assert list(judged.ledger.loc[judged.ledger["ours"] == "table.mine", "dataset"]) == [
        "facts",
        "facts",
    ]


def test_names_of_scores_from_outside_need_no_entry_in_the_registry() -> None:
    assert registry.get("table.a.b").label == "a.b (table)"
    assert "outside the folds" in registry.get("table.a").meaning
    assert registry.get("class.a.decoders").label == "a.decoders (class)"
    assert not registry.has_random_decoder("class.a.decoders")
    assert registry.label("best of each set: table.a 2, pmi 1") == (
        "best of each set: a (table) 2, PMI 1"
    )
