"""The leak audit: clean sets pass, planted leaks are found, and noise fails in grouped folds."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier

from ghosttrack import statistics
from ghosttrack.detection import audit, controls, splits
from ghosttrack.errors import UserError
from ghosttrack.settings import DetectionSettings, EvaluationSettings
from ghosttrack.statistics import auroc

DETECTION = DetectionSettings(folds=4, inner_folds=3, audit="report")
EVALUATION = EvaluationSettings(bootstrap=200)


def minimal_pairs(blocks: int = 24) -> pd.DataFrame:
    """Invented names; "A a" and "B b" are true, "A b" and "B a" are false."""
    rng, rows = np.random.default_rng(0), []
    for number in range(blocks):
        names = ["".join(rng.choice(list("bcdfglmnprst"), 5)) for _ in range(4)]
        for subject in (0, 1):
            for answer in (2, 3):
                prompt = f"The capital of {names[subject]} is"
                rows.append(
                    (
                        f"b{number:02d}",
                        prompt,
                        names[answer],
                        f"{prompt} {names[answer]}.",
                        int(answer - subject != 2),
                    )
                )
    table = pd.DataFrame(rows, columns=["group", "prompt", "answer", "text", "label"])
    return table.assign(id=[f"s{row}" for row in range(len(table))], question="", mode="given")


def embedding(table: pd.DataFrame) -> np.ndarray:
    """A random vector per answer."""
    rng = np.random.default_rng(1)
    vectors = {answer: rng.standard_normal(16) for answer in sorted(set(table["answer"]))}
    return np.array([vectors[answer] for answer in table["answer"]], dtype=np.float32)


def audited(table: pd.DataFrame) -> audit.AuditResult:
    return audit.run(table, embedding(table), "made", False, DETECTION, EVALUATION, seed=0)


def checks(table: pd.DataFrame) -> pd.DataFrame:
    return audited(table).checks.set_index("check")


def test_a_clean_set_passes_and_its_embedding_probe_is_exactly_at_chance() -> None:
    found = audited(minimal_pairs())
    table = found.checks.set_index("check")
    assert table.loc["status", "verdict"] == "pass"
    assert (table.loc[["shared_groups", "shared_texts", "contradictions"], "value"] == 0).all()
    assert table.loc["embedding_probe", "value"] == 0.5
    assert set(found.scores["score"]) == {
        "text_only",
        "answer_only",
        "question_only",
        "length",
        "embedding_probe",
    }
    assert found.scores["value"].notna().all()


def test_a_planted_word_is_a_leak_of_the_text() -> None:
    found = checks(leaky())
    assert found.loc["text_only", "verdict"] == "leak"
    assert "text_only" in found.loc["status", "verdict"]


def leaky() -> pd.DataFrame:
    """Minimal-pair blocks with a word in each text that gives the label away."""
    table = minimal_pairs()
    said = [
        f"{text} {'Surely' if label else 'Perhaps'}."
        for text, label in zip(table["text"], table["label"], strict=True)
    ]
    return table.assign(text=said)


def stopping(table: pd.DataFrame, control: bool = False) -> audit.AuditResult:
    settings = DETECTION.model_copy(update={"audit": "stop"})
    return audit.run(table, embedding(table), "made", control, settings, EVALUATION, seed=0)


def test_a_leak_stops_the_run_with_the_reason_and_the_remedies() -> None:
    with pytest.raises(
        UserError,
        match=r"made: .*text_only reaches an AUROC of 1\.000 .*control: true.*detection\.audit: report",
    ):
        stopping(leaky())


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """AUROC and standard error by control that the audit gets; .5 and 0 for other controls."""
    known: dict[str, tuple[float, float]] = {}

    def scores(examples: pd.DataFrame, *_: Any) -> dict[str, np.ndarray]:
        return {
            name: np.full(len(examples), number) for number, name in enumerate(controls.AUDITED)
        }

    def auroc_of(_: Any, score: np.ndarray) -> float:
        return known.get(controls.AUDITED[int(score[0])], (0.5, 0.0))[0]

    def draws(_labels: Any, matrix: np.ndarray, *_: Any) -> np.ndarray:
        errors = norm.ppf((np.arange(4_000) + 0.5) / 4_000)
        found = (known.get(controls.AUDITED[int(score[0])], (0.5, 0.0)) for score in matrix)
        return np.array([value + error * errors for value, error in found])

    monkeypatch.setattr(audit, "_scores", scores)
    monkeypatch.setattr(statistics, "auroc", auroc_of)
    monkeypatch.setattr(statistics, "bootstrap_auroc", draws)
    return known


# Of 5 checks, 1.96 standard errors below the AUROC is the lower end of the interval at 95 %, and
# 2.58 that of the corrected one, which alone can stop a run.
@pytest.mark.parametrize("check", controls.AUDITED)
@pytest.mark.parametrize(
    ("value", "error", "verdict", "stops"),
    [
        (0.53, 0.02, "pass", False),  # .491
        (0.50, 0.00, "pass", False),
        (0.501, 0.0, "leak", False),
        (0.55, 0.02, "leak", False),  # .511
        (0.57, 0.0225, "leak", False),  # .526, corrected .512
        (0.58, 0.0225, "leak", True),  # .536, corrected .522
        (0.52, 0.00, "leak", False),
        (0.521, 0.0, "leak", True),
    ],
)
def test_a_leak_is_an_interval_above_chance_and_stops_a_run_only_when_it_is_large_after_correction(
    check: str,
    value: float,
    error: float,
    verdict: str,
    stops: bool,
    planted: dict[str, tuple[float, float]],
) -> None:
    planted[check] = value, error
    found = checks(minimal_pairs())
    assert found.loc[check, "verdict"] == verdict
    assert found.loc[check, "low"] == pytest.approx(value - 1.96 * error, abs=1e-3)
    assert found.loc[check, "high"] == pytest.approx(value + 1.96 * error, abs=1e-3)
    assert found.loc["status", "verdict"] == ("pass" if verdict == "pass" else f"leaks: {check}")
    assert found.loc["status", "value"] == (verdict == "leak")
    assert found.loc["below_chance", "verdict"] == "pass"
    if stops:
        with pytest.raises(UserError, match=f"made: .*{check} reaches an AUROC of {value:.3f}"):
            stopping(minimal_pairs())
    else:
        stopping(minimal_pairs())


@pytest.mark.parametrize("check", controls.AUDITED)
@pytest.mark.parametrize(
    ("value", "error", "alarm"),
    [
        (0.38, 0.05, True),  # at most .478
        (0.38, 0.08, False),  # at most .537: a small set
        (0.399, 0.0, True),
        (0.40, 0.00, False),
        (0.45, 0.01, False),  # below chance, and not far
    ],
)
def test_folds_fail_if_an_auroc_is_far_below_chance_and_its_interval_is_below_it(
    check: str, value: float, error: float, alarm: bool, planted: dict[str, tuple[float, float]]
) -> None:
    planted[check] = value, error
    found = checks(minimal_pairs())
    assert found.loc["below_chance", "verdict"] == ("leak" if alarm else "pass")
    assert found.loc["below_chance", "value"] == alarm
    if alarm:
        expected = rf"an AUROC of {value:.3f} is far below chance: .* one group \(group_column\)"
        with pytest.raises(UserError, match=expected):
            stopping(minimal_pairs())
    else:
        stopping(minimal_pairs())


def test_folds_that_split_a_group_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        splits,
        "assign_folds",
        lambda _labels, cv_groups, folds, _seed, **_least: np.arange(len(cv_groups)) % folds,
    )
    with pytest.raises(
        UserError, match=r"made: rows s0 \(fold 0\), s1 \(fold 1\).* share a group across folds"
    ):
        checks(minimal_pairs())


def test_the_table_says_how_many_texts_groups_and_hallucinations_there_are() -> None:
    table = minimal_pairs()
    found = audited(table.drop(index=[3, 7])).checks
    assert set(found["n"]) == {94}
    assert set(found["groups"]) == {24}
    assert set(found["prevalence"]) == {table.drop(index=[3, 7])["label"].mean()}
    assert set(found["control"]) == {False}
    assert set(found["reason"]) == {""}


def test_clean_sets_positive_controls_and_generated_answers_do_not_stop_the_run() -> None:
    assert len(stopping(minimal_pairs()).checks)
    marked = stopping(leaky(), control=True).checks.set_index("check")
    assert marked.loc["text_only", "verdict"] == "leak"
    assert len(stopping(leaky().assign(mode="generated")).checks)


def test_texts_repeated_with_the_other_label_are_flagged_below_chance() -> None:
    table = minimal_pairs()
    # Every subject is in a true and in a false text of different groups, so AUROC is below chance.
    table["text"] = [f"{row % 48:02d}{'x' * (row % 48)} says so {row}." for row in range(96)]
    table["label"] = [int(row // 48 != row % 2) for row in range(96)]
    table["group"] = [f"g{row:02d}" for row in range(96)]
    found = checks(table)
    assert found.loc["text_only", "value"] < 0.4
    assert "below_chance" in found.loc["status", "verdict"]


def test_near_duplicates_in_other_groups_are_counted() -> None:
    table = minimal_pairs()
    words = table.loc[0, "text"].rstrip(".").split()
    table.loc[60, "text"] = " ".join([*words[::-1]]) + "!"
    table.loc[60, "group"] = "b99"
    table.loc[[0, 1, 2, 3], "group"] = "b00"
    found = audited(table)
    fold = found.scores.query("score == 'text_only'")["fold"].to_numpy()
    expected = 2 if fold[0] != fold[60] else 0
    assert found.checks.set_index("check").loc["near_duplicates", "value"] == expected


def test_a_text_with_both_labels_is_a_contradiction_and_stays_in_one_fold() -> None:
    table = minimal_pairs()
    table.loc[50, "text"], table.loc[50, "label"] = table.loc[0, "text"], 1 - table.loc[0, "label"]
    found = audited(table)
    assert found.checks.set_index("check").loc["contradictions", "value"] == 2
    fold = found.scores.query("score == 'text_only'")["fold"].to_numpy()
    assert fold[0] == fold[50]


def test_too_few_examples_of_a_class_are_reported_and_not_trained_on() -> None:
    table = minimal_pairs(12).query("label == 1").reset_index(drop=True)
    found = audited(table)
    assert set(found.checks["verdict"]) == {"not run", "pass"}
    assert found.scores["value"].isna().all()
    assert found.scores["reason"].iloc[0].startswith("0 of 24 texts are true")
    assert (found.scores["fold"] == -1).all()


@pytest.mark.parametrize("contradicted", [True, False])
def test_without_folds_only_contradictions_are_judged(contradicted: bool) -> None:
    table = minimal_pairs(3)
    if contradicted:
        table.loc[5, "text"], table.loc[5, "label"] = (
            table.loc[0, "text"],
            1 - table.loc[0, "label"],
        )
    found = checks(table)
    judged = found[found["verdict"] != "not run"]["verdict"]
    assert judged.to_dict() == {"contradictions": "leak" if contradicted else "pass"}
    assert found.loc["status", "value"] == contradicted
    assert found.loc["contradictions", "value"] == 2 * contradicted


def test_a_limit_takes_whole_groups() -> None:
    table = minimal_pairs()
    settings = DETECTION.model_copy(update={"max_statements": 60})
    found = audit.run(table, embedding(table), "made", False, settings, EVALUATION, seed=0)
    kept = found.scores.query("score == 'length'")
    assert len(kept) == 60
    assert (kept.groupby("group").size() == 4).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_has_a_high_auroc_if_pairs_are_split_and_none_if_groups_are_kept(seed: int) -> None:
    """The original protocol: a true text is in every pair of its question; random pair split."""
    rng = np.random.default_rng(seed)
    questions = np.repeat(np.arange(120), 5)  # five wrong answers to a question, one right one
    noise = rng.standard_normal((120 + len(questions), 26))  # one vector per distinct text
    true, false = questions, 120 + np.arange(len(questions))
    held = rng.random(len(questions)) < 0.2
    text, labels = np.concatenate([true, false]), np.repeat([0, 1], len(questions))
    test = np.concatenate([held, held])
    forest = RandomForestClassifier(50, random_state=0).fit(noise[text[~test]], labels[~test])
    assert auroc(labels[test], forest.predict_proba(noise[text[test]])[:, 1]) > 0.9

    distinct = np.unique(text, return_index=True)[1]
    cv_groups = np.tile(questions, 2)[distinct].astype(str).astype(object)
    labels, score = labels[distinct], np.empty(len(distinct))
    fold = splits.assign_folds(labels, cv_groups, 4, seed)
    splits.check_folds(
        fold,
        cv_groups,
        [str(each) for each in text[distinct]],
        [str(each) for each in distinct],
        "pairs",
    )
    for number in range(4):
        forest = RandomForestClassifier(50, random_state=0).fit(
            noise[text[distinct]][fold != number], labels[fold != number]
        )
        score[fold == number] = forest.predict_proba(noise[text[distinct]][fold == number])[:, 1]
    assert abs(auroc(labels, score) - 0.5) < 0.1
