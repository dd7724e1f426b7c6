"""Conflict sets: their words, remarks and agreement say nothing about the label."""

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from ghosttrack.errors import UserError
from ghosttrack.facts import remarks, statements
from ghosttrack.facts.answer_words import normalise
from ghosttrack.inputs import datasets
from ghosttrack.settings import ConflictSettings, DatasetSettings

TABLES = [table for table in statements.STRICT_SETS if table not in ("currencies",)]


def load(table: str = "capitals", **more: object) -> pd.DataFrame:
    return datasets.load_examples(
        DatasetSettings.model_validate({"source": "facts", "table": table, "conflict": {}, **more}),
        0,
    )


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return load()


def test_the_settings_name_every_wording() -> None:
    field = ConflictSettings.model_fields["wordings"]
    assert list(get_args(get_args(field.annotation)[0])) == list(remarks.WORDINGS)
    assert field.default == list(remarks.WORDINGS)


@pytest.mark.parametrize("table", TABLES)
def test_every_statement_follows_a_true_and_a_false_remark(table: str) -> None:
    frame, plain = load(table), statements.build_statements(table, 0)
    assert frame["id"].is_unique
    assert frame["text"].is_unique
    assert Counter(remarks.without_remarks(frame)["text"]) == Counter(2 * plain["text"].tolist())
    for (_, _), rows in frame.groupby(["group", "question"]):
        cells = Counter(
            (label, agrees)
            for label, agrees in zip(rows["label"], remarks.agreement(rows), strict=True)
        )
        assert cells == dict.fromkeys([(0, False), (0, True), (1, False), (1, True)], 1)
        # Both remarks precede a true and a false statement.
        remark_of = rows.groupby("remark")["label"].agg(sorted)
        assert remark_of.tolist() == [[0, 1], [0, 1]]


def test_spans_hold_the_answer_and_remarks_hold_the_asserted_one(frame: pd.DataFrame) -> None:
    for row in frame.itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.answer
        assert row.text.startswith(row.remark)
        assert row.prompt == row.text[: row.answer_start].rstrip()
        assert row.remark_answer in row.remark
        assert row.remark_answer in (row.answer, row.other)
        assert row.other != row.answer


def test_the_closed_book_is_the_plain_statement(frame: pd.DataFrame) -> None:
    plain = statements.build_statements("capitals", 0).set_index("text")
    closed = remarks.without_remarks(frame)
    for row in closed.itertuples():
        same = plain.loc[row.text]
        assert (row.prompt, row.answer_start, row.answer_end, row.label) == (
            same["prompt"],
            same["answer_start"],
            same["answer_end"],
            same["label"],
        )


def test_a_block_has_one_wording_and_the_wordings_take_turns(frame: pd.DataFrame) -> None:
    by_block = frame.groupby("group")["wording"].agg(["nunique", "first"])
    assert set(by_block["nunique"]) == {1}
    counts = by_block["first"].value_counts()
    assert set(counts.index) == set(remarks.WORDINGS)
    assert counts.max() - counts.min() <= 1


def test_demonstrations_are_all_true_or_all_false(frame: pd.DataFrame) -> None:
    plain = statements.build_statements("capitals", 0).set_index("text")["label"]
    for row in frame[frame["wording"] == "demonstrations"].itertuples():
        lines = row.remark.splitlines()
        false = int(row.remark_answer != (row.answer if row.label == 0 else row.other))
        assert len(lines) == 2
        assert [plain[line] for line in lines] == [false, false]


def test_few_shot_demonstrations_are_part_of_the_remark() -> None:
    frame = load(conflict={"few_shot": True, "wordings": ["hearsay"]}, max_examples=32)
    assert frame["remark"].str.contains("The capital of Japan is Tokyo.\nThe|Tokyo is the").all()
    plain = set(statements.build_statements("capitals", 0)["text"])
    assert set(remarks.without_remarks(frame)["text"]) <= plain


