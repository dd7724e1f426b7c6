"""Texts to score from files: ids, answers and contexts in every form that files have."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ghosttrack.api import Detector, Score, Text
from ghosttrack.errors import UserError
from ghosttrack.score import read_texts


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_ids_and_answers_that_are_numbers_zero_included_are_kept(tmp_path: Path, end: str) -> None:
    rows = [{"text": f"It is {n}", "answer": n, "id": n} for n in range(3)]
    found = list(read_texts(write(tmp_path / f"a.{end}", rows)))
    assert [(each.id, each.answer) for each in found] == [("0", "0"), ("1", "1"), ("2", "2")]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_integers_of_a_column_with_a_gap_stay_integers_and_a_gap_is_the_rows_number(tmp_path: Path, end: str) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "It is 7", "answer": 7, "id": 10},
        {"text": "It is 7", "answer": None, "id": None},
    ]
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        write(path, rows)
    else:
        write(path, pd.DataFrame(rows).to_dict("records"))
    assert [(each.id, each.answer) for each in read_texts(path)] == [("10", "7"), ("2", "")]


@pytest.mark.parametrize(
    ("ids", "rows"),
    [([0, 1, 0], "1 and 3"), (["a", "a", "b"], "1 and 2"), ([2, None, 5], "1 and 2"), ([0, "0", 1], "1 and 2")],
)
def test_two_rows_of_one_id_are_refused_by_number_before_any_is_scored(
    tmp_path: Path, ids: list[Any], rows: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "It is so", "id": each} for each in ids])
    with pytest.raises(UserError, match=rf"rows {rows} of .*a\.jsonl have the same id"):
        next(read_texts(path))


@pytest.mark.parametrize("column", ["id", "answer", "context"])
def test_a_list_where_a_text_is_expected_is_refused_with_row_and_column(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "It is so", column: ["so"]}])
    with pytest.raises(
        UserError, match=rf"row 1 of .*: expected text or a number in column '{column}', found \['so'\]"
    ):
        list(read_texts(path))


def test_a_text_with_a_question_does_not_take_the_context_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "Ada", "question": "Who?"}, {"text": "It is so"}])
    found = list(read_texts(path, "Before.\n"))
    assert [(each.question, each.context) for each in found] == [("Who?", ""), ("", "Before.\n")]


class Echo(Detector):
    """A detector without a model, which hands back the texts as it would read them."""

    def __init__(self) -> None:
        self.seen: list[Text] = []

    def _window(self, window: Sequence[Text], *_: float) -> Iterator[Score]:
        self.seen += window
        return iter(())


def test_the_detector_keeps_ids_and_answers_that_are_numbers() -> None:
    detector = Echo()
    detector.score(
        [{"text": "It is 0", "answer": 0, "id": 0}, {"text": "It is 7", "answer": 7.0, "id": None}, "It is so"]
    )
    assert [(each.id, each.answer) for each in detector.seen] == [("0", "0"), ("2", "7"), ("3", "")]


def test_the_detector_refuses_two_texts_of_one_id_and_values_that_are_no_text() -> None:
    with pytest.raises(UserError, match="texts 1 and 2 have the same id '0'"):
        Echo().score([{"text": "It is so", "id": 0}, Text("It is not", id="0")])
    with pytest.raises(UserError, match=r"text 1: answer: expected text or a number, found \['so'\]"):
        Echo().score([{"text": "It is so", "answer": ["so"]}])
