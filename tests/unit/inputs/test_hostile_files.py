"""Unusual files are read exactly or refused in one line with a remedy, never a traceback."""

import csv
import datetime
import io
import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyarrow import parquet

from ghosttrack.api import Detector
from ghosttrack.cli.given_texts import read_texts
from ghosttrack.errors import UserError
from ghosttrack.inputs import datasets, documents, user_texts
from ghosttrack.inputs.rows import read_rows
from ghosttrack.settings import CorpusSettings, DatasetSettings

TABLE = [("Paris is in France", "0"), ("Rome, Italy; a | city", "1")]


def texts_of(path: Path) -> list[tuple[str, int]]:
    """Text and label of each row, read as a data set."""
    settings = DatasetSettings.model_validate({"source": "file", "path": str(path)})
    frame = datasets.load_examples(settings, seed=0)
    return list(zip(frame["text"], frame["label"], strict=True))


def documents_of(path: Path, **values: Any) -> list[str]:
    """The documents of a corpus file."""
    source = documents.open_source(
        CorpusSettings.model_validate({"source": str(path), **values}), seed=0
    )
    return [text for stream in source.streams for text in stream.documents]


def refused(path: Path, message: str, read: Callable[[Path], Iterable[Any]]) -> None:
    """Check that a file is refused by a reader, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


def write_parquet(path: Path, table: pa.Table) -> Path:
    parquet.write_table(table, path)
    return path


READERS: dict[str, Callable[[Path], Iterable[Any]]] = {
    "data set": read_rows,
    "score": read_texts,
    "corpus": documents_of,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_repeated_column_of_parquet_is_named(tmp_path: Path, reader: str) -> None:
    column = pa.array(["a", "b"])
    path = write_parquet(tmp_path / "a.parquet", pa.table([column, column], names=["text", "text"]))
    refused(
        path,
        r"a\.parquet has two columns with the name 'text'; rename or remove one",
        READERS[reader],
    )


@pytest.mark.parametrize("reader", READERS)
def test_damaged_parquet_is_refused_in_one_line_with_a_remedy(tmp_path: Path, reader: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a b", "c d"]}))
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\xff" * 30 + content[40:])
    refused(path, r"a\.parquet is damaged.*; write it or download it again", READERS[reader])
    path.write_bytes(content[: len(content) // 2])
    refused(
        path,
        r"a\.parquet is damaged or is not a parquet file .*; write it or download it again",
        READERS[reader],
    )


def separated(rows: Iterable[Iterable[str]], mark: str, quoting: Literal[0, 1]) -> str:
    """A table with a given separator."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, quoting=quoting).writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize("end", ["csv", "tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("above", ["", "\ufeff", "\ufeff\ufeff", "\r\n\n", "sep={}\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", ["note", "note (short, or none)"])
def test_a_table_is_read_exactly_whatever_separates_its_columns(
    tmp_path: Path, end: str, mark: str, above: str, quoting: Literal[0, 1], name: str
) -> None:
    rows = [("text", " label ", name), *((*row, "0,5") for row in TABLE)]
    path = tmp_path / f"a.{end}"
    path.write_text(
        above.format(mark) + separated(rows, mark, quoting), encoding="utf-8", newline=""
    )
    assert texts_of(path) == [(text, int(label)) for text, label in TABLE]
    assert [each.text for each in read_texts(path)] == [text for text, _ in TABLE]


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl", "json"])
def test_byte_order_marks_between_concatenated_files_are_no_text(tmp_path: Path, end: str) -> None:
    header, parts = "", ['{"text": "a b", "label": 0}\n', '{"text": "c, d", "label": 1}\n']
    if end in ("csv", "tsv"):
        mark = "," if end == "csv" else "\t"
        header, parts = f"text{mark}label\n", [f"a b{mark}0\n", f'"c, d"{mark}1\n']
    path = tmp_path / f"a.{end}"
    path.write_bytes(b"".join(part.encode("utf-8-sig") for part in (header + parts[0], parts[1])))
    assert texts_of(path) == [("a b", 0), ("c, d", 1)]


def test_a_single_column_with_separators_in_its_texts_stays_one_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nParis; in France | so\nRome\n", encoding="utf-8")
    assert [each.text for each in read_texts(path)] == ["Paris; in France | so", "Rome"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text;label;a,b\nParis, Rome;0;1\n" * 60 + "Rome;1;2\n",
            "row 120 .* if semicolons separate the columns, add a first line sep=;",
        ),
        (
            "a.csv",
            "text;label;a,b\nParis, Rome;0;1\n",
            "no column 'text'; .* if semicolons separate the columns, add a first line sep=;",
        ),
        (
            "a.csv",
            "a;b|c;d\nx;y|z;w\n",
            "the separator of .* may be ';' or '|'; write the file with commas",
        ),
        ("a.csv", "text label\nParis 0\n", "no column 'text'; found text label"),
        (
            "a.csv",
            '"text","label"\n"1","Paris",0\n',
            "row 1 .* 3 values for 2 columns .*in R, .* row.names = FALSE$",
        ),
        (
            "a.csv",
            "text,label\nParis, x,0\n",
            "row 1 .* 3 values for 2 columns .*name every column in the first line$",
        ),
        (
            "a.csv",
            'label, text\n0, "Paris is"\n',
            "row 1 of .*, column 'text': a blank precedes the opening quotation mark",
        ),
        (
            "a.tsv",
            'text\tlabel\n"Hello he said\t0\nworld"\t1\n',
            "row 1 of .*, column 'text': a quoted text contains a tab and a line break",
        ),
        ("a.csv", '[{"text": "a"}]', "begins with JSON, .*extension to .jsonl"),
        (
            "a.csv",
            '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
            "begins with JSON, .*extension to .jsonl",
        ),
        ("a.csv", "{\n}\n", "begins with JSON, .*extension to .jsonl"),
        ("a.csv", "text,label\n", "holds no rows, expected at least one"),
        ("a.csv", ",,\n\n", "holds no rows, expected at least one"),
        ("a.csv", "Text,label\nParis,0\n", "found Text, label. (Set text_column to|Rename) 'Text'"),
        ("a.csv", "a\u2060,\nParis,0\n", r"found 'a.u2060', ''\. "),
        (
            "a.jsonl",
            json.dumps([{"text": "a"}]),
            "line 1 of .*, change the file's extension to .json$",
        ),
        (
            "a.jsonl",
            json.dumps([{"text": "a"}], indent=1),
            "line 1 of .*, change the file's extension to .json$",
        ),
        (
            "a.jsonl",
            json.dumps({"text": "a"}, indent=1),
            "line 1 of .*, change the file's extension to .json$",
        ),
        (
            "a.jsonl",
            '{"text": "a"},\n{"text": "b"}\n',
            "line 1 of .* if commas separate the objects, remove them",
        ),
        (
            "a.jsonl",
            "text,label\na,0\n",
            "line 1 of .* change the file's extension to .csv or .tsv$",
        ),
        (
            "a.jsonl",
            '{"text": "a", "text": "b"}\n',
            "an object has the key 'text' twice; keep one$",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\nnull\n',
            "line 2 of .* is not an object with the columns as keys$",
        ),
        (
            "a.json",
            json.dumps({"version": 1, "test": [{"text": "a"}]}),
            "no column 'text'; .* if the rows are the objects in test, write these to a file",
        ),
        (
            "a.json",
            json.dumps({"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}),
            "if the rows are the objects in paragraphs, write these",
        ),
        (
            "a.json",
            json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}),
            r"lists of objects under several keys \(train, test\); write one of them to a file of its own$",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_one_line_with_a_remedy(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    for read in (texts_of, read_texts):
        refused(path, message, read)


def test_a_column_inside_an_object_is_named_with_its_dot_and_then_read(tmp_path: Path) -> None:
    rows = [
        {"row_idx": place, "row": {"text": text, "label": label}}
        for place, (text, label) in enumerate(TABLE)
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"features": [], "rows": rows}), encoding="utf-8")
    refused(path, "Set text_column to 'row.text'$", texts_of)
    named = {
        "source": "file",
        "path": str(path),
        "text_column": "row.text",
        "label_column": "row.label",
    }
    frame = datasets.load_examples(DatasetSettings.model_validate(named), seed=0)
    assert list(frame["text"]) == [text for text, _ in TABLE]


@pytest.mark.parametrize("end", ["jsonl", "json"])
def test_a_key_that_the_first_rows_leave_out_is_a_column(tmp_path: Path, end: str) -> None:
    rows = [{"text": text, "label": int(label)} for text, label in TABLE]
    rows[1]["subject"] = 7
    path = tmp_path / f"a.{end}"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    named = {"source": "file", "path": str(path), "group_column": "subject"}
    frame = datasets.load_examples(DatasetSettings.model_validate(named), seed=0)
    assert list(frame["group"]) == ["paris is in france", "7"]
    path.write_text("\n".join(map(json.dumps, [{"label": 0}, *rows])), encoding="utf-8")
    refused(
        path,
        "row 1 of .*: expected text in column 'text', found nothing; fill the cell or remove the row",
        texts_of,
    )


@pytest.mark.parametrize("end", ["jsonl", "txt", "parquet"])
@pytest.mark.parametrize("reader", ["score", "corpus"])
def test_a_file_of_blanks_alone_is_refused(tmp_path: Path, end: str, reader: str) -> None:
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        write_parquet(path, pa.table({"text": pa.array([], pa.string())}))
    else:
        path.write_text(" \n\n", encoding="utf-8")
    refused(path, "(holds|has) no (rows|text)", READERS[reader])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "a"}]\n',
            "row 1 of .*expected an object .* on each line; write one object per line, with pandas",
        ),
        (
            '{\n "text": "a"\n}\n',
            "line 1 of .* is not JSON.*; write one object per line, with pandas",
        ),
        ("text\nParis\n", "line 1 of .* is not JSON.*; write one object per line, with pandas"),
        ('{"text": "a"}\n{"text": \n', r"line 2 of .* is not JSON: [^;]*$"),
        ('{"text": "a"}\nnull\n', "row 2 of .*found None, expected an object"),
        (
            '{"text": ["a"]}\n',
            r"row 1 of .*found \['a'\] \(list\); write it as text, or name another column",
        ),
        (
            '{"text": "a"}\n{"text": null}\n',
            "row 2 of .*found nothing; fill the cell or remove the row",
        ),
        ('{"Text": "a"}\n', "row 1 of .*found Text; set corpus.text_column"),
    ],
)
def test_a_corpus_of_another_form_is_refused_with_the_way_to_write_it(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    refused(path, message, documents_of)


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_a_dotted_name_reads_a_corpus_of_objects_and_a_wrong_one_lists_their_keys(
    tmp_path: Path, end: str
) -> None:
    rows = [{"page": {"text": text, "url": "u"}} for text, _ in TABLE]
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        write_parquet(path, pa.Table.from_pylist(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert documents_of(path, text_column="page.text") == [text for text, _ in TABLE]
    refused(
        path,
        r"found page, page\.text, page\.url; set",
        lambda each: documents_of(each, text_column="page.body"),
    )


LABELS = {
    "decimals": pa.array([Decimal("0.00"), Decimal("1.00")]),
    "halves": pa.array([0, 1], pa.float16()),
    "bytes": pa.array([0, 1], pa.int8()),
    "booleans": pa.array([False, True]),
    "categories": pa.array(["0", "1"]).dictionary_encode(),
    "text with a point": pa.array(["0.0", "1.0"]),
}


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "categories"])
def test_labels_and_texts_of_parquet_are_read_whatever_their_type(
    tmp_path: Path, form: str, kind: Any
) -> None:
    plain = pa.array([text for text, _ in TABLE])
    text = plain.dictionary_encode() if kind == "categories" else plain.cast(kind)
    path = write_parquet(tmp_path / "a.parquet", pa.table({"text": text, "label": LABELS[form]}))
    assert texts_of(path) == [(text, int(label)) for text, label in TABLE]
    assert documents_of(path) == [text for text, _ in TABLE]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("7.00", "7"),
        ("0.50", "0.5"),
        ("1E+3", "1000"),
        ("-0.10", "-0.1"),
        ("123456789012345678901.5", "123456789012345678901.5"),
        ("123456789012345678901234567890123456.7", "123456789012345678901234567890123456.7"),
    ],
)
def test_a_decimal_number_is_written_with_all_its_digits(
    tmp_path: Path, number: str, words: str
) -> None:
    column = pa.array([Decimal(number)], pa.decimal128(38, 2))
    table = pa.table({"text": [f"It is {words}"], "id": column, "answer": column})
    (found,) = read_texts(write_parquet(tmp_path / "a.parquet", table))
    assert (found.id, found.answer) == (words, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([b"a b", b"c"], r"found b'a b' \(bytes\); write it as text"),
        ([["a"], ["b"]], r"found \['a'\] \(list\); write it as text"),
        ([3, 4], r"found 3 \(int\); write it as text"),
        ([None, "a"], "found nothing; fill the cell or remove the row"),
        (["", "a"], "found nothing; fill the cell or remove the row"),
        ([float("nan"), 1.0], "found nothing; fill the cell or remove the row"),
        ([" ", "a"], "found blanks; fill the cell or remove the row"),
        (["a\0b", "a"], "character 2 is NUL"),
    ],
)
@pytest.mark.parametrize("read", [texts_of, read_texts])
def test_a_cell_without_text_is_refused_with_row_column_and_remedy(
    tmp_path: Path, values: list[Any], words: str, read: Callable[[Path], Iterable[Any]]
) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", pa.table({"text": pa.array(values), "label": [0, 1]})
    )
    refused(path, f"row 1 of .*'text'.*{words}", read)


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), [1], {"a": 1}, b"a", float("inf")])
@pytest.mark.parametrize("column", ["id", "answer", "question", "context"])
def test_a_value_to_score_that_is_not_text_is_refused_with_row_column_and_remedy(
    tmp_path: Path, column: str, value: Any
) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["It is so"], column: [value]}))
    refused(
        path,
        f"row 1 of .* column '{column}', found .*; write it as text, or remove or rename",
        read_texts,
    )


