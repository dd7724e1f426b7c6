"""Texts to score from files: ids, answers and contexts in every form that files have."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ghosttrack.api import Detector
from ghosttrack.cli import given_texts, score
from ghosttrack.cli.given_texts import read_texts
from ghosttrack.detection.scored_texts import ScoredText, Text
from ghosttrack.errors import UserError


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
def test_integers_of_a_column_with_a_gap_stay_integers_and_a_gap_is_the_rows_number(
    tmp_path: Path, end: str
) -> None:
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
    [
        ([0, 1, 0], "1 and 3"),
        (["a", "a", "b"], "1 and 2"),
        ([2, None, 5], "1 and 2"),
        ([0, "0", 1], "1 and 2"),
    ],
)
def test_two_rows_of_one_id_are_refused_by_number_before_any_is_scored(
    tmp_path: Path, ids: list[Any], rows: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "It is so", "id": each} for each in ids])
    with pytest.raises(UserError, match=rf"rows {rows} of .*a\.jsonl have the same id"):
        next(read_texts(path))


@pytest.mark.parametrize("column", ["id", "answer", "context"])
def test_a_list_where_a_text_is_expected_is_refused_with_row_and_column(
    tmp_path: Path, column: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "It is so", column: ["so"]}])
    with pytest.raises(
        UserError,
        match=rf"row 1 of .*: expected text or a number in column '{column}', found \['so'\]",
    ):
        list(read_texts(path))


def test_a_text_with_a_question_does_not_take_the_context_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "Ada", "question": "Who?"}, {"text": "It is so"}])
    found = list(read_texts(path, "Before.\n"))
    assert [(each.question, each.context) for each in found] == [("Who?", ""), ("", "Before.\n")]


class Echo(Detector):
    """A detector without a model that returns the texts as it would read them."""

    def __init__(self) -> None:
        self.seen: list[Text] = []
        self.calibration = None

    def _window(self, window: Sequence[Text], *_: float) -> Iterator[ScoredText]:
        self.seen += window
        return iter(())


def test_a_negative_number_of_reasons_is_refused() -> None:
    with pytest.raises(UserError, match="reasons: -1"):
        Echo().score(["It is so"], reasons=-1)


def test_the_detector_keeps_ids_and_answers_that_are_numbers() -> None:
    detector = Echo()
    detector.score(
        [
            {"text": "It is 0", "answer": 0, "id": 0},
            {"text": "It is 7", "answer": 7.0, "id": None},
            "It is so",
        ]
    )
    assert [(each.id, each.answer) for each in detector.seen] == [("0", "0"), ("2", "7"), ("3", "")]


def test_the_detector_refuses_two_texts_of_one_id_and_values_that_are_no_text() -> None:
    with pytest.raises(UserError, match="texts 1 and 2 have the same id '0'"):
        Echo().score([{"text": "It is so", "id": 0}, Text("It is not", id="0")])
    with pytest.raises(
        UserError, match=r"text 1: answer: expected text or a number, found \['so'\]"
    ):
        Echo().score([{"text": "It is so", "answer": ["so"]}])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_tilde_stands_for_the_home_directory_wherever_a_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text('{"text": "a"}' if name == "a.jsonl" else "a", encoding="utf-8")
    (tmp_path / "context.txt").write_text("b", encoding="utf-8")
    assert [each.text for each in given_texts.read_texts(Path(f"~/{name}"))] == ["a"]
    assert given_texts.read_context("~/context.txt") == "b"
    assert score.path_of("~/a.html") == tmp_path / "a.html"
    with pytest.raises(
        UserError, match=rf"{tmp_path}/run does not exist: give the folder of a finished run"
    ):
        Detector.load("~/run")


NOBODY = "~nobody-of-this-name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--texts", "nowhere.csv"], "error: texts: there is no file nowhere.csv"),
        (["run", "--texts", "nowhere.txt"], "error: texts: there is no file nowhere.txt"),
        (["run", "--texts", "."], "error: texts: . is a directory"),
        (
            ["run", "--texts", "blank.txt"],
            "error: texts: blank.txt has no text; expected one text per line",
        ),
        (["run", "--texts", "nul.txt"], "error: texts: line 1 of nul.txt: character 2 is NUL"),
        (
            ["run", "--texts", "label.csv"],
            "has no column 'text'; found label. Rename the column that holds it to 'text'",
        ),
        (
            ["run", "a b", "--context", "nowhere.txt"],
            "error: context: there is no file nowhere.txt",
        ),
        (["run", "a b", "--context", "."], "error: context: . is a directory"),
        (
            ["run", "a b", "--out", "folder.csv"],
            "error: --out: folder.csv is a folder; name a file in this folder",
        ),
        (
            ["run", "a b", "--out", "blank.txt/x/a.csv"],
            "error: --out: blank.txt is a file, not a folder",
        ),
        (
            ["run", "a b", "--out", "a.xlsx"],
            "error: --out: a.xlsx must end in .jsonl, .csv or .html",
        ),
        (["nowhere", "a b"], "error: nowhere does not exist: give the folder of a finished run"),
        (
            [NOBODY, "a b"],
            "argument run: '~nobody-of-this-name' begins with the home directory of an unknown user",
        ),
        (["run", "--texts", "label.csv", "--out", "label.csv"], "label.csv is a given file, which"),
        (["run", "--texts", NOBODY], "argument --texts: '~nobody-of-this-name' begins"),
        (["run", "a b", "--out", NOBODY], "argument --out: '~nobody-of-this-name' begins"),
        (["run", "a b", "--context", NOBODY], "argument --context: '~nobody-of-this-name' begins"),
    ],
)
def test_a_wrong_path_is_refused_in_one_line_before_the_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "nul.txt").write_text("a\0 is a letter of many\n", encoding="utf-8")
    (tmp_path / "label.csv").write_text("label\n0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        sys.exit(score.main(arguments))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        (["Rome", "is"], True),
        ([" Rome ", "is\t"], True),
        (["Der", "B\u00e4r"], True),
        (
            ["\u4e1c\u4eac\u5728\u65e5\u672c\u3002", "\u5df4\u9ece\u5728\u5fb7\u56fd\u3002"],
            False,
        ),  # Chinese
        (["Rome is in Italy.", "No"], False),
    ],
)
def test_words_without_quotation_marks_are_refused_and_texts_without_spaces_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: list[str], refused: bool
) -> None:
    assert score.main([str(tmp_path / "no_run"), *texts]) == 2
    assert ("texts of one word each" in capsys.readouterr().err) == refused
