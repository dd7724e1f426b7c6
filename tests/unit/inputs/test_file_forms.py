"""Files of pandas, R, spreadsheets, datasets and the hub are read exactly or refused."""

import gzip
import io
import json
import logging
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies
from pyarrow import feather, parquet

from ghosttrack.cli import given_texts
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus_sources, datasets, documents
from ghosttrack.inputs.rows import read_rows
from ghosttrack.planning import configuration
from ghosttrack.settings import CorpusSettings, DatasetSettings

TEXTS = [
    "Paris, the capital of France",
    "Oslo is in Norway; and cold",
    'Rome | "la dolce vita"\tand more',
    "Zürich\nis in 瑞士 👋",
]
LABELS = [0, 1, 0, 1]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
RECORDS: list[dict[str, Any]] = FRAME.to_dict("records")


def csv_of(**options: Any) -> bytes:
    return str(FRAME.to_csv(index=False, **options)).encode()


def json_of(content: Any, **options: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, **options).encode()


def frame_json(**options: Any) -> bytes:
    return str(FRAME.to_json(**options)).encode()


def parquet_of(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


PLAIN = csv_of()
READ: dict[str, tuple[str, bytes]] = {
    "csv": ("a.csv", PLAIN),
    "capital ending": ("A.CSV", PLAIN),
    "byte order mark": ("a.csv", csv_of().join([b"\xef\xbb\xbf", b""])),
    "line ends of Windows": ("a.csv", csv_of(lineterminator="\r\n")),
    "all quoted": ("a.csv", csv_of(quoting=1)),
    "index of pandas": ("a.csv", str(FRAME.to_csv()).encode()),
    "semicolons": ("a.csv", csv_of(sep=";")),
    "semicolons, all quoted": ("a.csv", csv_of(sep=";", quoting=1)),
    "tabs in .csv": ("a.csv", csv_of(sep="\t")),
    "vertical bars": ("a.csv", csv_of(sep="|")),
    "commas in .tsv": ("a.tsv", PLAIN),
    "semicolons in .tsv": ("a.tsv", csv_of(sep=";")),
    "sep= of Excel": ("a.csv", b"sep=;\r\n" + csv_of(sep=";", lineterminator="\r\n")),
    "sep= with a byte order mark": ("a.csv", b'\xef\xbb\xbf"sep=,"\r\n' + PLAIN),
    "blanks around names": ("a.csv", PLAIN.replace(b"text,label", b" text , label ")),
    "two byte order marks": ("a.csv", b"\xef\xbb\xbf" * 2 + PLAIN),
    "no-break space around a name": (
        "a.csv",
        PLAIN.replace(b"text,label", "text,\u00a0label\u200b".encode()),
    ),
    "other blanks around a name": (
        "a.csv",
        PLAIN.replace(b"text,label", "\u3000\u200b text,\u2003\ufefflabel\u2002".encode()),
    ),
    "blank lines in front": ("a.csv", b"\n\r\n" + PLAIN),
    "empty cells behind the last column": (
        "a.csv",
        b"text,label,,\n"
        + b"".join(
            f'"{text.replace(chr(34), chr(34) * 2)}",{label},,,\n'.encode()
            for text, label in zip(TEXTS, LABELS, strict=True)
        ),
    ),
    "jsonl": ("a.jsonl", frame_json(orient="records", lines=True)),
    "jsonl with escapes": ("a.jsonl", "".join(json.dumps(row) + "\n" for row in RECORDS).encode()),
    "jsonl in .json": ("a.json", frame_json(orient="records", lines=True)),
    "objects over several lines": ("a.json", b"\n".join(json_of(row, indent=2) for row in RECORDS)),
    "a list": ("a.json", json_of(RECORDS)),
    "a list over several lines": ("a.json", b"\xef\xbb\xbf" + json_of(RECORDS, indent=4)),
    "orient columns": ("a.json", frame_json()),
    "orient columns of chosen rows": (
        "a.json",
        str(FRAME.set_axis([7, 3, 12, 5]).to_json()).encode(),
    ),
    "orient index": ("a.json", frame_json(orient="index")),
    "orient split": ("a.json", frame_json(orient="split")),
    "orient table": ("a.json", frame_json(orient="table")),
    "lists by column": ("a.json", json_of(FRAME.to_dict("list"))),
    "data": ("a.json", json_of({"version": "1.1", "data": RECORDS})),
    "rows": ("a.json", json_of({"rows": RECORDS, "num_rows_total": 4})),
    "one key of any name": ("a.json", json_of({"train": RECORDS})),
    "Data": ("a.json", json_of({"Data": RECORDS, "Domain": "x"})),
    "parquet": ("a.parquet", parquet_of(pa.Table.from_pandas(FRAME))),
    "parquet of categories": (
        "a.parquet",
        parquet_of(pa.Table.from_pandas(FRAME.astype("category"))),
    ),
    "parquet of large strings": (
        "a.parquet",
        parquet_of(pa.table({"text": pa.array(TEXTS, pa.large_string()), "label": LABELS})),
    ),
}


@pytest.mark.parametrize("form", READ)
def test_a_table_in_a_form_that_programs_write_gives_exactly_its_texts_and_labels(
    tmp_path: Path, form: str
) -> None:
    name, content = READ[form]
    path = tmp_path / name
    path.write_bytes(content)
    found = datasets.load_examples(DatasetSettings(source="file", path=str(path)), seed=0)
    assert found[["text", "label"]].values.tolist() == [
        list(row) for row in zip(TEXTS, LABELS, strict=True)
    ]
    assert [each.text for each in given_texts.read_texts(path)] == TEXTS


CELLS = strategies.text(
    strategies.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=30
)
# What pandas makes of a table: the ending and the options.
WRITERS: list[tuple[str, dict[str, Any]]] = [
    *(
        (".csv", {"sep": separator, "quoting": quoting})
        for separator in ",;\t|"
        for quoting in (0, 1)
    ),
    *(
        (".json", {"orient": orient})
        for orient in ("columns", "records", "index", "split", "table")
    ),
    (".jsonl", {"orient": "records", "lines": True}),
    (".parquet", {}),
]


def may_lack_a_quotation_mark(cell: str, separator: str | None) -> bool:
    """Whether a cell may be the result of a missing or misplaced quotation mark."""
    inner = cell.strip()
    quoted = cell[:1].isspace() and len(inner) > 1 and inner[0] == inner[-1] == '"'
    return (separator is not None and quoted) or (
        separator == "\t" and "\t" in cell and "\n" in cell
    )


@settings(max_examples=150, deadline=None)
@example([(' "a"', "b", "c")], (".csv", {"sep": ",", "quoting": 0}))
@example([("a", "b\tc\nd", "e")], (".csv", {"sep": "\t", "quoting": 1}))
@given(
    strategies.lists(strategies.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6),
    strategies.sampled_from(WRITERS),
)
def test_whatever_pandas_writes_is_read_as_the_same_table_unless_a_quotation_mark_may_be_missing(
    rows: list[tuple[str, str, str]], writer: tuple[str, dict[str, Any]]
) -> None:
    frame = pd.DataFrame(rows, columns=["text", "answer", "page 1"])
    ending, options = writer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        if ending == ".parquet":
            frame.to_parquet(path, **options)
        elif ending == ".csv":
            frame.to_csv(path, index=False, **options)
        else:
            frame.to_json(path, **options)
        if any(may_lack_a_quotation_mark(cell, options.get("sep")) for row in rows for cell in row):
            with pytest.raises(UserError, match="quotation mark"):
                read_rows(path)
            return
        found = [{key: row[key] for key in frame} for row in read_rows(path)]
    assert found == frame.to_dict("records")


def xlsx() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return stream.getvalue()


def arrow(write: Callable[[pa.Table, Any], None]) -> bytes:
    stream = io.BytesIO()
    write(pa.Table.from_pandas(FRAME), stream)
    return stream.getvalue()


def stream_of(table: pa.Table, stream: Any) -> None:
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)


