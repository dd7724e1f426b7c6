"""Statements are balanced, correct and do not reveal their label; prompts never show evaluated facts."""

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline, make_union

from ghosttrack.errors import UserError
from ghosttrack.facts.examples import COLUMNS, Question, same_text
from ghosttrack.facts.statements import (
    CONTROL_SETS,
    QUESTION_TABLES,
    STRICT_SETS,
    Fact,
    build_questions,
    build_statements,
    demonstrations,
    list_tables,
    load_table,
    look_alike,
    pair_facts,
    swappable,
)

BLOCK_SETS = [table for table in list_tables() if table != "larger_than"]


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return {table: build_statements(table, seed=0) for table in list_tables()}


def fact(subject: str, answer: str, **more: object) -> Fact:
    values: dict[str, object] = {
        "aliases": (),
        "accepted": (),
        "excluded_distractors": (),
        "distractors": (),
        "role": "evaluated",
        **more,
    }
    return Fact("r", subject, answer, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", list_tables())
def test_rows_have_the_columns_and_spans_of_the_contract(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    frame = frames[table]
    assert tuple(frame.columns) == COLUMNS
    assert frame["id"].is_unique
    assert frame["text"].is_unique
    assert set(frame["mode"]) == {"given"}
    assert set(frame["label"]) == {0, 1}
    assert (frame["label"].mean()) == 0.5
    for row in frame.itertuples():
        assert row.text == f"{row.prompt} {row.answer}."
        assert row.text[row.answer_start : row.answer_end] == row.answer
        assert row.text[row.answer_start - 1] == " "
        assert row.text[0].isupper() or row.text[0].isdigit()
        assert "  " not in row.text
        assert (row.answer in row.gold) == (row.label == 0)
        assert row.remark == row.remark_answer == row.wording == ""


@pytest.mark.parametrize("table", BLOCK_SETS)
def test_the_other_candidate_is_the_other_answer_to_the_prompt(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    for (_, prompt), rows in frames[table].groupby(["group", "prompt"]):
        stated, other = rows["answer"].tolist(), rows["other"].tolist()
        assert len(rows) == 2, prompt
        assert stated == other[::-1]
        assert stated[0] != stated[1]


def test_numbers_have_no_other_candidate(frames: dict[str, pd.DataFrame]) -> None:
    assert set(frames["larger_than"]["other"]) == {""}


@pytest.mark.parametrize("table", BLOCK_SETS)
def test_every_subject_and_answer_is_as_often_true_as_false_in_each_block(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    frame = frames[table]
    assert set(Counter(frame["group"]).values()) <= {4, 8}
    for column in ("prompt", "answer"):
        balance: Counter[tuple[str, str]] = Counter()
        for row in frame.itertuples():
            balance[row.group, getattr(row, column)] += 1 if row.label else -1
        assert set(balance.values()) == {0}


@pytest.mark.parametrize("table", STRICT_SETS)
def test_strict_sets_are_large_enough(table: str, frames: dict[str, pd.DataFrame]) -> None:
    assert 250 <= len(frames[table]) <= 800
    assert frames[table]["group"].nunique() >= 45


@pytest.mark.parametrize("table", list_tables())
def test_no_false_statement_is_true_by_any_row_of_its_table(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    true = {
        (each.relation, each.subject, name)
        for each in load_table(table)
        for name in (*each.gold, *each.excluded_distractors)
    }
    frame = frames[table]
    for row in frame[frame["label"] == 1].itertuples():
        relation = row.relation.removesuffix("_reverse")
        pair = (row.subject, row.answer) if relation == row.relation else (row.answer, row.subject)
        assert (relation, *pair) not in true
        if table == "borders_hard":
            assert (relation, *reversed(pair)) not in true


@pytest.mark.parametrize("table", STRICT_SETS)
def test_no_strict_statement_repeats_its_subject_in_its_answer(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    for row in frames[table].itertuples():
        assert not look_alike(str(row.subject), str(row.answer)), row.text


@pytest.mark.parametrize("table", list_tables())
def test_the_same_seed_gives_the_same_statements_and_a_limit_keeps_whole_blocks(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    limited = build_statements(table, seed=0, limit=100)
    pd.testing.assert_frame_equal(limited, frames[table].iloc[: len(limited)])
    assert 90 < len(limited) <= 100
    assert set(limited["group"]).isdisjoint(frames[table]["group"].iloc[len(limited) :])
    assert list(limited["group"]) != sorted(limited["group"])


def test_another_seed_gives_other_blocks(frames: dict[str, pd.DataFrame]) -> None:
    other = build_statements("capitals", seed=1)
    assert set(other["text"]) != set(frames["capitals"]["text"])
    assert set(other.loc[other["label"] == 0, "text"]) & set(frames["capitals"]["text"])


def out_of_fold_auroc(frame: pd.DataFrame) -> tuple[float, float, float]:
    """AUROC and cluster-bootstrap interval of TF-IDF and logistic regression in a grouped 5-fold split."""
    label, scores = frame["label"].to_numpy(), np.zeros(len(frame))
    for train, test in GroupKFold(5).split(frame, label, frame["group"]):
        words = make_union(
            TfidfVectorizer(ngram_range=(1, 2)),
            TfidfVectorizer(analyzer="char", ngram_range=(2, 4)),
        )
        model = make_pipeline(words, LogisticRegression(solver="liblinear"))
        scores[test] = model.fit(frame["text"].iloc[train], label[train]).predict_proba(
            frame["text"].iloc[test]
        )[:, 1]
    rows = [np.asarray(rows) for rows in frame.groupby("group").indices.values()]
    rng = np.random.default_rng(0)
    draws = [
        np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        for _ in range(100)
    ]
    low, high = np.quantile(
        [roc_auc_score(label[draw], scores[draw]) for draw in draws], [0.025, 0.975]
    )
    return float(roc_auc_score(label, scores)), float(low), float(high)


def test_text_alone_does_not_tell_true_from_false_in_strict_sets(
    frames: dict[str, pd.DataFrame],
) -> None:
    """One 95 % interval in twenty misses .5 by chance, so at most one of the nine intervals may."""
    results = {table: out_of_fold_auroc(frames[table]) for table in STRICT_SETS}
    assert all(abs(auroc - 0.5) < 0.03 for auroc, _, _ in results.values()), results
    assert abs(np.mean([auroc for auroc, _, _ in results.values()]) - 0.5) < 0.01, results
    assert sum(not low <= 0.5 <= high for _, low, high in results.values()) <= 1, results


@pytest.mark.parametrize("table", CONTROL_SETS)
def test_text_alone_tells_true_from_false_in_the_positive_controls(
    table: str, frames: dict[str, pd.DataFrame]
) -> None:
    auroc, low, _ = out_of_fold_auroc(frames[table])
    assert low > 0.5, auroc


def test_hard_false_answers_are_close_to_the_truth(frames: dict[str, pd.DataFrame]) -> None:
    distractors = {
        (each.relation, each.subject): each.distractors for each in load_table("borders_hard")
    }
    frame = frames["borders_hard"]
    sides = Counter(
        row.answer in distractors[row.relation, row.subject]
        for row in frame[frame["label"] == 1].itertuples()
    )
    assert sides[True] == (frame["label"] == 1).sum()


def test_a_fact_is_not_paired_where_its_partner_might_be_right() -> None:
    spain = fact("Spain", "Spanish", excluded_distractors=("Basque",))
    assert swappable(spain, fact("Brazil", "Portuguese"), strict=False)
    assert not swappable(spain, fact("Chile", "Spanish"), strict=False)
    assert not swappable(spain, fact("B", "Basque"), strict=False)
    assert not swappable(spain, fact("C", "Catalan", accepted=("Spanish",)), strict=False)
    assert not swappable(spain, fact("P", "Portuguese", distractors=("French",)), strict=False)
    assert not swappable(fact("Spain", "France"), fact("Italy", "Spain"), strict=False)
    assert not swappable(fact("Poland", "A"), fact("B", "Polish"), strict=True)


def test_pairs_use_each_fact_once() -> None:
    facts = [fact(f"subject {number}", f"answer {number}") for number in range(30)]
    pairs = pair_facts(facts, random.Random(0), strict=False)
    assert len(pairs) == 15
    assert len({each for pair in pairs for each in pair}) == 30


def test_an_unknown_table_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"'towns'.*cities.*larger_than"):
        build_statements("towns", seed=0)


def test_a_limit_below_one_block_is_refused() -> None:
    with pytest.raises(UserError, match="less than one block"):
        build_statements("cities", seed=0, limit=3)


def test_questions_are_spread_evenly_and_never_show_their_answer() -> None:
    frame = build_questions(seed=0, count=200)
    assert tuple(frame.columns) == Question._fields
    assert len(frame) == 200
    assert frame["id"].is_unique
    assert frame["group"].is_unique
    counts = frame["relation"].value_counts()
    assert set(counts.index) == set(QUESTION_TABLES)
    assert counts.max() - counts.min() <= 1
    for row in frame.itertuples():
        assert not str(row.prompt).endswith(" ")
        last = str(row.prompt).splitlines()[-1]
        assert str(row.subject).casefold() in last.casefold()
        assert all(name not in last.split() for name in row.gold)


def test_all_questions_can_be_asked_and_more_are_not_invented() -> None:
    frame = build_questions(seed=3, count=10_000)
    assert 500 < len(frame) < 10_000
    assert frame["group"].is_unique
    pd.testing.assert_frame_equal(frame, build_questions(seed=3, count=10_000))


def test_demonstrations_are_in_no_evaluated_set(frames: dict[str, pd.DataFrame]) -> None:
    pairs = {
        (frozenset((row.subject, row.answer)))
        for frame in frames.values()
        for row in frame.itertuples()
    }
    asked = set(build_questions(seed=0, count=10_000)["group"])
    for relation in QUESTION_TABLES:
        examples = demonstrations(relation)
        assert 3 <= len(examples) <= 5
        for example in examples:
            assert f"{relation}: {example.subject}" not in asked
            assert frozenset((example.subject, example.answer)) not in pairs


def test_texts_that_differ_in_case_spacing_or_final_full_stops_are_the_same() -> None:
    assert same_text("Rome is  in\nItaly.") == same_text("ROME is in Italy")
    assert same_text("S\u00e3o Paulo") == same_text("Sa\u0303o Paulo")
    assert same_text("Rome is in Italy!") != same_text("Rome is in Italy")
    assert same_text("Washington D.C.") != same_text("Washington DC")
