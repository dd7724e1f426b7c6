"""Controls: they find what the text gives away and nothing else; higher means hallucinated."""

import numpy as np
import pandas as pd
import pytest

from ghosttrack.detection import controls, probes, splits
from ghosttrack.statistics import auroc

PAIRS = [
    (f"Land{chr(65 + number)}ia", f"{chr(65 + number)}{chr(90 - number)}ville")
    for number in range(24)
]


def statements() -> pd.DataFrame:
    """Minimal-pair blocks of two invented countries and their invented capitals."""
    rows = []
    for number in range(0, len(PAIRS), 2):
        for first in (0, 1):
            for second in (0, 1):
                prompt, answer = (
                    f"The capital of {PAIRS[number + first][0]} is",
                    PAIRS[number + second][1],
                )
                rows.append(
                    (
                        f"block-{number:02d}",
                        prompt,
                        answer,
                        f"{prompt} {answer}.",
                        int(first != second),
                    )
                )
    table = pd.DataFrame(rows, columns=["group", "prompt", "answer", "text", "label"])
    return table.assign(id=[f"s{row}" for row in range(len(table))], question="", mode="given")


def scored(examples: pd.DataFrame, control: object) -> tuple[np.ndarray, np.ndarray]:
    """Labels and out-of-fold probabilities of one control."""
    labels = examples["label"].to_numpy(dtype=np.int64)
    cv_groups = splits.make_cv_groups(list(examples["group"]), list(examples["text"]))
    fold = splits.assign_folds(labels, cv_groups, 4, seed=0)
    score = np.empty(len(labels))
    for outer in splits.outer_folds(labels, cv_groups, fold, 3, seed=0):
        score[outer.test] = probes.probability(control(examples, labels, outer).test_log_odds)  # type: ignore[operator]
    return labels, score


@pytest.mark.parametrize("control", [controls.text_only, controls.length])
def test_minimal_pairs_give_a_text_control_nothing(control: object) -> None:
    assert abs(auroc(*scored(statements(), control)) - 0.5) < 0.15


@pytest.mark.parametrize("control", [controls.question_only, controls.answer_only])
def test_question_or_answer_alone_is_exactly_at_chance_in_minimal_pairs(control: object) -> None:
    assert auroc(*scored(statements(), control)) == 0.5


@pytest.mark.parametrize("answer", ["", "7"])
def test_answers_that_are_empty_or_one_character_leave_a_control_at_chance(answer: str) -> None:
    table = statements().assign(answer=answer, question="")
    for control in (controls.answer_only, controls.question_only):
        assert auroc(*scored(table, control)) == 0.5


def test_an_embedding_probe_is_exactly_at_chance_in_minimal_pairs() -> None:
    table = statements()
    rng = np.random.default_rng(0)
    vectors = {answer: rng.standard_normal(40) for answer in sorted(set(table["answer"]))}
    embedding = np.array([vectors[answer] for answer in table["answer"]], dtype=np.float32)
    found = scored(
        table, lambda _, labels, outer: controls.embedding_probe(embedding, labels, outer)
    )
    assert auroc(*found) == 0.5


def test_a_planted_word_is_found_by_the_text_control() -> None:
    table = statements()
    table["text"] = [
        f"{text} {'Surely' if label else 'Perhaps'} so."
        for text, label in zip(table["text"], table["label"], strict=True)
    ]
    assert auroc(*scored(table, controls.text_only)) > 0.95


def test_answers_too_short_or_too_long_are_found_by_the_length_control() -> None:
    table, rng = statements(), np.random.default_rng(0)
    sizes = np.where(table["label"] == 0, 30, rng.choice([5, 90], len(table)))
    table["answer"] = ["x" * size for size in sizes]
    table["text"] = [f"It is {answer}." for answer in table["answer"]]
    table["group"] = [f"g{row}" for row in range(len(table))]
    labels, score = scored(
        table.assign(text=[f"{text}{row:02d}" for row, text in enumerate(table["text"])]),
        controls.length,
    )
    assert auroc(labels, score) > 0.95


def test_the_few_shot_demonstrations_of_a_generated_answer_are_not_visible_text() -> None:
    row = {
        "mode": "generated",
        "text": "A is B.\nC is D",
        "question": "What is C?",
        "prompt": "A is B.\nC is",
        "answer": "D",
    }
    assert controls.visible_text(pd.DataFrame([row])) == ["What is C? D"]
    after = row | {"remark": "Some say E.\n"}
    assert controls.visible_text(pd.DataFrame([after])) == ["Some say E.\nWhat is C? D"]
    without = after | {"question": "", "prompt": "Some say E.\nC is"}
    assert controls.visible_text(pd.DataFrame([without])) == ["Some say E.\nC is D"]
    assert controls.visible_text(pd.DataFrame([after | {"mode": "given"}])) == [row["text"]]


def test_untrained_scores_rise_with_surprise_by_definition() -> None:
    outputs = pd.DataFrame(
        {
            "logprob_sum": [-1.0, -5.0],
            "logprob_mean": [-0.5, -2.0],
            "text_logprob_mean": [-1.0, -2.0],
            "entropy_mean": [0.1, 3.0],
            "margin_mean": [4.0, 0.2],
            "pmi_sum": [3.0, -1.0],
            "pmi_mean": [1.0, -0.2],
            "self_consistency": [0.75, 0.0],
            "semantic_entropy": [0.2, 1.4],
            "p_true": [2.0, -1.0],
            "final_sinkhorn": [-0.1, -4.0],
            "remark_support": [1.0, -1.0],
        }
    )
    for name in controls.UNTRAINED:
        sure, unsure = controls.untrained(name, outputs)
        assert unsure > sure, name
    np.testing.assert_allclose(controls.untrained("perplexity", outputs), np.exp([1.0, 2.0]))


def test_the_text_pair_control_sees_which_question_goes_with_which_answer_and_counts_of_words_do_not() -> (
    None
):
    names = [f"{a}{b}" for a in "bcdfghklmnprst" for b in "aeiou"]
    pairs = [(name, name[::-1] + "ia", 0) for name in names]  # an answer resembles its question
    pairs += [
        (name, names[(place + 7) % len(names)][::-1] + "ia", 1) for place, name in enumerate(names)
    ]
    examples = pd.DataFrame(pairs, columns=["prompt", "answer", "label"]).assign(
        question="",
        relation="r",
        mode="given",
        text=lambda table: table["prompt"] + " " + table["answer"],
    )
    labels, fold = examples["label"].to_numpy(), np.tile(np.arange(len(names)) % 5, 2)
    outer = splits.OuterFold(
        0, np.flatnonzero(fold), np.flatnonzero(fold == 0), np.flatnonzero(fold) % 3
    )
    reached = {
        control: auroc(
            labels[outer.test], getattr(controls, control)(examples, labels, outer).test_log_odds
        )
        for control in ("text_pair", "text_only")
    }
    assert reached["text_pair"] > 0.9
    assert reached["text_only"] < 0.7