# Files of another kind under the ending of a table or a corpus: the content, and what the error says.
OTHER_KINDS: dict[str, tuple[bytes, str]] = {
    "Excel": (
        xlsx(),
        r"is an Excel workbook \(\.xlsx\) or another zip archive: .*save it as CSV in UTF-8",
    ),
    "old Excel": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600,
        r"is an old Excel workbook .*save it as CSV",
    ),
    "gzip": (gzip.compress(PLAIN), "is compressed with gzip: unpack it"),
    "bzip2": (b"BZh91AY&SY", "is compressed with bzip2"),
    "xz": (b"\xfd7zXZ\x00\x00", "is compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "is compressed with zstd"),
    "parquet": (
        parquet_of(pa.Table.from_pandas(FRAME)),
        r"is a parquet file: change its extension to \.parquet",
    ),
    "feather": (
        arrow(lambda table, stream: feather.write_feather(table, stream)),
        "is an Arrow .*to_parquet",
    ),
    "save_to_disk": (arrow(stream_of), "is an Arrow stream.*Dataset.to_parquet"),
    "pickle": (pickle.dumps(FRAME), "is a Python pickle: .*to_parquet"),
    "SQLite": (b"SQLite format 3\x00", "is an SQLite database: export"),
    "PDF": (b"%PDF-1.7", "is a PDF"),
    "XML": (b'<?xml version="1.0"?>', "is an XML file"),
    "RTF": (b"{\\rtf1 x}", "is an RTF document: save it as plain text"),
    "table of a page": (b"<table border>", "is a web page: .*or save the table of the page as CSV"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        "is a pointer of Git LFS.*git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html>\n<html><head>", "is a web page: download the file itself"),
    "UTF-16": (PLAIN.decode().encode("utf-16"), "is UTF-16 text: convert it to UTF-8: iconv"),
    "UTF-16, big-endian": (b"\xfe\xff" + PLAIN.decode().encode("utf-16-be"), "is UTF-16 text"),
    "UTF-32": (PLAIN.decode().encode("utf-32"), "is UTF-32 text"),
    "UTF-16 without a mark": (
        PLAIN.decode().encode("utf-16-le"),
        "is full of NUL bytes, like binary files and UTF-16 text without",
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_file_of_another_kind_is_named_with_the_way_to_convert_it_before_any_job(
    tmp_path: Path, kind: str
) -> None:
    content, message = OTHER_KINDS[kind]
    for ending in (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet"):
        path = tmp_path / f"a{ending}"
        if kind in ("parquet", "UTF-16 without a mark") and ending == ".parquet":
            continue
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"texts: .*a{ending} {message}"):
            list(given_texts.read_texts(path))
        if ending in corpus_sources.FILES:
            assert f"corpus.source: {path} is" in corpus_sources.refusal(str(path))
            with pytest.raises(UserError, match=message):
                documents.open_source(CorpusSettings(source=str(path)), 0)
        if ending != ".txt":
            (tmp_path / "datasets").mkdir(exist_ok=True)
            (tmp_path / "datasets" / "mine.yaml").write_text(
                f"source: file\npath: {path}\n", encoding="utf-8"
            )
            with pytest.raises(UserError, match=rf"datasets/mine\.yaml: path: .*{message}"):
                configuration.load_dataset("mine", tmp_path)


INTACT = parquet_of(pa.Table.from_pandas(FRAME))
DAMAGED = INTACT[:60] + b"\xff" * 30 + INTACT[90:]
TRICKY: list[tuple[str, bytes, str]] = [
    (
        "a.csv",
        b"text;label|x\na;0|1\n",
        r"the separator of .* may be ';' or '\|'; write the file with commas",
    ),
    (
        "a.csv",
        b"text,label,text\na,0,b\n",
        "has two columns with the name 'text'; rename or remove one",
    ),
    ("a.csv", b"text,label, text\na,0,b\n", "has two columns with the name 'text'"),
    ("a.csv", b"text;label;text \na;0;b\n", "has two columns with the name 'text'"),
    (
        "a.parquet",
        parquet_of(pa.table([TEXTS, TEXTS, LABELS], names=["text", "text", "label"])),
        "has two columns with the name 'text'",
    ),
    (
        "a.jsonl",
        b'{"text": "a", "label": 0, "text": "b"}\n',
        "line 1 of .*: an object has the key 'text' twice; keep one",
    ),
    (
        "a.json",
        b'[{"text": "a", "label": 0},\n {"text": "a", "label": 1, "text": "b"}]',
        "line 1 of .*: an object has the key 'text' twice",
    ),
    (
        "a.csv",
        b"Paris is big,0\nOslo is small,1\n",
        "no column 'text'; found Paris is big, 0. .*first line of a csv or tsv file names its columns",
    ),
    # write.table of R: one name less than columns.
    (
        "a.csv",
        b'"text","label"\n"1","a",0\n"2","b",1\n',
        r"row 1 of .* has 3 values for 2 columns \(text, label\); quote .*and name every column",
    ),
    (
        "a.csv",
        b"# made by hand\ntext,label\na,0\n",
        r"row 1 of .* has 2 values for 1 columns \(# made by hand\)",
    ),
    ("a.csv", b"text,label\na\n", r"row 1 of .* has 1 values for 2 columns \(text, label\)"),
    (
        "a.csv",
        b"text;label\nParis; big;0\n",
        r"row 1 of .* has 3 values for 2 columns \(text, label\)",
    ),
    ("a.csv", b"text\tlabel\n\t0\n", "row 1 of .*: expected text in column 'text', found nothing"),
    (
        "a.csv",
        b"text,label\na,0\n #N/A ,1\n",
        "row 2 of .*, column 'text': #N/A is the error value of a spreadsheet; correct",
    ),
    (
        "a.csv",
        b'"text" "label"\n"1" "a b" 0\n',
        "not a table of values separated by commas: the header, line 1: ',' expected",
    ),
    (
        "a.json",
        b'[{"text": "a", "label": ' + b"9" * 5000 + b"}]",
        "line 1 of .* is not JSON: [^;]*digits$",
    ),
    ("a.parquet", parquet_of(pa.table({})), "holds no rows"),
    ("a.parquet", DAMAGED, "is damaged or is not a parquet file .*; write it or download it again"),
    ("a.csv", b"sep=;\n", "holds no rows"),
    ("a.json", b"", "holds no rows"),
    ("a.json", b"{}", "holds no rows"),
    ("a.json", b'{"data": []}', "holds no rows"),
    ("a.json", b'"text"', "holds a text, not a list of objects"),
    (
        "a.json",
        b"[[1, 2]]",
        "not a list of objects .*: item 1 is a list; write one object per line, with pandas: .*orient=.records., lines=True",
    ),
    ("a.json", b'[{"text": "a", "label": 0}, null]', "item 2 is null"),
    (
        "a.json",
        b'{"text": "a", "label": 0}\n{"text": "b", "label": }\n',
        "line 2 of .*a.json is not JSON: Expecting value",
    ),
    (
        "a.json",
        b'{"text": ["a", "b"], "label": [0]}',
        "'text' has 2 values, 'label' has 1; .*orient=",
    ),
    (
        "a.json",
        b'{"text": {"0": "a", "1": "b"}, "label": {"0": 1}}',
        "'text' has 2 values, 'label' has 1",
    ),
    (
        "a.json",
        b'{"q1": {"text": "a", "label": 0}, "q2": {"text": "b", "label": 1}}',
        "objects under the keys q1, q2, ..., which may be rows or columns; .*orient=.index.",
    ),
    (
        "a.json",
        b'{"train": [{"text": "a"}], "data": [{"text": "a"}], "rows": [{"text": "a"}]}',
        r"lists of objects under several keys \(data, rows\)",
    ),
    (
        "a.json",
        b'{"columns": ["text", "label"], "data": [["a", 0], ["b"]]}',
        "row 2 of data has 1 values for 2 columns",
    ),
    (
        "a.json",
        b'{"columns": ["text", "text"], "data": [["a", "b"]]}',
        "two columns with the name 'text'",
    ),
    (
        "a.json",
        b'{"data": [{"title": "T", "paragraphs": []}]}',
        "no column 'text'; found title, paragraphs",
    ),
    (
        "a.json",
        b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        r"lists of objects under several keys \(train, test\); write one of them",
    ),
    ("a.csv", b"| text | label |\n|:---|---:|\n| a | 0 |\n", "is a Markdown table; save it as CSV"),
    ("a.csv", b",body\n0,a\n", "no column 'text'; found '', body. Set"),
    (
        "a.jsonl",
        b"[\n" + json_of(RECORDS[0]) + b"\n]",
        r"line 1 of .* is not JSON: .*; if the file is one list, .* extension to \.json",
    ),
    ("a.jsonl", json_of(RECORDS), r"line 1 of .* is not an object .*; if the file is one list"),
    (
        "a.jsonl",
        json_of(RECORDS[0], indent=1),
        r"line 1 of .* is not JSON: .*an object spans several lines, .*extension to \.json",
    ),
    ("a.jsonl", json_of(RECORDS[0]) + b",\n", "line 1 of .* is not JSON: Extra data"),
    (
        "a.txt",
        b"text\n",
        r"must end in one of .*; save it as \.csv, with a first line of column names",
    ),
    (
        "a.xlsx",
        xlsx(),
        "must end in one of .*; open it in the program that wrote it and save it as CSV",
    ),
    ("a.ndjson", b"{}", r"must end in one of .*; change its extension to \.jsonl"),
    ("a.csv.gz", gzip.compress(PLAIN), "must end in one of .*; unpack it with gunzip"),
    ("a.arrow", b"x", "must end in one of .*to_parquet"),
    ("table", b"x", "must end in one of .*; add the extension of its format"),
    (
        "a.jsonl",
        b'{"text ": "a", "label": 0}\n',
        "no column 'text'; found 'text ', label. Set text_column",
    ),
    ("n" * 300 + ".csv", b"", "cannot be looked up .File name too long.; correct the path"),
    (".", b"", r"is a directory, expected a file \(if Dataset\.save_to_disk wrote it: "),
    ("nowhere.csv", b"", r"there is no file .*nowhere\.csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), TRICKY, ids=range(len(TRICKY)))
def test_a_table_that_may_be_read_in_two_ways_or_not_at_all_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    if content or name == "a.json":
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        datasets.load_examples(DatasetSettings(source="file", path=str(path)), seed=0)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_squads_own_file_gives_its_questions_with_their_answers(tmp_path: Path) -> None:
    asked = [
        {"id": str(n), "question": f"Number {n}?", "answers": [{"text": str(n), "answer_start": 0}]}
        for n in range(8)
    ]
    paragraphs = [{"context": "c", "qas": asked[:5]}, {"context": "d", "qas": asked[5:]}]
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}),
        encoding="utf-8",
    )
    assert [row["context"] for row in read_rows(path)] == ["c"] * 5 + ["d"] * 3
    asking = DatasetSettings(
        source="file",
        mode="generated",
        path=str(path),
        question_column="question",
        gold_column="answers",
    )
    found = datasets.load_questions(asking, seed=0, count=3)
    assert len(found) == 3
    for question, gold in zip(found["question"], found["gold"], strict=True):
        assert gold == [question.split()[1].removesuffix("?")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"body,label\na,0\n"),
        ("a.tsv", b"body\tlabel\n"),
        ("a.csv", b"body;label\n"),
        ("a.jsonl", b'\n{"body": "a", "label": 0}\n'),
    ],
)
@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            "",
            r"mine\.yaml: text_column: .* has no column 'text'; found body, label\. Set text_column",
        ),
        ("text_column: body\ngroup_column: g", "group_column: .* has no column 'g'"),
        (
            "text_column: body\nmode: generated\nquestion_column: body\ngold_column: gold",
            "gold_column: .* no column 'gold'",
        ),
        ("text_column: body", ""),
    ],
)
def test_a_missing_column_is_named_before_any_job_where_the_first_line_tells(
    tmp_path: Path, name: str, content: bytes, described: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "datasets").mkdir()
    text = f"source: file\npath: {tmp_path / name}\n{described}"
    (tmp_path / "datasets" / "mine.yaml").write_text(text, encoding="utf-8")
    if message:
        with pytest.raises(UserError, match=message):
            configuration.load_dataset("mine", tmp_path)
    else:
        configuration.load_dataset("mine", tmp_path)