def test_a_line_to_score_with_nul_is_refused_as_a_cell_with_nul_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"It is so\nIt is\0 not\n")
    refused(path, "line 2 of .*: character 6 is NUL", read_texts)


@pytest.mark.parametrize("key", ["text", "answer", "id", "context", "question"])
@pytest.mark.parametrize("bad", ["It is\0 so", "It is \ud83d so"])
def test_the_detector_refuses_characters_that_files_may_not_hold(key: str, bad: str) -> None:
    detector = object.__new__(Detector)  # texts are refused before the model is read
    detector.calibration = None
    with pytest.raises(UserError, match=f"text 1: {key}: character "):
        detector.score([{"text": "It is so", key: bad}])


MISSING = ["NA", "nan", "NaN", "<NA>", "None", "NULL", "null", "N/A", "#N/A", "\\N", "NaT"]


@pytest.mark.parametrize("end", ["csv", "tsv"])
@pytest.mark.parametrize("word", MISSING)
def test_a_word_for_a_missing_value_in_csv_is_not_used_as_answer_group_or_context(
    tmp_path: Path, word: str, end: str
) -> None:
    full = {
        "text": "a b",
        "question": "Who?",
        "context": "So.",
        "gold": "Ann",
        "group": "g",
        "label": "0",
    }
    path = tmp_path / f"a.{end}"

    def write(column: str) -> None:
        rows = [
            full,
            {**full, column: word},
            {**full, "text": "c d", "question": "When?", "label": "1", column: word},
        ]
        table = [list(full), *(list(row.values()) for row in rows)]
        path.write_text(
            separated(table, "\t" if end == "tsv" else ",", 0), encoding="utf-8", newline=""
        )

    base = {"source": "file", "path": str(path), "question_column": "question"}
    labelled = DatasetSettings.model_validate({**base, "group_column": "group"})
    asked = DatasetSettings.model_validate({**base, "mode": "generated", "gold_column": "gold"})
    for column in ("question", "context"):
        write(column)
        refused(
            path,
            f"row 2 of .*text or an empty cell in column '{column}', found {re.escape(word)}, which",
            read_texts,
        )
    documents = labelled.model_copy(update={"context_column": "context"})
    refused(
        path,
        f"row 2 of .*empty cell in column 'context' .context_column., found {re.escape(word)}, which",
        lambda _: user_texts.read_texts(documents),
    )
    write("gold")
    refused(
        path,
        f"row 2 of .*column 'gold': found {re.escape(word)}, which",
        lambda _: user_texts.read_questions(asked),
    )
    write("group")
    assert [each.group for each in user_texts.read_texts(labelled)] == ["g", "who?", "when?"]