def test_max_examples_counts_texts_with_remarks_and_keeps_blocks_whole() -> None:
    frame = load("cities", max_examples=100)
    assert 80 < len(frame) <= 100
    assert set(frame.groupby("group").size()) == {8}
    with pytest.raises(UserError, match=r"max_examples: 8 is less than two blocks .* of 8 texts"):
        load("cities", max_examples=8)


def test_questions_of_a_file_get_remarks_in_words_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"q": f"Who wrote book {number}?", "a": answer, "label": label}
        for number in range(8)
        for answer, label in (("Ann", number % 2), ("Bob", 1 - number % 2))
    ]
    rows.append({"q": "Who wrote no book?", "a": "Cy", "label": 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {"source": "file", "path": str(path), "question_column": "q", "text_column": "a"}
    frame = datasets.load_examples(
        DatasetSettings.model_validate({**given, "conflict": {"wordings": ["hearsay"]}}), 0
    )
    plain = datasets.load_examples(DatasetSettings.model_validate(given), 0)
    assert set(remarks.without_remarks(frame)["text"]) < set(plain["text"])
    assert len(frame) == 4 * 8
    assert frame.attrs["left_out_without_pair"] == 1
    assert set(frame["text"]) >= {
        'Some say that the answer to "Who wrote book 3?" is Bob.\nQ: Who wrote book 3?\nA: Ann'
    }


def conflict_of(path: Path, rows: list[dict[str, object]], **columns: object) -> pd.DataFrame:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"source": "file", "path": str(path), "conflict": {}, **columns}
    return datasets.load_examples(DatasetSettings.model_validate(settings), 0)


@pytest.mark.parametrize(
    "statement", ["{} is the capital of {}.", "In {1}, {0} is the seat of government"]
)
def test_a_remark_asserts_the_whole_statement_around_its_answer(
    tmp_path: Path, statement: str
) -> None:
    facts = [("Chad", "N'Djamena", "Lima"), ("Egypt", "The Hague", "The Nile")] * 4
    rows: list[dict[str, object]] = [
        {
            "t": statement.format(answer, f"{land} {number}"),
            "a": answer,
            "g": number,
            "label": label,
        }
        for number, (land, *both) in enumerate(facts)
        for label, answer in enumerate(both)
    ]
    frame = conflict_of(
        tmp_path / "x.jsonl", rows, text_column="t", answer_column="a", group_column="g"
    )
    assert len(frame) == 4 * len(facts)
    plain = {str(row["t"]).removesuffix(".") for row in rows}
    for row in frame.itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.answer
        asserted = [text for text in plain if f"{text}." in row.remark]
        assert len(asserted) == 1
        assert row.remark_answer in asserted[0]
        assert ".." not in row.remark
    spans = remarks.asserted_spans(frame, "x")
    for row in spans.itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.remark_answer
    texts = set(remarks.without_remarks(frame)["text"])
    assert texts == {str(row["t"]) for row in rows}


@pytest.mark.parametrize(
    ("question", "answers", "remark"),
    [
        ("Is it wet?", ("Yes.", "No."), 'Some say that the answer to "Is it wet?" is {}\n'),
        ("Who is it? ", ("Ann", "Bob"), 'Some say that the answer to "Who is it?" is {}.\n'),
        ("The economy is the ", ("U.S.", "U.K."), "Some say that the economy is the {} In fact, "),
        ("It is ", ("a+b.", "b+a."), "Some say that It is {} In fact, "),
        ("The quiz is ", ("Jeopardy!", '"Cheers."'), "Some say that the quiz is {} In fact, "),
        ("\u9996\u90fd\u662f", ("\u5df4\u9ece\u3002", "\u91cc\u6602\u3002"), ""),
    ],
)
def test_answers_with_a_full_stop_and_questions_before_texts(
    tmp_path: Path, question: str, answers: tuple[str, str], remark: str
) -> None:
    rows: list[dict[str, object]] = [
        {"q": question, "text": question + answer, "label": label}
        for label, answer in enumerate(answers)
    ]
    frame = conflict_of(tmp_path / "x.jsonl", rows, question_column="q")
    if remark:
        assert set(frame["remark"]) == {remark.format(answer) for answer in answers}
    for row in remarks.asserted_spans(frame, "x").itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.remark_answer
        assert row.answer_start < row.text.index(row.remark) + len(row.remark)


def test_statements_about_the_same_answer_are_no_pair(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"{answer} is {verb} a fish {number}.", "a": answer, "g": number, "label": label}
        for number in range(4)
        for label, (answer, verb) in enumerate([("A cod", "surely"), ("a cod", "hardly")])
    ]
    with pytest.raises(UserError, match="conflict: none of the 4 groups has a prompt"):
        conflict_of(tmp_path / "x.jsonl", rows, answer_column="a", group_column="g")