def test_a_key_that_the_first_objects_leave_out_is_found_before_any_job_and_read(
    tmp_path: Path,
) -> None:
    rows = [{**row, "g": "x"} if row["label"] else row for row in RECORDS]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(json_of, rows)))
    (tmp_path / "datasets").mkdir()
    described = tmp_path / "datasets" / "mine.yaml"
    text = f"source: file\npath: {tmp_path / 'a.jsonl'}\n"
    described.write_text(text + "group_column: g\n", encoding="utf-8")
    frame = datasets.load_examples(configuration.load_dataset("mine", tmp_path), seed=0)
    assert (frame["group"] == "x").sum() == 2
    described.write_text(text + "group_column: h\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"group_column: .* has no column 'h'; found text, label, g\."
    ):
        configuration.load_dataset("mine", tmp_path)


def test_a_single_column_with_separators_stays_one_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"a;b"\nc;d\n"e|f"\n', encoding="utf-8")
    assert [row["text"] for row in read_rows(path)] == ["a;b", "c;d", "e|f"]
    path.write_text("either|or\na\nb\n", encoding="utf-8")
    assert [dict(row) for row in read_rows(path)] == [{"either|or": "a"}, {"either|or": "b"}]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("semicolons", "separated by semicolons, not by commas"),
        ("orient columns", "one column per key"),
    ],
)
def test_the_log_says_how_an_unusual_table_was_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, said: str
) -> None:
    path = tmp_path / READ[name][0]
    path.write_bytes(READ[name][1])
    with caplog.at_level(logging.INFO, "ghosttrack"):
        read_rows(path)
    assert said in caplog.text


