"""The column with spans: forms of public data sets, positions, and errors with their row."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
from pydantic import ValidationError

from ghosttrack.activations import example_tokens
from ghosttrack.errors import UserError
from ghosttrack.facts.spans import Span
from ghosttrack.inputs import datasets
from ghosttrack.inputs.span_cells import spans_of
from ghosttrack.settings import DatasetSettings

ANSWER = "Paris has 79 🙂 rivers."


def settings(path: Path, **more: Any) -> DatasetSettings:
    return DatasetSettings.model_validate(
        {"source": "file", "path": str(path), "spans_column": "spans", **more}
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], []),
        ("[]", []),
        ([{"start": 10, "end": 12, "text": "79", "label_type": "Evident"}], [Span(10, 12)]),
        ("[{'start': 10, 'end': 12, 'implicit_true': False}]", [Span(10, 12)]),
        ('[{"start": 10, "end": 12}]', [Span(10, 12)]),
        ([[10, 12], [0, 5]], [Span(10, 12), Span(0, 5)]),
        ([[10, 12, 0.25]], [Span(10, 12, 0.25)]),
        (
            [{"start": 10, "prob": 0.2, "end": 12}, {"start": 12, "prob": 1, "end": 22}],
            [Span(10, 12, 0.2), Span(12, 22, 1.0)],
        ),
        ({"start": [10, 13], "end": [12, 14]}, [Span(10, 12), Span(13, 14)]),
        ({"start": [], "end": []}, []),
        ([{"start": 10.0, "end": 12.0}], [Span(10, 12)]),
        (ANSWER, []),
        ("Paris has <entity><mark>1</mark><delete>79</delete></entity> 🙂 rivers.", [Span(10, 12)]),
        ("Paris has <invented>79\n🙂  rivers</invented>.", [Span(10, 21)]),
        (
            "<subjective>Paris <relation>has</relation></subjective> 79 <delete>🙂</delete> rivers.",
            [Span(0, 9), Span(13, 14)],
        ),
    ],
)
def test_the_forms_of_public_data_sets_are_read(value: Any, expected: list[Span]) -> None:
    assert spans_of({"spans": value}, "spans", ANSWER, 1, "x.jsonl") == expected


def test_a_span_without_a_probability_is_sure_in_every_format(tmp_path: Path) -> None:
    """Parquet gives all objects the same keys, with null where a key was absent."""
    spans = [{"start": 0, "end": 5}, {"start": 10, "end": 12, "prob": 0.4}]
    frame = pd.DataFrame({"text": [ANSWER, "It has one."], "spans": [spans, []]})
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    for name in ("x.parquet", "x.jsonl"):
        read = datasets.load_examples(settings(tmp_path / name), seed=0)
        assert list(read["spans"]) == [[Span(0, 5), Span(10, 12, 0.4)], []]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("[1] It has <entity>79</entity> rivers.", [Span(11, 13)]), ("[1] It has 79 rivers.", [])],
)
def test_an_answer_with_tags_may_begin_with_a_bracket(value: str, expected: list[Span]) -> None:
    row = {"spans": value}
    assert spans_of(row, "spans", "[1] It has 79 rivers.", 1, "x.jsonl") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 23]], r"span 1 has the characters 0 to 23 of an answer of 22 characters; expected 0"),
        ([[0, 1], [-1, 2]], r"span 2 has the characters -1 to 2"),
        ([[5, 5]], r"characters 5 to 5 of an answer"),
        ([[6, 5]], r"characters 6 to 5 of an answer"),
        ([{"start": 10, "end": 12, "text": "80"}], r"the text '80', and .* 10 to 12 .* are '79'"),
        ([[0, 1, 1.5]], r"the probability 1\.5; expected 0 to 1"),
        ([[0.5, 1]], r"the position 0\.5, which is no whole number"),
        ([[float("inf"), 1]], r"the position inf"),
        ([{"start": 1}], r"a span without start or end"),
        (["Paris"], r"found 'Paris' in the list; expected a list of spans"),
        (None, r"found nothing; expected a list of spans .*, \[\] for none"),
        ("", r"found nothing"),
        ("[1, ", r"found '\[1,', which is no list"),
        ("[{[10, 12]}]", r"found '\[\{\[10, 12\]\}\]', which is no list"),
        ("{[10, 12]: 1}", r"found '\{\[10, 12\]: 1\}', which is no list"),
        ([[0, 10**400]], r"span 1 has the characters 0 to 10+ of an answer"),
        ([[0, 1, 10**400]], r"the probability inf; expected 0 to 1"),
        (7, r"found 7; expected"),
        ({"start": [1], "end": [2, 3]}, r"lists of different lengths"),
        ({"first": [1]}, r"an object with the keys first"),
        ("Paris has <entity>80</entity> rivers.", r"found '80' where the answer has '79"),
        ("Paris has <entity>79 🙂 rivers.", r"a tag that is not closed"),
        ("Paris has</entity> 79 🙂 rivers.", r"found </entity> without its opening tag"),
        ("Paris has <entity>79</entity>", r"a text that ends before '🙂 rivers\.'"),
    ],
)
def test_an_error_names_row_column_and_what_was_found(value: Any, message: str) -> None:
    with pytest.raises(
        UserError, match=rf"row 7 of x\.jsonl, column 'spans' \(spans_column\): .*{message}"
    ):
        spans_of({"spans": value}, "spans", ANSWER, 7, "x.jsonl")


ROWS = [
    {"text": "  Paris has 79 rivers. ", "spans": [[12, 14]], "writer": "a", "topic": 1},
    {"text": "It has one.", "spans": [], "writer": "b", "topic": 2},
    {"text": "It may have one.", "spans": [[0, 2, 0.3]], "writer": "a", "topic": 3},
]


def test_labels_follow_from_spans_and_positions_from_the_stripped_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    frame = datasets.load_examples(settings(path, generator_column="writer"), 0)
    assert frame["label"].tolist() == [1, 0, 0]
    assert frame["spans"].tolist() == [[Span(10, 12)], [], [Span(0, 2, 0.3)]]
    assert frame["answer"][0][10:12] == "79"
    assert frame["generator"].tolist() == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ({"text": "Q? It has 79.", "q": "Q?", "spans": [[7, 9]]}, {"question_column": "q"}),
        ({"text": "It has 79.", "q": "Q?", "spans": [[7, 9]]}, {"question_column": "q"}),
        (
            {"text": "Q? It has 79. More.", "part": " It has 79. ", "spans": [[8, 10]]},
            {"answer_column": "part"},
        ),
    ],
)
def test_spans_are_relative_to_the_answer(
    tmp_path: Path, row: dict[str, Any], more: dict[str, Any]
) -> None:
    other = {**row, **{key: f"{row[key]}x" for key in ("text",)}, "spans": []}
    if "part" in row:
        other["text"] = row["text"].replace("More", "Less")
    frame = datasets.load_examples(settings(write(tmp_path / "x.jsonl", [row, other]), **more), 0)
    (span,) = frame["spans"][0]
    assert frame["answer"][0][span.start : span.end] == "79"


def test_written_spans_are_read_back_and_mark_the_tokens_of_the_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        [
            {"text": ANSWER, "q": "Is it?", "spans": [[11, 14], [20, 21, 0.3]]},
            {**ROWS[1], "q": "a"},
        ],
    )
    frame = datasets.load_examples(settings(path, question_column="q"), 0)
    datasets.write_table(frame, tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    tokenizer = small_models.make_tokenizer()
    for positions in ("answer", "all"):
        encoded = example_tokens.encode(frame, tokenizer, 200, "x", positions=positions)
        columns = pd.DataFrame(example_tokens.span_columns(frame, encoded))
        rows = columns[: len(encoded[0].read)]
        inside = np.isin(encoded[0].read, encoded[0].answer)
        assert rows["span"].isna().tolist() == (~inside).tolist()
        answer = rows[inside]
        for start, end, value in answer.itertuples(index=False):
            text = ANSWER[max(start, 0) : end]
            marked = set(text) & set("9🙂") or (start, end) == (12, 13)  # the space in the span
            expected = 1.0 if marked else 0.3 if end == 21 else 0.0
            assert value == expected, text
        assert (answer["span"] == 1).sum() >= 4  # the digit, and the bytes of one character
        assert (columns[len(rows) :]["span"].dropna() == 0).all()


def test_repeats_in_different_contexts_are_different_answers(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "Unable to answer.", "spans": [], "passage": "a"},
        {"text": "Unable to answer.", "spans": [[0, 6]], "passage": "b"},
        {"text": "Unable to answer.", "spans": [], "passage": "a"},
    ]
    frame = datasets.load_examples(
        settings(write(tmp_path / "x.jsonl", rows), context_column="passage"), 0
    )
    assert frame["label"].tolist() == [0, 1]
    assert frame.attrs["dropped_repeats"] == 1


def test_a_missing_column_is_named_with_its_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(UserError, match=r"spans_column: .* has no column 'spans'"):
        datasets.load_examples(settings(path), 0)


@pytest.mark.parametrize("key", ["spans_column", "generator_column"])
@pytest.mark.parametrize("change", [{"source": "truthfulqa"}, {"conflict": {}}])
def test_columns_that_would_not_be_read_are_refused(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{key}: only for source: file"):
        DatasetSettings.model_validate(
            {"source": "file", "path": "x.jsonl", key: "column", **change}
        )


@pytest.mark.skipif(
    not os.environ.get("GHOSTTRACK_TEST_DATA"), reason="GHOSTTRACK_TEST_DATA names no folder"
)
def test_the_real_ragtruth_file_is_read() -> None:
    path = Path(os.environ["GHOSTTRACK_TEST_DATA"]) / "ragtruth/QA-test.jsonl"
    frame = datasets.load_examples(
        DatasetSettings(
            source="file",
            path=str(path),
            text_column="output",
            context_column="input",
            spans_column="hall_info",
            generator_column="model",
        ),
        0,
    )
    # Two models gave the same answer to the same question seven times.
    assert (len(frame), frame.attrs["dropped_repeats"]) == (893, 7)
    assert (frame["label"].sum(), frame["group"].nunique()) == (160, 150)
    assert frame["spans"].map(len).sum() == 235
    assert frame["generator"].nunique() == 6
