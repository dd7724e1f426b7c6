"""Files of texts in any form: kept exactly, or refused with row and column."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghosttrack.api import Detector
from ghosttrack.cli import score
from ghosttrack.cli.given_texts import given_texts, read_context, read_texts
from ghosttrack.detection.scored_texts import Text
from ghosttrack.errors import UserError
from ghosttrack.inputs.answer_spans import form_in, last_span
from ghosttrack.inputs.lines import require_encoding

common = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Every character but NUL and lone surrogates, line ends and invisible ones often.
characters = st.one_of(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
    st.sampled_from("\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85\r\ufeff,;\t|\"' \n"),
)
# Words around keep the ends of a text, which readers strip.
texts = st.text(characters, max_size=20).map(lambda middle: f"It {middle} is")
ids = st.lists(
    st.one_of(st.integers(-5, 5), st.integers(0, 10**20)), min_size=1, max_size=8, unique=True
)


@common
@given(st.lists(texts, min_size=1, max_size=8))
def test_a_text_file_ends_texts_at_line_feeds_only(
    tmp_path_factory: pytest.TempPathFactory, kept: list[str]
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.txt"
    lines = [text.replace("\n", " ").replace("\ufeff", " ") for text in kept]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert [each.text for each in read_texts(path)] == lines
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\n").encode())
    assert [each.text for each in read_texts(path)] == lines


@common
@given(st.data(), ids, st.sampled_from(",;\t|"), st.booleans())
def test_a_table_with_any_separator_keeps_texts_answers_and_ids(
    tmp_path_factory: pytest.TempPathFactory, data: Any, names: list[int], mark: str, bom: bool
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.csv"
    rows = [(data.draw(texts), "is", str(name)) for name in names]
    stream = io.StringIO()
    written = csv.writer(stream, delimiter=mark, quoting=csv.QUOTE_ALL)
    written.writerow(("text", "answer", "id"))
    written.writerows(rows)
    path.write_bytes(stream.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    assert [(each.text, each.answer, each.id) for each in read_texts(path)] == rows


@common
@given(st.lists(st.text(st.sampled_from("aé«»“”€ß ñ"), max_size=9), min_size=1, max_size=5))
def test_a_table_of_windows_is_read_with_its_encoding_and_refused_without_by_row_and_column(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.csv"
    rows = [f"It {part} is" for part in parts]
    path.write_bytes(
        ("text;answer\r\n" + "".join(f"{row};is\r\n" for row in rows)).encode("cp1252")
    )
    assert [each.text for each in read_texts(path, encoding="windows-1252")] == rows
    # Some characters of Windows-1252 beside each other are valid UTF-8.
    bad = [number for number, row in enumerate(rows, 1) if not _is_utf8(row.encode("cp1252"))]
    if not bad:
        return
    with pytest.raises(
        UserError, match=rf"row {bad[0]}, column 'text'; .*--encoding windows-1252$"
    ):
        list(read_texts(path))


def _read(path: Path) -> tuple[list[Text], str]:
    """The texts of a file, or the reason why it is refused."""
    try:
        return list(read_texts(path)), ""
    except UserError as error:
        return [], str(error)


def _is_utf8(content: bytes) -> bool:
    return content == content.decode(errors="ignore").encode()


@common
@given(st.binary(max_size=80), st.sampled_from(["txt", "csv", "tsv", "jsonl", "json", "parquet"]))
def test_any_bytes_give_texts_or_a_one_line_refusal_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, end: str
) -> None:
    path = tmp_path_factory.mktemp("a") / f"a.{end}"
    for each in (content, b"text,id\n" + content, b'{"text": ' + content):
        path.write_bytes(each)
        found, refusal = _read(path)
        assert all(text.text.strip() for text in found)
        assert not refusal or (f"a.{end}" in refusal and "\n" not in refusal)


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())
)


@common
@given(st.lists(st.fixed_dictionaries({}, optional={"id": values, "answer": values}), min_size=1))
def test_any_values_of_ids_and_answers_are_kept_apart_or_refused_by_row_and_column(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "It is", **row}) + "\n" for row in rows))
    found, refusal = _read(path)
    if refusal:
        assert "row" in refusal
        assert any(word in refusal for word in ("column 'answer'", "column 'id'", "the same id"))
    else:
        assert len({each.id for each in found}) == len(rows)
        assert all(each.id for each in found)


@common
@given(st.decimals(-9999, 9999, places=2), st.sampled_from(["{:,}", "{}", "{:.3f}"]))
def test_a_number_is_found_in_any_form_in_which_its_text_writes_it(value: Any, form: str) -> None:
    written = form.format(value)
    text = f"In 19 of 2,001 cases it is {written} km."
    assert form_in(text, float(value)) == written
    start, end = last_span(text, written) or (0, 0)
    assert text[start:end] == written


@pytest.mark.parametrize(
    ("text", "answer", "span"),
    [
        ("It is 3 of 13", "3", (6, 7)),
        ("Pi is 3.14, not 3", "14", (8, 10)),
        ("The art of carts", "art", (4, 7)),
        ("carts", "art", (1, 4)),
        ("北京是首都", "首都", (3, 5)),
        ("so", "no", None),
        ("aaa a", "a", (4, 5)),
    ],
)
def test_a_whole_word_or_number_precedes_a_part_of_one(
    text: str, answer: str, span: tuple[int, int] | None
) -> None:
    assert last_span(text, answer) == span


def test_answers_that_are_numbers_or_booleans_are_judged_as_their_text_writes_them(
    tmp_path: Path,
) -> None:
    rows = [
        ("It is 3.0 of 13", 3),
        ("It has 1,000 parts", 1000.0),
        ("It is True.", True),
        ("It is 0.1", 0.1),
        ("It is false", "False"),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "answer": a}) + "\n" for text, a in rows))
    assert [each.answer for each in read_texts(path)] == ["3.0", "1,000", "True", "0.1", "false"]
    # pandas writes the integers of a column with a gap as floats.
    pd.DataFrame({"text": ["It is 3", "So"], "answer": [3, None]}).to_csv(tmp_path / "a.csv")
    assert [each.answer for each in read_texts(tmp_path / "a.csv")] == ["3", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,answer\nIt is so,no\n", r"row 1 of .*, column 'answer': the text does not contain"),
        ("text,answer\nIt is so,NaN\n", r"row 1 of .*, column 'answer': found NaN, which programs"),
        ("text,answer\nIt is so,so\0\n", r"row 1 of .*, column 'answer': character 3 is NUL"),
        ("text,context\nIt is so,%s\n", r"row 1 of .*, column 'context': 200,000 characters"),
        ("text,id\nIt is so,%s\n", r"row 1 of .*, column 'id': 200,000 characters"),
        ('text,id\nIt,1\n"so" is,2\n', r"row 2, column 'text', line 3: ',' expected after"),
    ],
)
def test_a_mistake_names_row_and_column_before_the_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content.replace("%s", "y" * 200_000))
    with pytest.raises(UserError, match=message):
        next(read_texts(path))
    monkeypatch.setattr(Detector, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert score.main(["run", "--texts", str(path)]) == 2
    assert "row" in capsys.readouterr().err


def test_a_mistake_in_the_last_line_is_named_before_the_first_text_is_returned(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\0\n")
    with pytest.raises(UserError, match=r"line 3 of .*: character 6 is NUL"):
        given_texts(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    found = given_texts(tmp_path / "a.txt")
    assert (found.number, [each.id for each in found.texts]) == (2, ["1", "3"])


def test_files_without_line_feeds_and_unknown_encodings_are_refused_with_a_remedy(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\rthree")
    with pytest.raises(UserError, match="no line feed, as files of old Mac programs"):
        list(read_texts(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert read_context(tmp_path / "a.txt", "windows-1252") == "café"
    with pytest.raises(UserError, match="--encoding windows-1252"):
        read_context(tmp_path / "a.txt")
    for name in ("utf-16", "nonsense", "base64", "é"):
        with pytest.raises(UserError, match=r"--encoding: .* is not an encoding that can be read"):
            require_encoding(name, "--encoding")