def corpus_of(path: Path, **values: Any) -> list[str]:
    (stream,) = documents.open_source(CorpusSettings(source=str(path), **values), 0).streams
    return list(stream.documents)


NESTED = [
    {"page": {"text": "one", "n": 1}, "text": "x"},
    {"page": {"text": "two", "n": 2}, "text": "y"},
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".JSONL", ".PARQUET"])
def test_a_dotted_text_column_of_a_corpus_names_a_key_of_an_object(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    if ending.lower() == ".parquet":
        parquet.write_table(pa.Table.from_pylist(NESTED), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in NESTED), encoding="utf-8")
    assert corpus_of(path, text_column="page.text") == ["one", "two"]
    assert corpus_of(path) == ["x", "y"]
    for column, message in (
        (
            "page.body",
            "row 1 of .* has no text in 'page.body'; found page.*; set corpus.text_column",
        ),
        (
            "page.n",
            "row 1 of .* has no text in 'page.n'; found 1 .int.; write it as text, or name another column",
        ),
        ("body", "no (text in|column) 'body'"),
    ):
        with pytest.raises(UserError, match=f"corpus.text_column: .*{message}"):
            corpus_of(path, text_column=column)


def test_a_column_whose_own_name_has_a_dot_is_taken_before_a_key(tmp_path: Path) -> None:
    table = pa.table({"page.text": ["own"], "page": [{"text": "inner"}], "page.text.x": ["more"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert corpus_of(tmp_path / "a.parquet", text_column="page.text") == ["own"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            PLAIN,
            r'must end in one of .*; with pandas: pandas.read_csv\(FILE\).to_json\("NAME.jsonl", orient="records", lines=True\)',
        ),
        ("a.tsv", PLAIN, r'pandas.read_csv\(FILE, sep="\\t"\).to_json'),
        ("a.json", b"[]", r"pandas.read_json\(FILE\).to_json"),
        (
            "a.jsonl",
            json_of(RECORDS),
            "row 1 of .* has no text in 'text'; found .*, expected an object with the columns as keys on each line",
        ),
        ("a.jsonl", json_of(RECORDS, indent=1), "line 1 of .* is not JSON"),
        (
            "a.jsonl",
            b'{"text": null}\n',
            "row 1 of .* has no text in 'text'; found nothing; fill the cell or remove the row",
        ),
        (
            "a.parquet",
            parquet_of(pa.table([TEXTS, TEXTS], names=["text", "text"])),
            "two columns with the name 'text'",
        ),
        (
            "a.parquet",
            DAMAGED,
            "is damaged (after row 0|or is not a parquet file) .*; write it or download it again",
        ),
        ("a.parquet", parquet_of(pa.table({})), "no column 'text'; found none. Set"),
        (
            "a.parquet",
            b"PAR1",
            "is damaged or is not a parquet file .*; write it or download it again",
        ),
        ("folder.txt", None, "is a directory, expected a file"),
        ("nowhere.txt", b"", "there is no file"),
        ("n" * 300 + ".txt", b"", "cannot be looked up .File name too long"),
        (
            "a.txt",
            "Zürich".encode("cp1252"),
            "line 1 holds the byte 0xfc at offset 1 .*iconv -f WINDOWS-1252",
        ),
    ],
    ids=range(14),
)
def test_a_corpus_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"corpus.*{message}") as error:
        corpus_of(path)
    assert "\n" not in str(error.value)
