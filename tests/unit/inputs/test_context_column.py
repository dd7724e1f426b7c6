"""The column with contexts: read as it is, groups texts, and is refused where it cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ghosttrack.errors import UserError
from ghosttrack.inputs import datasets
from ghosttrack.settings import DatasetSettings


def settings(path: Path, **more: Any) -> DatasetSettings:
    return DatasetSettings.model_validate(
        {"source": "file", "path": str(path), "context_column": "passage", **more}
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows() -> list[dict[str, Any]]:
    return [
        {"text": "one", "label": 0, "passage": "first \n", "topic": "a"},
        {"text": "two", "label": 1, "passage": "second", "topic": "b"},
        {"text": "three", "label": 1, "passage": "first", "topic": "c"},
        {"text": "four", "label": 0, "passage": "", "topic": "d"},
        {"text": "five", "label": 1, "passage": None, "topic": "e"},
        {"text": "six", "label": 0, "passage": "third", "topic": "b"},
    ]


def test_texts_with_the_same_context_are_together_and_in_one_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows())
    frame = datasets.load_examples(settings(path, group_column="topic"), 0)
    assert frame["text"].tolist() == ["one", "three", "two", "four", "five", "six"]
    assert frame["context"].tolist() == ["first", "first", "second", "", "", "third"]
    group = dict(zip(frame["text"], frame["group"], strict=True))
    assert group["one"] == group["three"]  # one context
    assert group["two"] == group["six"]  # one topic
    # Texts without a context share nothing.
    assert len({group[name] for name in ("one", "two", "four", "five")}) == 4


def test_contexts_that_differ_in_white_space_and_case_are_in_one_group(tmp_path: Path) -> None:
    passages = ["A page.\nEnd", "A page.\r\nEnd", "a  page. END", "another"]
    written = [
        {"text": f"text {n}", "label": n % 2, "passage": passage, "question": f"question {n}"}
        for n, passage in enumerate(passages)
    ]
    path = write(tmp_path / "x.jsonl", written)
    frame = datasets.load_examples(settings(path, question_column="question"), 0)
    assert frame["group"].tolist() == ["question 0"] * 3 + ["question 3"]
    assert frame["context"].tolist() == passages


def test_a_context_that_most_texts_share_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passages = ["You are helpful."] * 4 + ["first", ""]
    written = [
        {"text": f"text {number}", "label": number % 2, "passage": passage}
        for number, passage in enumerate(passages)
    ]
    datasets.load_examples(settings(write(tmp_path / "x.jsonl", written)), 0)
    assert "4 of 6 texts share the context 'You are helpful.', so they are one gr" in caplog.text
    caplog.clear()
    datasets.load_examples(settings(write(tmp_path / "x.jsonl", written[2:])), 0)
    assert "share the context" not in caplog.text


def test_a_long_context_gives_its_group_a_short_name(tmp_path: Path) -> None:
    long = "A passage. " * 4_000
    passages = [long, f"{long} another", long.upper(), "short"]
    path = write(
        tmp_path / "x.jsonl",
        [
            {"text": f"text {number}", "label": number % 2, "passage": passage}
            for number, passage in enumerate(passages)
        ],
    )
    frame = datasets.load_examples(settings(path), 0)
    group = dict(zip(frame["text"], frame["group"], strict=True))
    assert frame["group"].str.len().max() < 150
    assert group["text 0"] != group["text 1"]
    assert group["text 0"] == group["text 2"]  # up to case
    assert group["text 3"] == "short"


def test_a_long_value_of_the_group_column_is_shortened(tmp_path: Path) -> None:
    table = [{**row, "topic": f"{row['topic']} " * 1_000} for row in rows()]
    path = write(tmp_path / "x.jsonl", table)
    frame = datasets.load_examples(settings(path, group_column="topic"), 0)
    assert frame["group"].str.len().max() < 150
    assert frame["group"].nunique() == 4


def test_contexts_are_no_part_of_the_judged_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows())
    frame = datasets.load_examples(settings(path), 0)
    assert all(
        text[start:end] == answer == text
        for text, start, end, answer in zip(
            frame["text"], frame["answer_start"], frame["answer_end"], frame["answer"], strict=True
        )
    )


def test_a_context_may_be_longer_than_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{**row, "passage": "long " * 40_000} for row in rows()])
    assert datasets.load_examples(settings(path), 0)["context"].str.len().min() > 150_000


def test_the_rule_for_long_contexts_is_kept_with_the_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows())
    assert "long_contexts" not in datasets.load_examples(settings(path), 0)
    frame = datasets.load_examples(settings(path, long_contexts="window"), 0)
    assert set(zip(frame["context"] != "", frame["long_contexts"], strict=True)) == {
        (True, "window"),
        (False, ""),
    }


def test_without_contexts_the_table_has_no_column_for_them(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{**row, "passage": None} for row in rows()])
    frame = datasets.load_examples(settings(path), 0)
    assert not {"context", "long_contexts"} & set(frame)


def test_written_contexts_are_read_back(tmp_path: Path) -> None:
    import pandas as pd

    frame = datasets.load_examples(settings(write(tmp_path / "x.jsonl", rows())), 0)
    datasets.write_table(frame, tmp_path / "x.parquet")
    assert pd.read_parquet(tmp_path / "x.parquet")["context"].tolist() == list(frame["context"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"k": "a"}, r"row 3 of .*'passage' \(context_column\) holds .*context_column: passage\.k"),
        (
            ["a", "b"],
            r"row 3 of .*\(context_column\) holds \['a', 'b'\] \(list\); .* Join its parts",
        ),
        ([{"text": "a"}], r"row 3 of .*\(context_column\) holds \[.* \(list\); .* Join its parts"),
        (float("inf"), r"row 3 of .*\(context_column\) holds inf \(float\); .* Write it as text"),
        ("a\0b", r"row 3 of .*'passage': character 2 is NUL"),
        ("\ud800", r"row 3 of .*half of a surrogate pair"),
    ],
)
def test_a_cell_that_is_no_context_is_refused_with_its_row(
    tmp_path: Path, value: Any, message: str
) -> None:
    table = rows()
    table[2]["passage"] = value
    with pytest.raises(UserError, match=message):
        datasets.load_examples(settings(write(tmp_path / "x.jsonl", table)), 0)


def test_a_missing_column_is_named_with_its_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(UserError, match=r"context_column: .* has no column 'passage'"):
        datasets.load_examples(settings(path), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "truthfulqa"},
        {"mode": "generated", "question_column": "q", "gold_column": "g"},
        {"conflict": {}},
    ],
)
def test_contexts_that_could_not_be_read_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="context_column"):
        settings(Path("x.jsonl"), **change)