def test_a_word_for_a_missing_value_is_text_where_a_file_has_nulls(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", pa.table({"text": ["NA", "None"], "label": [0, 1]})
    )
    assert texts_of(path) == [("NA", 0), ("None", 1)]
    assert [each.text for each in read_texts(path)] == ["NA", "None"]


def test_a_backslash_before_a_quotation_mark_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"say \\"no\\" now",0\nRome,1\n', encoding="utf-8")
    refused(
        path, r"row 1, column 'text', line 2: .*; in R, write with qmethod = \"double\"$", read_rows
    )
    path.write_text('text,label\n"say "no" now",0\nRome,1\n', encoding="utf-8")
    refused(path, r"row 1, column 'text', line 2: .*double those inside a quoted text$", read_rows)


UNDER_A_WRONG_ENDING = {
    "workbook": (b"PK\x03\x04\x14\0", "Excel workbook .*save it as CSV"),
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel workbook .*save it as CSV"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip: unpack it with gunzip"),
    "bzip2": (b"BZh91AY", "bzip2: unpack it with bunzip2"),
    "xz": (b"\xfd7zXZ\0\0", "xz: unpack it with unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x24", "zstd: unpack it with unzstd"),
    "arrow": (b"ARROW1\0\0", "Arrow .*to_parquet"),
    "arrow stream": (b"\xff\xff\xff\xff\x10", "save_to_disk .*to_parquet"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "web page: download the file itself"),
    "pdf": (b"%PDF-1.7", "PDF"),
    "sqlite": (b"SQLite format 3\0", "SQLite database: export"),
    "pickle": (b"\x80\x04\x95\x10", "pickle.*to_parquet"),
    "hdf5": (b"\x89HDF\r\n", "HDF5 .*to_parquet"),
    "numpy": (b"\x93NUMPY\x01", "numpy .*to_parquet"),
    "utf-16": ("text,label\n".encode("utf-16"), "UTF-16 text: .*iconv -f UTF-16"),
    "utf-16 without a mark": ("text,label\n".encode("utf-16-be"), "full of NUL bytes, .*iconv"),
    "utf-32": ("text,label\n".encode("utf-32"), "UTF-32 text: .*iconv -f UTF-32"),
    "windows-1252": (
        "text,label\nZürich,0\n".encode("cp1252"),
        "not UTF-8 text: line 2 .*byte 0xfc at offset 12 .*iconv -f WINDOWS-1252",
    ),
    "empty": (b"", "(holds|has) no (rows|text)|is empty"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
@pytest.mark.parametrize("kind", UNDER_A_WRONG_ENDING)
def test_a_file_in_another_format_is_refused_with_its_format(
    tmp_path: Path, kind: str, end: str, reader: str
) -> None:
    content, message = UNDER_A_WRONG_ENDING[kind]
    path = tmp_path / f"a.{end}"
    path.write_bytes(content)
    if end == "parquet" and kind in ("windows-1252", "empty", "utf-16 without a mark"):
        message = "not a parquet file|is empty"
    if (reader == "corpus" and end in ("csv", "tsv", "json")) or (
        reader == "data set" and end == "txt"
    ):
        message = "must end in one of"
    refused(path, message, READERS[reader])


def _csv(**options: Any) -> Callable[[pd.DataFrame, Path], None]:
    return lambda frame, path: frame.to_csv(path, index=False, **options)


def _json(**options: Any) -> Callable[[pd.DataFrame, Path], None]:
    return lambda frame, path: frame.to_json(path, **options)


def _plain_json(frame: pd.DataFrame, path: Path) -> None:
    path.write_text(
        "\n".join(json.dumps(row) for row in frame.to_dict("records")), encoding="utf-8"
    )


# Ending of the file, and what writes it.
WRITERS: dict[str, tuple[str, Callable[[pd.DataFrame, Path], object]]] = {
    "commas": ("csv", _csv()),
    "semicolons": ("csv", _csv(sep=";", decimal=",")),
    "tabs": ("tsv", _csv(sep="\t")),
    "bars": ("csv", _csv(sep="|")),
    "commas in tsv": ("tsv", _csv()),
    "all quoted": ("csv", _csv(sep=";", quoting=csv.QUOTE_ALL)),
    "byte order mark": ("csv", _csv(encoding="utf-8-sig", lineterminator="\r\n")),
    "lines": ("jsonl", _json(orient="records", lines=True)),
    "plain lines": ("jsonl", _plain_json),
    "records": ("json", _json(orient="records", indent=1)),
    "columns": ("json", _json()),
    "index": ("json", _json(orient="index")),
    "split": ("json", _json(orient="split")),
    "table": ("json", _json(orient="table")),
    "values": ("json", _json(orient="values")),
    "dict of lists": (
        "json",
        lambda frame, path: path.write_text(json.dumps(frame.to_dict("list")), encoding="utf-8"),
    ),
    "parquet": ("parquet", lambda frame, path: frame.to_parquet(path)),
}

# No carriage return alone: csv writers of Python and pandas leave it without quotation marks, as the end of a line.
_PIECES = (
    "a",
    "b",
    " ",
    ",",
    ";",
    "|",
    "\t",
    '"',
    "\\",
    "\n",
    "\r\n",
    "'",
    "\u2028",
    "\u00e9",
    "{",
    "[",
    "#",
    "=",
    "0",
)
TEXTS = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=12).map("".join)