def test_a_remark_asserts_an_answer_of_words_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    gold = [["+", "plus"], ["Paris"], ["Paris, France"], ["Rome"], ["1\n2", "3"]] * 4
    rows = [{"q": f"Question {number}?", "gold": one} for number, one in enumerate(gold)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"source": "file", "mode": "generated", "path": str(path), "conflict": {}}
    columns = {"question_column": "q", "gold_column": "gold"}
    asked = datasets.load_questions(DatasetSettings.model_validate({**settings, **columns}), 0, 99)
    assert len(asked) == 30
    assert not {"+", "1\n2"} & set(asked["remark_answer"])
    for row in asked.itertuples():
        assert not ("Paris" in row.other and "Paris" in row.gold[0])


def test_a_set_without_pairs_is_refused() -> None:
    with pytest.raises(UserError, match="conflict: none of the 400 groups has a prompt with one"):
        load("larger_than")


def test_questions_are_asked_after_a_true_and_a_false_remark() -> None:
    settings = DatasetSettings.model_validate(
        {"source": "facts", "mode": "generated", "conflict": {}}
    )
    asked = datasets.load_questions(settings, 0, 80)
    plain = statements.build_questions(0, 40).set_index("question")
    assert len(asked) == 80
    assert asked["prompt"].is_unique
    for question, rows in asked.groupby("question"):
        gold = plain.loc[str(question), "gold"]
        assert rows["group"].nunique() == 1
        assert rows["remark_answer"].tolist() == [gold[0], rows["other"].iloc[0]]
        assert normalise(rows["other"].iloc[0]) not in map(normalise, gold)
    answered = asked.assign(
        text=asked["prompt"] + " x", answer_start=asked["prompt"].map(len) + 1, answer_end=0
    )
    assert set(remarks.without_remarks(answered)["prompt"]) == set(plain["prompt"])


def test_a_question_without_another_answer_or_in_a_chat_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"q": f"Is {number} a number?", "gold": "yes"} for number in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = DatasetSettings.model_validate(
        {
            "source": "file",
            "mode": "generated",
            "path": str(path),
            "question_column": "q",
            "gold_column": "gold",
            "conflict": {},
        }
    )
    with pytest.raises(
        UserError, match="no other question of the relation 'file' has an answer that"
    ):
        datasets.load_questions(settings, 0, 8)
    with pytest.raises(UserError, match=r"set generation\.prompt: plain"):
        datasets.load_questions(settings, 0, 8, chat=True)


def test_strata_separate_wordings_and_leave_other_sets_alone(frame: pd.DataFrame) -> None:
    assert set(remarks.strata(frame)) == {
        f"{relation} after {wording}"
        for relation in ("capital", "capital_reverse")
        for wording in remarks.WORDINGS
    }
    plain = statements.build_statements("capitals", 0)
    assert remarks.strata(plain) == plain["relation"].tolist()
    assert remarks.has_remarks(frame)
    assert not remarks.has_remarks(plain)
    assert not remarks.has_remarks(plain.drop(columns=["remark", "wording"]))
