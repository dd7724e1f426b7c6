"""Tables and arrays: errors about damaged files, and csv without formulas."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ghosttrack.cli import score
from ghosttrack.detection.scored_texts import ScoredSentence, ScoredText, ScoredToken
from ghosttrack.errors import UserError
from ghosttrack.runtime import tables
from tests.conftest import ROOT


def test_complete_files_are_read(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1], "b": [2]}).to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", x=np.arange(3))
    assert tables.read_parquet(tmp_path / "t.parquet", ["b"]).columns.tolist() == ["b"]
    assert tables.read_npz(tmp_path / "t.npz")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"PAR1 half", b"PK half"])
@pytest.mark.parametrize("name", ["t.parquet", "t.npz"])
def test_the_error_about_a_damaged_file_has_its_path_and_the_remedy(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    read = tables.read_parquet if name.endswith("parquet") else tables.read_npz
    with pytest.raises(UserError, match=f"{name} cannot be read .*delete it and run again"):
        read(tmp_path / name)


def test_the_error_about_a_missing_file_does_not_say_to_delete_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.parquet is missing: run the workflow again"):
        tables.read_parquet(tmp_path / "gone.parquet")
    with pytest.raises(UserError, match=r"gone\.npz is missing: run the workflow again"):
        tables.read_npz(tmp_path / "gone.npz")


FORMULAS = (
    "=1+1",
    "+1 Paris",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
    "=cmd|' /C calc'!A0",
    "'=1",
    "''-x",
    "-1;2",
)
PLAIN = (
    "Paris",
    "'tis",
    "a=b",
    "-5",
    "+1.5e3",
    "-.5",
    "",
    "a\rb",
    'say "no"',
    "a,b",
    "x\n=1",
    "NA",
    "é",
)


def written(table: pd.DataFrame) -> str:
    text = io.StringIO()
    tables.write_csv(table, text)
    return text.getvalue()


def test_csv_text_is_no_formula_and_is_read_back_unchanged(tmp_path: Path) -> None:
    table = pd.DataFrame({"claim": [*FORMULAS, *PLAIN], "value": -1.5})
    text = written(table)
    cells = [row["claim"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert len(cells) == len(table)
    assert [cell for cell in cells if cell[:1] in set("=+-@\t\r\n\uff1d")] == [
        "-5",
        "+1.5e3",
        "-.5",
    ]  # numbers
    (tmp_path / "t.csv").write_text(text, newline="")
    assert (
        tables.read_csv(tmp_path / "t.csv")["claim"].fillna("").tolist() == table["claim"].tolist()
    )


@pytest.mark.parametrize("name", ["=1", "a\r=1"])
def test_a_line_break_in_a_text_does_not_begin_a_row(name: str) -> None:
    assert (
        len(
            list(
                csv.reader(
                    io.StringIO(written(pd.DataFrame({"a": [name], "b": ["x"]})), newline="")
                )
            )
        )
        == 2
    )


@pytest.mark.parametrize("text", [*FORMULAS, "a\r=1+1", "a\n=1+1"])
def test_a_scored_text_is_no_formula_and_begins_no_row_in_the_csv_of_scores(text: str) -> None:
    judged = ScoredText(
        text,
        text,
        0,
        len(text),
        0.5,
        -0.25,
        0.0,
        "abstain",
        [ScoredToken(0, len(text), 1.0, 0.0)],
        [],
        sentences=(ScoredSentence(0, len(text), 0, len(text), 0.5, -0.25, 0.0, "abstain", []),),
    )
    rows = list(csv.reader(io.StringIO("".join(score.as_csv([judged])), newline="")))
    assert len(rows) == 2
    for name, cell in zip(*rows, strict=True):
        assert not cell.startswith(("=", "+", "@", "\t", "\r", "\n", "\uff1d")), name
        assert not cell.startswith("-") or cell == "-0.25", name


def test_numbers_and_booleans_of_a_csv_table_are_unchanged(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"n": [-1, 2], "x": [-0.25, float("nan")], "control": [True, False], "reason": ["-x", None]}
    )
    assert written(table) == "n,x,control,reason\n-1,-0.25,True,'-x\n2,,False,\n"
    (tmp_path / "t.csv").write_text(written(table))
    back = tables.read_csv(tmp_path / "t.csv")
    assert back["n"].tolist() == [-1, 2]
    assert back["x"].isna().tolist() == [False, True]
    assert back["control"].tolist() == [True, False]
    assert back["reason"].tolist()[0] == "-x"


@pytest.mark.parametrize("column", ["dataset", "trained_on", "model", "reference"])
@pytest.mark.parametrize(
    "names",
    [["NA", "null", "nan", "None", "N/A", "NULL"], ["2024", "007"], ["true", "false"], ["1.10"]],
)
def test_names_of_data_sets_and_models_are_read_back_from_csv_unchanged(
    tmp_path: Path, column: str, names: list[str]
) -> None:
    (tmp_path / "t.csv").write_text(written(pd.DataFrame({column: names, "auroc": 0.5})))
    assert tables.read_csv(tmp_path / "t.csv")[column].tolist() == names


def test_every_csv_table_is_written_and_read_by_the_helper() -> None:
    sources = [
        path for path in (ROOT / "workflow_scripts").rglob("*.py") if path.name != "tables.py"
    ]
    assert len(sources) > 100
    for path in sources:
        assert not re.search(r"\.to_csv\(|\bpd\.read_csv\(", path.read_text()), path