def rows_or_refusal(path: Path, read: Callable[[Path], Iterable[Any]]) -> tuple[list[Any], str]:
    """The result of a reader, or its error."""
    try:
        return list(read(path)), ""
    except UserError as error:
        return [], str(error)


# What damaged files, other programs and other encodings have in places where it is not expected.
_BYTES = (
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xe9",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x1a",
    b'"',
    b"\n",
    b"[",
    b"{",
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"9" * 5000,
)


@pytest.mark.parametrize("writer", WRITERS)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=4), others=st.lists(TEXTS, min_size=4, max_size=4)
)
def test_a_table_written_by_a_program_is_read_exactly_or_refused_in_one_line(
    tmp_path: Path, writer: str, texts: list[str], others: list[str]
) -> None:
    end, write = WRITERS[writer]
    frame = pd.DataFrame({"text": texts, "note": others[: len(texts)], "label": range(len(texts))})
    path = tmp_path / f"a.{end}"
    write(frame, path)
    rows, refusal = rows_or_refusal(path, read_rows)
    assert "\n" not in refusal
    found = [(row["text"], row["note"], str(row["label"])) for row in rows]
    assert refusal or found == list(zip(texts, others, map(str, range(len(texts))), strict=False))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(
            st.floats(0, 1), st.integers(0, 6), st.binary(max_size=3) | st.sampled_from(_BYTES)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_damage_to_a_file_gives_a_traceback(
    tmp_path: Path, writer: str, reader: str, edits: list[tuple[float, int, bytes]]
) -> None:
    end, write = WRITERS[writer]
    path = tmp_path / f"a.{end}"
    write(
        pd.DataFrame(
            {"text": ["Paris, France", 'say "no"'], "note": ["a;b", "c|d"], "label": [0, 1]}
        ),
        path,
    )
    content = path.read_bytes()
    for share, length, put in edits:
        place = int(share * len(content))
        content = content[:place] + put + content[place + length :]
    path.write_bytes(content)
    _, refusal = rows_or_refusal(path, READERS[reader])
    assert len(refusal.splitlines()) <= 1
