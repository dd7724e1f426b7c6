"""Data sets: public ones from small samples and from real files, and files of the user."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from ghosttrack.detection import splits
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import COLUMNS, Question
from ghosttrack.inputs import datasets, hub, user_texts
from ghosttrack.settings import DatasetSettings

TRUTHFULQA = (
    "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    'Adversarial,Food,Are seeds deadly?,No,They kill you,"No; They pass through; no.",They kill you; You sprout; They pass  through,x\n'
    "Adversarial,Law,Is it legal?,Yes,No,Yes; It is,No; Never,x\n"
)
HALUEVAL = [
    {
        "knowledge": "k",
        "question": "Who wrote it?",
        "right_answer": "Ann",
        "hallucinated_answer": "It was written by Bob.",
    },
    {
        "knowledge": "k",
        "question": "Where was it?",
        "right_answer": "Rome",
        "hallucinated_answer": "It took place in Paris.",
    },
]


def settings(**values: Any) -> DatasetSettings:
    return DatasetSettings.model_validate(values)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"what is number {number}", "answer": [str(number), f"no. {number}"]}
        for number in range(count)
    ]


def check_form(frame: pd.DataFrame) -> None:
    """Properties that every later step relies on."""
    assert list(frame.columns) == list(COLUMNS)
    assert frame["id"].is_unique
    assert set(frame["label"]) == {0, 1}
    for row in frame.itertuples():
        assert row.text[row.answer_start : row.answer_end] == row.answer
        assert row.text.startswith(row.prompt)
        assert not row.prompt.endswith(" ")
        assert row.answer == row.answer.strip() != ""
    assert frame.groupby("text")["group"].nunique().eq(1).all()


def test_truthfulqa_gives_every_answer_once_and_drops_texts_with_both_labels(
    tmp_path: Path,
) -> None:
    path = tmp_path / "TruthfulQA.csv"
    path.write_text(TRUTHFULQA, encoding="utf-8")
    frame = datasets.load_examples(settings(source="truthfulqa", path=str(path)), seed=0)
    check_form(frame)
    first = frame[frame["question"] == "Are seeds deadly?"]
    assert first[["answer", "label"]].values.tolist() == [
        ["No", 0],
        ["They kill you", 1],
        ["You sprout", 1],
    ]
    assert frame.attrs == {
        "source": "TruthfulQA.csv",
        "revision": None,
        "dropped_both_labels": 2,
        "dropped_repeats": 0,
    }
    assert first["text"].iloc[0] == "Q: Are seeds deadly?\nA: No"
    assert first["relation"].unique().tolist() == ["Food"]
    assert first["gold"].iloc[0] == ["No", "They pass through"]
    assert frame["group"].nunique() == 2


def test_truthfulqa_is_read_in_the_format_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    row = {
        "type": "Adversarial",
        "category": "Law",
        "question": "Is it legal?",
        "best_answer": "Yes",
        "correct_answers": ["Yes", "It is; mostly"],
        "incorrect_answers": ["No"],
        "source": "x",
    }

    def rows(*arguments: Any, **_: Any) -> hub.HubRows:
        asked.append(arguments)
        return hub.HubRows(iter([row]), "abc")

    monkeypatch.setattr(hub, "rows", rows)
    frame = datasets.load_examples(settings(source="truthfulqa"), seed=0)
    check_form(frame)
    assert frame["answer"].tolist() == ["Yes", "It is; mostly", "No"]
    assert frame.attrs["revision"] == "abc"
    assert asked == [("truthfulqa/truthful_qa", "generation", "validation", None)]


def test_halueval_gives_a_pair_for_each_question_which_is_the_group(tmp_path: Path) -> None:
    for name in ("qa.jsonl", "qa_data.json"):  # the authors' .json holds one object a line
        path = write_lines(tmp_path / name, HALUEVAL)
        frame = datasets.load_examples(settings(source="halueval", path=str(path)), seed=0)
        check_form(frame)
        assert frame.groupby("group")["label"].apply(list).tolist() == [[0, 1], [0, 1]]


def test_demonstrations_are_never_asked(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "nq.jsonl",
        [*questions(30), {"question": "What is  NUMBER 3", "answer": ["again"]}],
    )
    frame = datasets.load_questions(
        settings(source="nq_open", mode="generated", path=str(path)), seed=1, count=100
    )
    assert list(frame.columns) == list(Question._fields)
    assert len(frame) == 30 - datasets.SHOTS
    assert frame["id"].is_unique
    shots = frame["prompt"].iloc[0].rsplit("Q: ", 1)[0]
    assert shots.count("Q: ") == shots.count("\nA: ") == datasets.SHOTS
    for row in frame.itertuples():
        assert row.prompt == f"{shots}Q: {row.question}?\nA:"
        assert f"Q: {row.question}?\n" not in shots
        assert row.gold[0] == row.question.split()[-1]


@pytest.mark.parametrize("source", ["nq_open", "facts"])
def test_the_messages_of_a_chat_are_the_demonstrations_of_the_plain_prompt_and_the_question(
    tmp_path: Path, source: str
) -> None:
    path = str(write_lines(tmp_path / "nq.jsonl", questions(30))) if source == "nq_open" else None
    chosen = settings(source=source, mode="generated", path=path)
    plain, chat = (
        datasets.load_questions(chosen, seed=1, count=20, chat=each) for each in (False, True)
    )
    pd.testing.assert_frame_equal(chat.drop(columns="turns"), plain)
    for row in chat.itertuples():
        *earlier, question = row.turns
        assert question.removesuffix("?") == row.question.removesuffix("?")
        assert question.endswith("?")
        assert len(earlier) >= 2
        for asked, answer in zip(earlier[::2], earlier[1::2], strict=True):
            assert (
                f"Q: {asked}\nA: {answer}\n" if source == "nq_open" else f" {answer}.\n"
            ) in row.prompt
            assert asked != question


def test_questions_are_spread_over_relations_and_chosen_by_the_seed(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "Category": ["a"] * 40 + ["b"] * 10,
            "Question": [f"Question {n}?" for n in range(50)],
            "Best Answer": "Yes",
            "Correct Answers": "Yes; It is",
            "Incorrect Answers": "No",
        }
    )
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    chosen = settings(source="truthfulqa", mode="generated", path=str(path))
    frame = datasets.load_questions(chosen, seed=0, count=8)
    assert frame["relation"].value_counts().to_dict() == {"a": 4, "b": 4}
    pd.testing.assert_frame_equal(frame, datasets.load_questions(chosen, seed=0, count=8))
    assert (
        frame["question"].tolist()
        != datasets.load_questions(chosen, seed=1, count=8)["question"].tolist()
    )
    assert frame["gold"].iloc[0] == ["Yes", "It is"]


def test_triviaqa_reads_the_hubs_rows_and_the_authors_file(tmp_path: Path) -> None:
    answer = {
        "value": "Sinclair Lewis",
        "aliases": ["(Harry) Sinclair Lewis", "sinclair lewis"],
        "normalized_aliases": ["x"],
    }
    rows = [{"question": f"Who is {n}?", "answer": answer} for n in range(8)]
    hub_form = write_lines(tmp_path / "hub.jsonl", rows)
    own_form = tmp_path / "unfiltered-web-dev.json"
    own = [
        {
            "Question": row["question"],
            "Answer": {"Value": "Sinclair Lewis", "Aliases": answer["aliases"]},
        }
        for row in rows
    ]
    own_form.write_text(json.dumps({"Data": own, "Version": 1.0}), encoding="utf-8")
    for path in (hub_form, own_form):
        frame = datasets.load_questions(
            settings(source="triviaqa", mode="generated", path=str(path)), seed=0, count=3
        )
        assert frame["gold"].tolist() == [["Sinclair Lewis", "(Harry) Sinclair Lewis"]] * 3


def test_too_few_questions_and_questions_without_answers_are_named(tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", questions(5))
    with pytest.raises(
        UserError, match=r"few\.jsonl holds 5 different questions; the prompt needs 5 "
    ):
        datasets.load_questions(
            settings(source="nq_open", mode="generated", path=str(few)), seed=0, count=3
        )
    bare = write_lines(tmp_path / "bare.jsonl", [{"question": "why", "answer": []}])
    with pytest.raises(UserError, match=r"row 1 of .*bare\.jsonl: no accepted answer"):
        datasets.load_questions(
            settings(source="nq_open", mode="generated", path=str(bare)), seed=0, count=3
        )


def test_without_a_network_the_error_names_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with (
        pytest.raises(
            UserError,
            match=r"nq\.yaml: source: data set 'google-research-datasets/nq_open' .*`path`",
        ),
        datasets.named("nq"),
    ):
        datasets.load_questions(settings(source="nq_open", mode="generated"), seed=0, count=3)


def own(path: Path, table: Mapping[str, Any], **values: Any) -> pd.DataFrame:
    pd.DataFrame(table).to_csv(path, index=False)
    return datasets.load_examples(settings(source="file", path=str(path), **values), seed=0)


@pytest.mark.parametrize("labels", [[0, 1], ["false", "TRUE"], ["0.0", "1.0"], [False, True]])
def test_user_texts_are_used_unchanged(tmp_path: Path, labels: list[Any]) -> None:
    frame = own(tmp_path / "a.csv", {"text": ["NA", "Rome is in Peru."], "label": labels})
    check_form(frame)
    assert frame[["text", "answer", "prompt", "label"]].values.tolist() == [
        ["NA", "NA", "", 0],
        ["Rome is in Peru.", "Rome is in Peru.", "", 1],
    ]
    assert frame["group"].nunique() == 2


def test_labels_are_inverted_if_1_marks_true_texts(tmp_path: Path) -> None:
    frame = own(
        tmp_path / "a.csv",
        {"statement": ["a", "b"], "label": [1, 0]},
        text_column="statement",
        true_label=1,
    )
    assert frame["label"].tolist() == [0, 1]


def test_a_question_that_the_text_starts_with_ends_where_the_answer_begins(tmp_path: Path) -> None:
    table = {
        "text": ["Where is Rome? In Italy.", "Where is Rome? In Peru."],
        "q": ["Where is Rome?"] * 2,
        "label": [0, 1],
    }
    frame = own(tmp_path / "a.csv", table, question_column="q")
    check_form(frame)
    assert frame["answer"].tolist() == ["In Italy.", "In Peru."]
    assert frame["prompt"].tolist() == ["Where is Rome?"] * 2
    assert frame["group"].nunique() == 1


def test_a_question_that_the_text_only_answers_is_put_in_front_of_it(tmp_path: Path) -> None:
    table = {"text": ["In Italy.", "In Peru."], "q": ["Where is Rome?"] * 2, "label": [0, 1]}
    frame = own(tmp_path / "a.csv", table, question_column="q")
    check_form(frame)
    assert frame["text"].iloc[0] == "Q: Where is Rome?\nA: In Italy."
    assert frame["answer"].tolist() == ["In Italy.", "In Peru."]


def test_an_answer_column_marks_the_judged_part_and_a_group_column_the_groups(
    tmp_path: Path,
) -> None:
    table = {
        "text": ["Rome is in Italy, they say.", "Rome is in Peru, they say."],
        "a": ["Italy", "Peru"],
        "label": [0, 1],
        "city": ["Rome", "Rome"],
    }
    frame = own(tmp_path / "a.csv", table, answer_column="a", group_column="city")
    check_form(frame)
    assert frame["answer"].tolist() == ["Italy", "Peru"]
    assert frame["prompt"].tolist() == ["Rome is in"] * 2
    assert frame["group"].tolist() == ["rome", "rome"]


@pytest.mark.parametrize(
    ("end", "text", "answer", "start"),
    [
        ("csv", "It has 3 of 13 moons.", "3", 7),
        ("csv", "It is the art of carts.", "art", 10),
        ("csv", "It is 2,000 m high.", "2000", 6),
        ("parquet", "It is 3.50 m high, not 13.5.", 3.5, 6),
        ("parquet", "It is True, so they say.", True, 6),
    ],
)
def test_a_judged_part_is_a_whole_word_or_number_in_the_form_of_its_text(
    tmp_path: Path, end: str, text: str, answer: Any, start: int
) -> None:
    table = {"text": [text, f"{text} No."], "a": [answer, answer], "label": [0, 1]}
    path = write_any(tmp_path / f"a.{end}", table)
    texts = user_texts.read_texts(settings(source="file", path=str(path), answer_column="a"))
    assert [each.answer_start for each in texts] == [start, start]


def test_repeats_are_dropped_and_counted(tmp_path: Path) -> None:
    frame = own(tmp_path / "a.csv", {"text": ["a", "A.", "b", "c", "C"], "label": [0, 0, 1, 0, 1]})
    assert frame["text"].tolist() == ["a", "b"]
    assert (frame.attrs["dropped_repeats"], frame.attrs["dropped_both_labels"]) == (1, 2)


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        (
            {"text": ["a", "b"], "truth": [0, 1]},
            {},
            "label_column: .*has no column 'label'; found text, truth. Set label_column",
        ),
        (
            {"body": ["a", "b"], "label": [0, 1]},
            {},
            "text_column: .*has no column 'text'; found body, label",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"group_column": "g"},
            "group_column: .*no column 'g'",
        ),
        (
            {"text": ["a", " "], "label": [0, 1]},
            {},
            "row 2 of .*a.csv: expected text in column 'text', found blanks",
        ),
        (
            {"text": ["a", ""], "label": [0, 1]},
            {},
            "row 2 of .*a.csv: expected text in column 'text', found nothing",
        ),
        ({"text": ["a", "b"], "label": [0, 2]}, {}, "row 2 of .*holds '2'; expected 0 or 1"),
        ({"text": ["a", "b"], "label": ["", "1"]}, {}, "row 1 of .*holds ''; expected 0 or 1"),
        (
            {"text": ["a", "b"], "label": [1, 1]},
            {},
            r"a.csv: all 2 remaining texts are hallucinated",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1], "q": ["a", "x"]},
            {"question_column": "q"},
            "row 2 of .*some texts start with",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1], "q": ["a", "b"]},
            {"question_column": "q"},
            "row 1 of .*after the question, there is no text",
        ),
        (
            {"text": ["ab", "b"], "label": [0, 1], "x": ["b", "c"]},
            {"answer_column": "x"},
            "row 2 of .*does not contain its answer 'c'",
        ),
        (
            {"text": ["Cafe\u0301 x", "b"], "label": [0, 1], "x": ["Caf\u00e9", "b"]},
            {"answer_column": "x"},
            "row 1 of .*: write both in the form NFC",
        ),
        (
            {"text": ["a", "In Paris"], "label": [0, 1], "x": ["a", "PARIS"]},
            {"answer_column": "x"},
            "row 2 of .*upper and lower case differ",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"mode": "generated", "question_column": "text", "gold_column": "label"},
            "expected labelled texts; set mode: given",
        ),
    ],
)
def test_errors_in_user_texts_name_row_and_key(
    tmp_path: Path, table: Mapping[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        own(tmp_path / "a.csv", table, **values)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"text,label\na,0,1\n", "row 1 of .* has 3 values for 2 columns"),
        ("a.csv", b'text,label\n"a,0\n', "not a table of values separated by commas"),
        ("a.csv", b"text,text\na,0\n", "two columns with the name"),
        (
            "a.csv",
            "text,label\nZürich,0\n".encode("latin-1"),
            "path: .*not UTF-8 text: line 2 holds the byte 0xfc at offset 12",
        ),
        (
            "a.json",
            "[{}]\nü".encode("latin-1"),
            "path: .*not UTF-8 text: line 2 holds the byte 0xfc at offset 5",
        ),
        (
            "a.csv",
            "text,label\na,0\n".encode("utf-16"),
            "path: .*a.csv is UTF-16 text: convert it to UTF-8: iconv -f UTF-16 ",
        ),
        (
            "a.csv",
            "text,label\na,0\n".encode("utf-16-le"),
            "path: .*a.csv is full of NUL bytes, like binary files and UTF-16 text without",
        ),
        ("a.csv", b"text,x\0y,label\n", "path: the header of .*a.csv: character 2 is NUL"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"\xef\xbb\xbf", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        (
            "a.csv",
            b"text,label\na,0\nb\0c,1\n",
            "row 2 of .*a.csv, column 'text': character 2 is NUL",
        ),
        pytest.param(
            "a.csv",
            b"text,label\na,0\n" + b"b" * 100_001 + b",1\n",
            "row 2 of .*column 'text': 100,001 characters, more than 100,000",
            id="long text",
        ),
        (
            "a.csv",
            b'text,label\na,0\n"b,1\nc,0\n',
            "row 2, column 'text', line 4: unexpected end of data; close every quotation mark",
        ),
        pytest.param(
            "a.csv",
            b'text,label\na,0\nb,"1' + b"5\n" * 6_000_000,
            "row 2, column 'label', line .*field larger than field limit",
            id="open quotation mark",
        ),
        ("a.csv", b'text,label\na,0\n"b"c,1\n', "row 2, column 'text', line 3: ',' expected after"),
        ("a.csv", b'"text,label\na,0\n', "the header, value 1, line 2: unexpected end"),
        pytest.param(
            "a.csv",
            b"text,label\n" + b"a" * 10_000_001 + b",0\n",
            "line 2 of .* has 10,000,003 characters, more than 10,000,000",
            id="long line",
        ),
        pytest.param(
            "a.csv",
            b"text,label\na," + b"9" * 90_000 + b"\n",
            "row 1 of .*'label'.* holds '999.*[.]{3} .90,002 characters.; expected 0 or 1",
            id="long label",
        ),
        pytest.param(
            "a.csv",
            ",".join(f"c{n}" for n in range(99_999)).encode() + b"\n" + b"," * 99_998,
            "found c0, c1, .*, c19 and 99,979 more",
            id="many columns",
        ),
        pytest.param(
            "a.jsonl",
            b'{"text": "a", "label": 0}\n\n{"text": ' + b"[" * 100_000,
            "line 3 of .*a.jsonl holds .*nested too deeply",
            id="deep jsonl",
        ),
        pytest.param(
            "a.json", b"[" * 100_000, "path: .*a.json holds .*nested too deeply", id="deep json"
        ),
        pytest.param(
            "a.jsonl",
            b'{"text": "a", "x": 1}\n{"text": "a", "x": ' + b"[" * 99 + b"]" * 99 + b"}",
            "row 2 of .*column 'x': .*nested more than 50",
            id="deep cell",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "x": {"y": ["\\ud800"]}}',
            "row 1 of .*column 'x': character 1 is .ud800, half of a surrogate pair",
        ),
        (
            "a.json",
            b'[{"text": "a"}, {"text": "ab\\udc00c"}]',
            "row 2 of .*column 'text': character 3 is .udc00, half of a surrogate pair",
        ),
        ("a.jsonl", b'{"\\ud800": "a"}', "row 1 of .*column '.*ud800': character 1 is .*, half"),
        ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "line 1 of .* is not JSON"),
        ("a.jsonl", b'{"text": "a"\n', "line 1 of .* is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 of .* is not an object"),
        ("a.json", b"[1, 2]", "not a list of objects"),
        ("a.parquet", b"PAR", "is damaged or is not a parquet file"),
        ("a.xlsx", b"x", "must end in one of"),
        ("a.jsonl", b'{"text": 3, "label": 0}\n', "row 1 of .*found 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        datasets.load_examples(settings(source="file", path=str(tmp_path / name)), seed=0)


def test_a_parquet_cell_that_is_not_utf8_is_named_with_its_row_and_column(tmp_path: Path) -> None:
    cells = pa.array([b"a", b"Z\xfcrich"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"label": [0, 1], "text": cells}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 2 of .*a\.parquet, column 'text' cannot be read"):
        datasets.load_examples(settings(source="file", path=str(tmp_path / "a.parquet")), seed=0)


def test_a_long_cell_in_a_column_that_is_not_read_is_accepted(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    frame = own(
        tmp_path / "a.csv", {"text": ["a", "b"], "label": [0, 1], "page": ["c" * 2_000_000, "d\0"]}
    )
    assert frame["text"].tolist() == ["a", "b"]
    assert csv.field_size_limit() == limit


def test_an_accepted_answer_with_half_a_surrogate_pair_is_named_with_its_row(
    tmp_path: Path,
) -> None:
    rows = [{"q": f"Number {n}?", "gold": '["\\ud800"]' if n == 3 else "n"} for n in range(9)]
    path = tmp_path / "q.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    base = {
        "source": "file",
        "mode": "generated",
        "path": str(path),
        "question_column": "q",
        "gold_column": "gold",
    }
    with pytest.raises(
        UserError,
        match=r"row 4 of .*q\.csv, column 'gold': character 1 is .*, half of a surrogate pair",
    ):
        datasets.load_questions(settings(**base), seed=0, count=2)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(
        UserError, match=r"path: there is no file nowhere\.csv .*; expected a \.csv, "
    ):
        datasets.load_examples(settings(source="file", path="nowhere.csv"), seed=0)


def test_csv_tsv_jsonl_json_and_parquet_give_the_same_texts(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["Rome, Italy", 'say "no"', "a\nb"], "label": [0, 1, 1]})
    table.to_csv(tmp_path / "a.csv", index=False, encoding="utf-8-sig")
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_json(tmp_path / "a.json", orient="records")
    table.to_parquet(tmp_path / "a.parquet")
    frames = [
        datasets.load_examples(settings(source="file", path=str(tmp_path / f"a.{end}")), seed=0)
        for end in ("csv", "tsv", "jsonl", "json", "parquet")
    ]
    for frame in frames:
        assert frame[["text", "label"]].values.tolist() == table.values.tolist()


def test_user_questions_need_gold_answers(tmp_path: Path) -> None:
    rows = [{"q": f"Number {n}?", "gold": f"{n}; n{n}"} for n in range(9)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    base = {"source": "file", "mode": "generated", "path": str(path), "question_column": "q"}
    frame = datasets.load_questions(settings(**base, gold_column="gold"), seed=0, count=2)
    assert all(gold == [gold[0], f"n{gold[0]}"] for gold in frame["gold"])


def test_a_question_in_several_rows_accepts_the_answers_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ghosttrack")
    rows = [
        {"q": f"{word} {n}?", "gold": [f"{word} {n}"]}
        for word in ("Part", "part")
        for n in range(7)
    ] + [{"q": f"Part {n}?", "gold": f"piece {n}"} for n in range(7)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    base = {"source": "file", "mode": "generated", "path": str(path), "question_column": "q"}
    frame = datasets.load_questions(settings(**base, gold_column="gold"), seed=0, count=2)
    for question, gold in zip(frame["question"], frame["gold"], strict=True):
        number = question[5:-1]
        assert list(gold) == [f"Part {number}", f"piece {number}"]
    assert "14 rows repeat the question of an earlier row" in caplog.text


@pytest.mark.parametrize("gold", ["-", "...", "\u2764", ["-", "!"]])
def test_gold_answers_without_a_letter_or_digit_are_refused_with_their_row(
    tmp_path: Path, gold: Any
) -> None:
    rows = [{"q": f"Number {n}?", "gold": gold if n == 4 else str(n)} for n in range(9)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    base = {
        "source": "file",
        "mode": "generated",
        "path": str(path),
        "question_column": "q",
        "gold_column": "gold",
    }
    with pytest.raises(
        UserError,
        match=r"row 5 of .*q\.jsonl: the accepted answers .* contain no letter and no digit",
    ):
        datasets.load_questions(settings(**base), seed=0, count=2)


@pytest.mark.parametrize(
    ("gold", "refused"),
    [
        ("Paris\nLutetia", "Paris"),
        ("He won.\n\nHe was proud.", "He won"),
        ("Roe v. Wade", ""),
        ("Warner Bros. Records", ""),
        (["Paris\nLutetia", "Paris"], ""),
        ("Dr. No; St. John's", ""),
        ("n/a or none", ""),
    ],
)
def test_gold_answers_that_no_answer_can_match_are_refused_with_their_row(
    tmp_path: Path, gold: Any, refused: str
) -> None:
    rows = [{"q": f"Number {n}?", "gold": gold if n == 4 else str(n)} for n in range(9)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    chosen = settings(
        source="file", mode="generated", path=str(path), question_column="q", gold_column="gold"
    )
    if not refused:
        assert len(datasets.load_questions(chosen, seed=0, count=9)) == 4
        return
    with pytest.raises(
        UserError,
        match=rf"row 5 of .*'gold': no answer can match .*, here '{refused}' \(1 of 9 rows\)",
    ):
        datasets.load_questions(chosen, seed=0, count=2)


@pytest.mark.parametrize("groups", [1, 6])
def test_questions_in_the_groups_of_demonstrations_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, groups: int
) -> None:
    rows = [{"q": f"Number {n}?", "gold": str(n), "topic": n % groups} for n in range(30)]
    chosen = settings(
        source="file",
        mode="generated",
        path=str(write_lines(tmp_path / "q.jsonl", rows)),
        question_column="q",
        gold_column="gold",
        group_column="topic",
    )
    if groups == 1:
        with pytest.raises(UserError, match="demonstrations in the prompt are of all groups"):
            datasets.load_questions(chosen, seed=0, count=30)
        return
    asked = datasets.load_questions(chosen, seed=0, count=30)
    assert f"{30 - datasets.SHOTS - len(asked)} of 30 questions are not asked" in caplog.text


def test_several_labelled_spans_of_one_text_all_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Ann was born in Rome in 1942 and died in Peru."
    table = {
        "text": [text, text, text.upper() + " ", text, "Bob is in Peru.", text],
        "a": ["Rome", "1942", "ROME", "Peru", "Peru", "1942"],
        "label": [0, 1, 0, 1, 0, 1],
    }
    with caplog.at_level("WARNING", "ghosttrack"):
        frame = own(tmp_path / "a.csv", table, answer_column="a")
    check_form(frame)
    assert frame[["id", "answer", "label"]].values.tolist() == [
        ["row-000001", "Rome", 0],
        ["row-000002", "1942", 1],
        ["row-000004", "Peru", 1],
        ["row-000005", "Peru", 0],
    ]
    assert frame.attrs["dropped_repeats"] == 2
    assert (
        "2 rows dropped because their text repeats an earlier row with the same label: row-000003, row-000006"
        in caplog.text
    )


def test_a_span_with_both_labels_is_dropped_with_its_rows_named_and_other_spans_of_its_text_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = {
        "text": ["Ann is in Rome, in 1942."] * 3 + ["b"],
        "a": ["Rome", "1942", "Rome", "b"],
        "label": [0, 0, 1, 1],
    }
    frame = own(tmp_path / "a.csv", table, answer_column="a")
    assert frame["id"].tolist() == ["row-000002", "row-000004"]
    assert (
        "2 rows dropped because their text occurs with both labels: row-000001, row-000003"
        in caplog.text
    )


def test_spans_of_one_text_in_two_groups_stay_in_one_fold(tmp_path: Path) -> None:
    table = {
        "text": ["b", "in Rome, in 1942", "in Rome, in 1942"],
        "a": ["b", "Rome", "1942"],
        "label": [0, 0, 1],
        "g": [1, 1, 2],
    }
    frame = own(tmp_path / "a.csv", table, answer_column="a", group_column="g")
    assert frame["group"].tolist() == ["1", "1", "2"]
    assert len(set(splits.make_cv_groups(list(frame["group"]), list(frame["text"])))) == 1


def write_any(path: Path, table: Mapping[str, Any]) -> Path:
    frame = pd.DataFrame(table)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False, na_rep="nan" if path.stem == "words" else "")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        write_lines(path, frame.to_dict("records"))  # a gap is NaN
    return path


@pytest.mark.parametrize("name", ["a.csv", "words.csv", "a.jsonl", "a.parquet"])
def test_rows_without_a_group_form_groups_and_are_counted(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_any(
        tmp_path / name,
        {"text": list("abcde"), "label": [0, 1] * 2 + [0], "g": [0, 0, None, None, 1]},
    )
    frame = datasets.load_examples(
        settings(source="file", path=str(path), group_column="g"), seed=0
    )
    groups = frame["group"].tolist()
    assert groups[2:4] == ["c", "d"]
    assert groups[0] == groups[1]
    assert frame["group"].nunique() == 4
    assert (
        "2 of 5 rows have no value in column 'g' (group_column), for example row 3" in caplog.text
    )


def test_questions_without_a_group_form_groups(tmp_path: Path) -> None:
    rows = [{"q": f"Number {n}?", "gold": n, "g": float("nan")} for n in range(12)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    chosen = settings(
        source="file",
        mode="generated",
        path=str(path),
        question_column="q",
        gold_column="gold",
        group_column="g",
    )
    frame = datasets.load_questions(chosen, seed=0, count=7)
    assert len(frame) == frame["group"].nunique() == 7
    assert all(row.gold == [row.question[7:-1]] for row in frame.itertuples())


def test_a_group_that_is_neither_text_nor_number_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a", "label": 0, "g": ["x"]}])
    with pytest.raises(
        UserError,
        match=r"row 1 of .*column 'g' \(group_column\) holds \['x'\]; expected text or a number",
    ):
        datasets.load_examples(settings(source="file", path=str(path), group_column="g"), seed=0)


@pytest.mark.parametrize(
    ("true_label", "meanings"), [(0, ("true", "hallucinated")), (1, ("hallucinated", "true"))]
)
def test_the_log_shows_how_each_label_is_read_with_two_examples(
    tmp_path: Path, true_label: int, meanings: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ghosttrack"):
        own(
            tmp_path / "a.csv",
            {"text": list("abcde"), "label": [False, True] * 2 + [True]},
            true_label=true_label,
        )
    assert (
        f"label 'false' means {meanings[0]}: 2 texts, for example row 1, 'a' and row 3, 'c'"
        in caplog.text
    )
    assert (
        f"label 'true' means {meanings[1]}: 3 texts, for example row 2, 'b' and row 4, 'd'"
        in caplog.text
    )
    assert f"the labels are inverted, set true_label: {1 - true_label}" in caplog.text


def test_nested_columns_and_numeric_answers_are_accepted(tmp_path: Path) -> None:
    rows = [
        {"x": {"text": "Rome was founded in 753 BC", "truth": True, "year": 753.0}},
        {"x": {"text": "Rome was founded in 17 AD", "truth": False, "year": 17}},
    ]
    chosen = settings(
        source="file",
        path=str(write_lines(tmp_path / "a.jsonl", rows)),
        text_column="x.text",
        label_column="x.truth",
        answer_column="x.year",
        group_column="x.year",
        true_label=1,
    )
    frame = datasets.load_examples(chosen, seed=0)
    assert frame[["answer", "label", "group"]].values.tolist() == [
        ["753", 0, "753"],
        ["17", 1, "17"],
    ]


def test_the_log_shows_the_accepted_answers_of_two_questions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(
        tmp_path / "q.jsonl", [{"q": f"Number {n}?", "gold": [n, f"no. {n}"]} for n in range(9)]
    )
    chosen = settings(
        source="file", mode="generated", path=str(path), question_column="q", gold_column="gold"
    )
    with caplog.at_level("INFO", "ghosttrack"):
        datasets.load_questions(chosen, seed=0, count=2)
    assert "row 2 of" in caplog.text
    assert "'Number 1?' has the accepted answers ['1', 'no. 1']" in caplog.text


@pytest.mark.parametrize("limit", [8, 17, 50])
def test_a_limit_keeps_whole_groups_and_their_order(tmp_path: Path, limit: int) -> None:
    rows = [
        {"question": f"Q{n}?", "right_answer": "a", "hallucinated_answer": "b"} for n in range(40)
    ]
    path = write_lines(tmp_path / "h.jsonl", rows)
    every = datasets.load_examples(settings(source="halueval", path=str(path)), seed=0)
    frame = datasets.load_examples(
        settings(source="halueval", path=str(path), max_examples=60), seed=3, limit=limit
    )
    assert len(frame) == limit - limit % 2
    assert frame.groupby("group").size().eq(2).all()
    assert every[every["id"].isin(frame["id"])]["id"].tolist() == frame["id"].tolist()
    again = datasets.load_examples(settings(source="halueval", path=str(path)), seed=4, limit=limit)
    assert again["id"].tolist() != frame["id"].tolist()


@pytest.mark.parametrize("large", [60, 90])
def test_a_large_group_does_not_end_a_sample_early(tmp_path: Path, large: int) -> None:
    """`large` is below or above the limit of 80 texts; 100 groups of two texts fill it."""
    groups = ["large"] * large + [f"g{row // 2}" for row in range(200)]
    rows = [
        {"text": f"Text {number}", "label": number % 2, "group": group}
        for number, group in enumerate(groups)
    ]
    path = write_lines(tmp_path / "x.jsonl", rows)
    chosen = settings(source="file", path=str(path), group_column="group", max_examples=80)
    for seed in range(20):
        frame = datasets.load_examples(chosen, seed=seed)
        assert len(frame) == 80
        assert frame["group"].value_counts().isin([2, large]).all()


def test_a_limit_below_every_group_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"T {n}", "label": n % 2, "group": n // 20} for n in range(40)]
    path = write_lines(tmp_path / "x.jsonl", rows)
    chosen = settings(source="file", path=str(path), group_column="group", max_examples=8)
    with pytest.raises(UserError, match=r"max_examples: 8 is below .* smallest group \(20 texts\)"):
        datasets.load_examples(chosen, seed=0)


def test_fact_tables_are_loaded_like_other_data_sets() -> None:
    frame = datasets.load_examples(
        settings(source="facts", table="capitals", max_examples=40), seed=0
    )
    assert 8 <= len(frame) <= 40
    assert list(frame.columns) == list(COLUMNS)
    asked = datasets.load_questions(settings(source="facts", mode="generated"), seed=0, count=10)
    assert len(asked) == 10


def test_a_written_table_is_read_back_equal_and_writing_is_deterministic(tmp_path: Path) -> None:
    frame = own(tmp_path / "a.csv", {"text": ["a", "b"], "label": [0, 1]})
    for name in ("one", "two"):
        datasets.write_table(frame, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = pd.read_parquet(tmp_path / "one")
    assert back.attrs == frame.attrs
    assert back["label"].tolist() == [0, 1]
    assert back["label"].dtype == "int64"
    assert [list(gold) for gold in back["gold"]] == [[], []]


def real(path: str) -> str:
    folder = os.environ.get("GHOSTTRACK_TEST_DATA")
    if not folder:
        pytest.skip("GHOSTTRACK_TEST_DATA names no folder with the real data sets")
    return str(Path(folder) / path)


def test_the_real_truthfulqa_file_is_read() -> None:
    frame = datasets.load_examples(
        settings(source="truthfulqa", path=real("truthfulqa/TruthfulQA.csv")), seed=0
    )
    check_form(frame)
    assert frame["group"].nunique() == 790
    assert 5800 < len(frame) < 6100
    assert 0.5 < frame["label"].mean() < 0.6


def test_the_real_halueval_file_is_read() -> None:
    frame = datasets.load_examples(
        settings(source="halueval", path=real("halueval/qa_one-turn_data.jsonl")), seed=0
    )
    check_form(frame)
    assert len(frame) == 1000 - frame.attrs["dropped_both_labels"] - frame.attrs["dropped_repeats"]


def test_the_real_nq_open_file_is_read() -> None:
    path = real("nq_open/NQ-open.dev.jsonl")
    frame = datasets.load_questions(
        settings(source="nq_open", mode="generated", path=path), seed=0, count=200
    )
    assert len(frame) == 200
    assert frame["gold"].map(len).min() >= 1
