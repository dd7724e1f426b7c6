"""Gold answers: every form in the table of `inputs.gold`, from csv, jsonl and parquet; errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ghosttrack.errors import UserError
from ghosttrack.inputs import datasets
from ghosttrack.inputs.gold import answers_of
from ghosttrack.inputs.rows import read_rows
from ghosttrack.settings import DatasetSettings

FILES = ("csv", "jsonl", "parquet")

# What a cell holds, and the answers that it gives.
FORMS: dict[str, tuple[Any, list[str]]] = {
    "text": ("Paris", ["Paris"]),
    "texts with semicolons": ("Paris; City of Paris", ["Paris", "City of Paris"]),
    "text with an HTML entity": ("AT&amp;T; Bell &amp; Co", ["AT&T", "Bell & Co"]),
    "text that begins with a round bracket": ("(5) Ceres; (a, b)", ["(5) Ceres", "(a, b)"]),
    "text in quotation marks": ('"Heroes"', ["Heroes"]),
    "integer": (7, ["7"]),
    "zero": (0, ["0"]),
    "number with a fraction": (2.5, ["2.5"]),
    "integer-valued float": (7.0, ["7"]),
    "boolean": (True, ["true"]),
    "list": (["Paris", "a; b"], ["Paris", "a; b"]),
    "list with an HTML entity": (["Bell &amp; Co", "R&D; x"], ["Bell & Co", "R&D; x"]),
    "list of numbers": ([1942, 7.0], ["1942", "7"]),
    "list with a null": (["Paris", None], ["Paris"]),
    "list as Python writes it": (str(["Paris", "l'\"or", "a; b"]), ["Paris", "l'\"or", "a; b"]),
    "list as JSON": (json.dumps(["Paris", "Zürich"]), ["Paris", "Zürich"]),
    "list as JSON twice": (json.dumps(json.dumps(["Paris", "paris"])), ["Paris", "paris"]),
    "list of lists": ([["Paris", "paris"], ["Lutetia"]], ["Paris", "paris", "Lutetia"]),
    "list of objects": ([{"text": "Paris"}, {"text": "paris"}], ["Paris", "paris"]),
    "SQuAD": ({"text": ["Paris", "a; b"], "answer_start": [1, 2]}, ["Paris", "a; b"]),
    "TriviaQA": (
        {
            "value": "Paris",
            "aliases": ["City of Light"],
            "normalized_aliases": ["city of light"],
            "normalized_value": "paris",
            "matched_wiki_entity_name": "",
            "type": "WikipediaEntity",
        },
        ["Paris", "City of Light"],
    ),
    "TriviaQA of its authors": (
        {
            "Value": "Paris",
            "Aliases": ["Lutetia"],
            "NormalizedAliases": ["lutetia"],
            "HumanAnswers": ["x"],
        },
        ["Paris", "Lutetia"],
    ),
    "Natural Questions": (
        {
            "id": ["1"],
            "long_answer": [{"start_token": 3}],
            "yes_no_answer": [-1],
            "short_answers": [
                {
                    "text": ["Paris"],
                    "start_token": [3],
                    "end_token": [4],
                    "start_byte": [1],
                    "end_byte": [9],
                }
            ],
        },
        ["Paris"],
    ),
    "Natural Questions, yes": (
        {"short_answers": [{"text": ["so"]}], "yes_no_answer": ["YES"]},
        ["so", "yes"],
    ),
    "MC1": ({"choices": ["Paris", "Rome"], "labels": [1, 0]}, ["Paris"]),
    "MC2": ({"choices": ["a", "b", "c"], "labels": [1, 0, 1]}, ["a", "c"]),
}


def write(path: Path, cells: list[Any]) -> Path:
    """Write a column `gold` with pandas, or jsonl with json."""
    table = pd.DataFrame(
        {"q": [f"Number {n}?" for n in range(len(cells))], "gold": pd.Series(cells, dtype=object)}
    )
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.infer_objects().to_parquet(path)
    else:
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in table.to_dict("records")), encoding="utf-8"
        )
    return path


def read(path: Path, column: str = "gold") -> list[list[str]]:
    return [
        answers_of(row, column, number, str(path))
        for number, row in enumerate(read_rows(path), start=1)
    ]


@pytest.mark.parametrize("end", FILES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_answers_from_every_kind_of_file(
    tmp_path: Path, form: str, end: str
) -> None:
    value, answers = FORMS[form]
    assert read(write(tmp_path / f"a.{end}", [value])) == [answers]


@pytest.mark.parametrize("end", FILES)
@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "  ", [], "[]", {}, {"text": [], "answer_start": []}]
)
def test_a_cell_without_an_answer_is_refused_with_row_column_and_what_it_holds(
    tmp_path: Path, end: str, value: Any
) -> None:
    if end == "parquet" and value == {}:
        value = {"text": None}  # parquet has no objects without keys
    path = write(tmp_path / f"a.{end}", [value])
    chosen = {
        "source": "file",
        "mode": "generated",
        "path": str(path),
        "question_column": "q",
        "gold_column": "gold",
    }
    assert read(path) == [[]]
    with pytest.raises(
        UserError,
        match=r"row 1 of .*: no accepted answer in column 'gold', found .*; remove the row, or write",
    ):
        datasets.load_questions(DatasetSettings.model_validate(chosen), seed=0, count=2)


@pytest.mark.parametrize("end", FILES)
def test_a_column_of_integers_with_a_gap_gives_integers(tmp_path: Path, end: str) -> None:
    table = pd.DataFrame({"q": ["a", "b", "c"], "gold": [7, None, 1942]})
    path = tmp_path / f"a.{end}"
    if end == "csv":
        table.to_csv(path, index=False)
        assert "7.0" in path.read_text()
    elif end == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    assert read(path) == [["7"], [], ["1942"]]


def test_numbers_are_written_in_their_shortest_decimal_form(tmp_path: Path) -> None:
    cells = [1e16, 1e-05, -3.0, 0.123456789, 2**70]
    assert read(write(tmp_path / "a.jsonl", cells)) == [
        ["10000000000000000"],
        ["0.00001"],
        ["-3"],
        ["0.123456789"],
        [str(2**70)],
    ]
    pd.DataFrame({"gold": np.array([0.1, 16777216.0], dtype=np.float32)}).to_parquet(
        tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet") == [["0.1"], ["16777216"]]


def test_text_of_jsonl_and_parquet_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    for end in ("jsonl", "parquet"):
        assert read(write(tmp_path / f"a.{end}", ["7.0", "True"])) == [["7.0"], ["True"]]


REFUSED: dict[str, tuple[Any, str]] = {
    "numpy's list": (str(np.array(["a", "b"])), r"begins like a list"),
    "numpy's list on two lines": ("['a'\n 'b']", r"begins like a list"),
    "numpy's numbers": ("[1 2]", "begins like a list"),
    "numpy's texts": ("[np.str_('a')]", "begins like a list"),
    "numpy inside an object": (str({"text": np.array(["a"], dtype=object)}), "begins like a list"),
    "an array": ("array(['a'], dtype=object)", "the Python form of a collection"),
    "a tuple": ("('a', 'b')", "the Python form of a collection"),
    "a set": ("{'a', 'b'}", "begins like a list"),
    "a list without quotation marks": ("[Paris, paris]", "begins like a list"),
    "a list that was cut off": ("['Paris', 'par", "begins like a list"),
    "code": ("[__import__('os').getcwd()]", "begins like a list"),
    "a missing value in words": (
        "NaN",
        r'missing value or an answer; leave the cell empty, or write \["NaN"\]',
    ),
    "an unknown object": ({"answer": "Paris"}, r"an object with the keys \['answer'\]"),
    "an object with more keys": (
        {"text": ["A", "B"], "label": ["x", "y"]},
        "an object with the keys",
    ),
    "choices without labels": (
        {"choices": ["a", "b"], "labels": [1]},
        "two lists of the same length",
    ),
    "labels that are words": (
        {"choices": ["a", "b"], "labels": ["A", "B"]},
        "label 'A' of a choice",
    ),
    "a list as an item": (["['Paris', 'paris']"], "as an item of a list; write it as a list"),
    "bytes in a list": ("[b'a']", r"found b'a' \(bytes\)"),
    "nested deeply": ("[" * 400 + '"a"' + "]" * 400, "nested too deeply; flatten them"),
}


@pytest.mark.parametrize("end", FILES)
@pytest.mark.parametrize("form", REFUSED)
def test_unsupported_forms_are_refused_with_file_row_and_column(
    tmp_path: Path, form: str, end: str
) -> None:
    value, message = REFUSED[form]
    path = write(tmp_path / f"a.{end}", [value])
    with pytest.raises(UserError, match=rf"row 1 of .*a\.{end}, column 'gold': .*{message}"):
        read(path)


def test_dates_and_bytes_of_parquet_are_refused(tmp_path: Path) -> None:
    for value in (pd.Timestamp("2026-01-01"), b"Paris"):
        with pytest.raises(
            UserError,
            match=r"row 1 of .*, column 'gold': found .*; expected a text, a number, .*choices and labels",
        ):
            read(write(tmp_path / "a.parquet", [value]))


def test_hidden_answers_of_the_triviaqa_test_split_are_ignored(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", [{"value": "<unk>", "aliases": []}])) == [[]]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_a_dot_names_a_key_of_nested_objects(tmp_path: Path, end: str) -> None:
    path = write(
        tmp_path / f"a.{end}", [{"value": "Paris", "other": [{"text": "a"}, {"text": "b"}]}, None]
    )
    assert read(path, "gold.value") == [["Paris"], []]
    assert read(path, "gold.other.text") == [["a", "b"], []]


def test_a_column_whose_name_has_a_dot_precedes_a_nested_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"gold.value": "Rome", "gold": {"value": "Paris"}}\n')
    assert read(tmp_path / "a.jsonl", "gold.value") == [["Rome"]]


def test_a_missing_nested_column_is_named_with_the_existing_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"value": "Paris"}])
    chosen = {
        "source": "file",
        "mode": "generated",
        "path": str(path),
        "question_column": "q",
        "gold_column": "gold.x",
    }
    with pytest.raises(
        UserError,
        match=r"gold_column: .*no column 'gold.x'; found q, gold, gold\.value\. Set gold_column",
    ):
        datasets.load_questions(DatasetSettings.model_validate(chosen), seed=0, count=2)


ANSWERS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.text("[]{}()'\"\\;,: abN7.0\n\r\t", max_size=12),
        st.sampled_from(
            ["['a', 'b']", '["a"]', "None", "nan", "7.0", "True", "{'text': 'a'}", "a' 'b"]
        ),
    ),
    min_size=1,
    max_size=4,
)


@hypothesis_settings(max_examples=100, deadline=None, database=None)
@given(answers=ANSWERS)
def test_a_list_written_by_pandas_or_json_is_read_back_or_refused(
    tmp_path_factory: pytest.TempPathFactory, answers: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("gold")
    expected = [answer.strip() for answer in answers if answer.strip()]
    cells: dict[str, list[Any]] = {
        "csv": [
            answers,
            json.dumps(answers),
            json.dumps(answers, ensure_ascii=False),
            np.array(answers, dtype=object),
        ],
        "jsonl": [answers, str(answers), json.dumps(answers), [answers], {"text": answers}],
        "parquet": [answers, answers],
    }
    for end, column in cells.items():
        path = write(folder / f"a.{end}", column)
        try:
            rows = read_rows(path)
        except UserError:
            continue
        for number, row in enumerate(rows, start=1):
            try:
                assert answers_of(row, "gold", number, str(path)) == expected
            except UserError:
                assert (end, number) == ("csv", 4) or not all(
                    answer.isalnum() for answer in answers
                )


@hypothesis_settings(max_examples=100, deadline=None, database=None)
@given(
    answers=st.lists(
        st.one_of(st.integers(), st.booleans(), st.floats(allow_infinity=False, allow_nan=False)),
        min_size=1,
        max_size=4,
    )
)
def test_lists_of_numbers_are_the_same_as_text_as_python_and_as_json(
    tmp_path_factory: pytest.TempPathFactory, answers: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("gold")
    column = [answers, str(answers), json.dumps(answers)]
    read_again = [read(write(folder / f"a.{end}", column)) for end in ("csv", "jsonl")]
    first = read_again[0][0]
    assert read_again == [[first] * 3] * 2
    assert [
        float(each.replace("true", "1").replace("false", "0")) for each in first
    ] == pytest.approx([float(each) for each in answers])
