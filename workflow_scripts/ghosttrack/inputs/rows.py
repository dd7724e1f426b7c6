"""Rows of a local csv, tsv, json, jsonl or parquet file, as text stands in them, with readable errors."""

import csv
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds
from ghosttrack.inputs.json_tables import parsed, rows_in, values_in
from ghosttrack.inputs.lines import LONGEST, in_one_line, read_lines, read_text

log = logging.getLogger("ghosttrack")

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

Row = Mapping[str, Any]

# Characters of a text that is judged or asked: some 25,000 tokens, whose attention masks take gigabytes.
LONGEST_TEXT = 100_000
# Lists and objects inside one another in a cell; Python prints and copies no more than some hundreds.
_DEEPEST = 50
# What stands between columns, in words.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# A first line by which Excel is told the separator.
_SEP = re.compile(r"\"?sep=([,;|\t])\"?\s*", re.IGNORECASE)
# What may stand around the name of a column and is not seen: blanks, a space without width, and a byte order mark within a
# file, where two were joined.
_AROUND_NAMES = re.compile(r"\A[\s\u200b\ufeff]+|[\s\u200b\ufeff]+\Z")
# The beginning of JSON rather than of a column's name.
_JSON_START = re.compile(r"\[\s*(\{|\[|$)|\{\s*([\"']|$)")
_ERRORS = frozenset(("#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"))
_FIRST_LINE = " (the first line of a csv or tsv file names its columns)"
# Characters of a bad value, and names of columns, that an error shows.
_SHOWN, _NAMED = 80, 20
# What pandas, R, Excel and databases write for a missing value. In csv and tsv it cannot be told from a text.
MISSING = frozenset(
    ("nan", "NaN", "NaT", "<NA>", "null", "NULL", "None", "NA", "N/A", "#N/A", "\\N")
)
# Rows from which the separator is told.
_TRIED = 100


def read_rows(path: Path, key: str = "path") -> list[Row]:
    """All rows of a table; the first is row 1 in every message about it.

    In csv and tsv every value is text, the empty one included, and blanks around a column's name do not count. The forms
    of a .json file are those of `json_tables`.

    Raises:
        UserError: naming the file, the row and the column, or `key`, the setting or argument that led to the file.
    """
    path = Path(path).expanduser()
    if reason := refusal(path):
        raise UserError(f"{key}: {reason}")
    rows = _READERS[path.suffix.lower()](path, key)
    if not rows:
        raise UserError(
            f"{key}: {path} holds no rows, expected at least one; name another file or fill it"
        )
    return rows


def rows_ahead(path: Path, key: str) -> Iterator[Row]:
    """The rows of a jsonl file as they are read, or the columns of a csv or tsv file without values: for a dry run.

    Yields:
        No row of a file of another kind, which only its job reads.
    Raises:
        UserError: as `read_rows`, as far as the file has been read.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".jsonl":
        yield from _objects(path, key)
    if path.suffix.lower() not in (".csv", ".tsv"):
        return
    table = csv.reader(_table_lines(path, key), delimiter=_separator(path, key))
    try:
        with _field_limit(LONGEST):
            header = next(filter(_filled, table), [])
    except csv.Error:
        return  # the job says which row is wrong
    if header:
        yield dict.fromkeys(_header(header, path, key))


def refusal(path: Path) -> str:
    """Why a file cannot be read as a table, by its name and its first bytes, with a remedy; "" if nothing is against it."""
    if reason := file_kinds.not_a_file(path):
        return f"{reason}; expected a {', '.join(FILES)} file"
    if path.suffix.lower() not in FILES:
        return f"{path} must end in one of {', '.join(FILES)}; {file_kinds.converted(path)}"
    return file_kinds.refusal(path)


def require_distinct(columns: Iterable[str], where: str) -> None:
    """Check that no two columns have one name; a UserError that begins with `where` names the first that is there twice."""
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise UserError(
                f"{where} has two columns of one name: {shown(column)}; rename or remove one"
            )
        seen.add(column)


def require_columns(row: Row, columns: Iterable[tuple[str, str]], name: str) -> None:
    """Check that a table has its columns, given as (settings key or "", column); names every column found.

    Args:
        row: one row, or the columns of all rows, as `all_columns` gives them. name: the file.
    """
    for key, column in columns:
        if not _has(row, column):
            found = names_near(row, column)
            raise UserError(
                f"{f'{key}: ' if key else ''}{name} has no column {column!r}; found {columns_of(found)}. "
                f"{_remedy(row, column, key)}{_in_tables(name)}{_other_separator(found)}"
            )


def all_columns(rows: Iterable[Row], wanted: Sequence[str] = ()) -> Row:
    """The columns of all rows, each with the first value that is not missing: programs leave out a key without a value.

    Where `wanted` names columns, no row is read after the one with which all of these have been found.
    """
    found: dict[str, Any] = {}
    for row in rows:
        for column, value in row.items():
            if found.get(column) is None:
                found[column] = value
        if wanted and all(_has(found, column) for column in wanted):
            break
    return found


def _remedy(row: Row, column: str, key: str) -> str:
    """How a table gets a column that it lacks; names a column that differs in case alone, or one inside an object."""
    like = [name for name in map(str, row) if name.strip().casefold() == column.casefold()]
    inside = [
        f"{name}.{column}"
        for name, value in row.items()
        if isinstance(value, Mapping) and column in value
    ]
    if key and len(like + inside) == 1:
        return f"Set {key} to {(like + inside)[0]!r}"
    known = repr(like[0]) if len(like) == 1 else "the column that holds it"
    usual = f"Set {key} to {known}" if key else f"Rename {known} to {column!r}"
    nested = [
        name for name, value in row.items() if isinstance(value, list) and _has_objects(value)
    ]
    nested = nested or [
        name for name, value in row.items() if isinstance(value, Mapping) and column in value
    ]
    objects = f", or, if the rows are the objects in {columns_of(nested)}, write those to a file, one a line"
    return usual + (objects if nested and not like else "")


def _has_objects(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], Mapping)


def _in_tables(name: str) -> str:
    """Where a csv or tsv file names its columns; "" for a file of another kind."""
    return _FIRST_LINE if Path(name).suffix.lower() in (".csv", ".tsv") else ""


def cell(row: Row, column: str) -> Any:
    """The value in a column; None where there is none.

    `answer.value` is the key `value` of an object in the column `answer`, unless a column has that name itself.
    Of a list of objects it is the list of their values.
    """
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = _inside(value, key)
    return value


def names_near(row: Row, column: str) -> list[str]:
    """The names of a row's columns, and of the keys of the object in which a nested column was looked for."""
    head = column.partition(".")[0]
    inner = row.get(head) if head != column else None
    return [
        *map(str, row),
        *(f"{head}.{key}" for key in (inner if isinstance(inner, Mapping) else ())),
    ]


def _inside(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_inside(each, key) for each in value]
    return value.get(key) if isinstance(value, Mapping) else None


def _has(row: Row, column: str) -> bool:
    """Whether a row has a column; a null or a list on the way to a nested one leaves it open."""
    if column in row:
        return True
    value: Any = row
    for key in column.split("."):
        if value is None or isinstance(value, list):
            return True
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def written(value: Any) -> str | None:
    """Text, a number or a boolean as text: 7.0 is "7" and True is "true".

    Returns:
        "" for a missing value (None or NaN); None for a value of another kind, and for an infinite number.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if (
        isinstance(value, Decimal) and not value.is_infinite()
    ):  # of a parquet file that a database wrote
        return "" if value.is_nan() else f"{value.normalize():f}"
    if not isinstance(value, Real) or math.isinf(value):
        return None
    return "" if math.isnan(value) else _decimal(float(value))


def _decimal(value: float) -> str:
    """A finite number in its shortest decimal form, without an exponent or a final ".0"."""
    import numpy as np

    digits = repr(value)
    if not value.is_integer() and float(narrow := np.float32(value)) == value:
        digits = str(
            narrow
        )  # a float32 of a parquet file: .1, which Python has as 0.10000000149011612
    return f"{Decimal(digits):f}".removesuffix(".0")


def text_of(row: Row, column: str, number: int, name: str, *, numbers: bool = False) -> str:
    """The text in a cell, stripped; anything else, or no text, is a UserError with the row's number.

    Args:
        numbers: numbers and booleans are taken too, as `written` writes them.
    """
    value = cell(row, column)
    if numbers and isinstance(value, Real | Decimal):
        value = written(value)
    if isinstance(value, str) and value.strip():
        if reason := _spreadsheet_error(value) or text_flaw(value):
            raise UserError(f"row {number} of {name}, column {column!r}: {reason}")
        return value.strip()
    raise UserError(
        f"row {number} of {name}: expected text in column {column!r}, {without_text(value)}"
    )


def missing_flaw(text: str, name: str) -> str:
    """Why a cell of csv or tsv may hold a missing value rather than a text, and what to do; "" if it holds a text."""
    separated = Path(name).suffix.lower() in (".csv", ".tsv")
    if not separated or text.strip() not in MISSING:
        return ""
    return f"found {text.strip()}, which is how programs write a missing value; leave the cell empty, or fill it"


def without_text(value: Any) -> str:
    """What stands in a cell in place of text, and what to do."""
    if isinstance(value, str) or written(value) == "":
        return f"found {'blanks' if isinstance(value, str) and value else 'nothing'}; fill it or remove the row"
    return (
        f"found {shown(value)} ({type(value).__name__}); write it as text, or name another column"
    )


def _spreadsheet_error(text: str) -> str:
    """What to do about the error value of a spreadsheet in the place of a text; "" if the text is none."""
    if text.strip() in _ERRORS:
        return f"{text.strip()} is the error value of a spreadsheet; correct the formula, or remove the row"
    return ""


def text_flaw(text: str) -> str:
    """Why a text that is judged, asked or accepted cannot be taken, and what to do; "" if it can."""
    return _nul(text) or flaw(text, LONGEST_TEXT)


def flaw(text: str, longest: int) -> str:
    """Why a text cannot be read by a model or written to a file, and what to do; "" if it can."""
    if len(text) > longest:
        return (
            f"{len(text):,} characters, more than {longest:,}; shorten the text or remove the row"
        )
    return _surrogate(text)


def _nul(text: str) -> str:
    """Where a text holds the character NUL, and what to do; "" if it holds none."""
    place = text.find("\0") + 1
    return (
        f"character {place} is NUL, as in UTF-16 or binary files; remove it, or save the file as UTF-8"
        if place
        else ""
    )


def _surrogate(text: str) -> str:
    """Where a text holds half of a surrogate pair, which is no character, and what to do; "" if it holds none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            return f"character {error.start + 1} is half of a surrogate pair, {half}, without the other half; remove it"
    return ""


def shown(value: Any) -> str:
    """A value as Python writes it, for an error: the first characters of a long one."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def columns_of(row: Iterable[Any]) -> str:
    """The names of a row's columns, for an error: the first ones of many, in quotation marks where blanks would not be seen."""
    names = [str(name) for name in row]
    visible = [
        name if name and name == name.strip() and name.isprintable() else repr(name)
        for name in names[:_NAMED]
    ]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(visible) + more if names else "none"


def _csv(path: Path, key: str) -> list[Row]:
    separator = _separator(path, key)
    header: list[str] = []
    rows: list[Row] = []
    lines: list[str] = []  # of the row that is being read
    reader = csv.reader(_noted(_table_lines(path, key), lines), delimiter=separator, strict=True)
    try:
        with _field_limit(LONGEST):
            header = _header(next(filter(_filled, reader), []), path, key)
            lines.clear()
            for values in reader:
                if values:
                    rows.append(_named(header, values, f"row {len(rows) + 1} of {path}", separator))
                lines.clear()
    except csv.Error as error:
        row = f"row {len(rows) + 1}" if header else "the header"
        with _field_limit(sys.maxsize):
            column = _unfinished(
                next(csv.reader(lines, delimiter=separator), []), header, str(error)
            )
        raise UserError(
            f"{key}: {path} is not a table of values between {_SEPARATORS[separator]}: {row}{column}, line {reader.line_num}: {error}; "
            "is a quotation mark not closed, or not doubled inside a quoted text?"
            + (
                ' A backslash does not stand for a second one; in R, write with qmethod = "double"'
                if _escaped(lines)
                else ""
            )
        ) from None
    return rows


def _escaped(lines: Iterable[str]) -> bool:
    """Whether lines hold a quotation mark behind a backslash."""
    return any('\\"' in line for line in lines)


def _table_lines(path: Path, key: str) -> Iterator[str]:
    """The lines of a csv or tsv file from its header on; a first line `sep=;`, as Excel takes it, is left out."""
    lines = read_lines(path, key, newline="")
    first = _first_line(lines)
    return lines if _SEP.fullmatch(first) else chain([first], lines)


def _first_line(lines: Iterator[str]) -> str:
    """The first line, "" if there is none, without the byte order marks that several programs put there one by one."""
    return next(lines, "").lstrip("\ufeff")


def _separator(path: Path, key: str) -> str:
    """The character that separates the values of a csv or tsv file.

    It is the one that a first line `sep=;` names, else the usual one of the ending. Where the usual one leaves a single
    column, and one of the others separates both the header and the first row, it is that one, and the log says so. The same
    holds where the usual one gives rows another number of values than the header, and the other one always as many.

    Raises:
        UserError: several of the others do, or the file is a table of Markdown.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if named := _SEP.fullmatch(_first_line(read_lines(path, key, newline=""))):
        return named[1]
    found = _widths(path, key, usual)
    if _even(found):
        return usual
    # A header such as "text (short, one line);label" holds commas that do not separate it.
    single = found[0] == 1
    others = {mark: _widths(path, key, mark) for mark in _SEPARATORS if mark != usual}
    fitting = [mark for mark, widths in others.items() if _even(widths)]
    fitting = fitting or [mark for mark, widths in others.items() if single and _splits(widths)]
    if single and len(fitting) > 1:
        raise UserError(
            f"{key}: the header of {path} may be separated by {' or by '.join(map(repr, fitting))}; "
            f"write the file with {_SEPARATORS[usual]} between its columns"
        )
    if len(fitting) != 1:
        return usual
    if fitting == ["|"] and _is_markdown(path, key):
        raise UserError(
            f"{key}: {path} is a table of Markdown; save it as CSV, without the line of dashes"
        )
    log.info(
        "%s: its columns are separated by %s, not by %s",
        path,
        _SEPARATORS[fitting[0]],
        _SEPARATORS[usual],
    )
    return fitting[0]


def _even(widths: Sequence[int]) -> bool:
    """Whether header and rows have several values, all as many."""
    return widths[0] > 1 and len(set(widths)) == 1


def _splits(widths: Sequence[int]) -> bool:
    """Whether the header has several values, and the first row does not have one."""
    return widths[0] > 1 and 1 not in widths[:2]


def _is_markdown(path: Path, key: str) -> bool:
    """Whether the second line of a file holds only dashes, colons and vertical bars."""
    second = next(islice(filter(str.strip, _table_lines(path, key)), 1, None), "")
    return "-" in second and not set(second.strip()) - set("|-: ")


def _widths(path: Path, key: str, separator: str) -> list[int]:
    """Values in the header of a file and in each of its first rows, if a separator is taken.

    It ends with 0 for a line whose quotation marks do not fit, and is [0] for a file without a header.
    """
    widths: list[int] = []
    try:
        with _field_limit(LONGEST):
            table = csv.reader(_table_lines(path, key), delimiter=separator, strict=True)
            widths += [len(header) for header in islice(filter(_filled, table), 1)]
            for values in islice(filter(None, table), _TRIED):
                widths.append(len(values))
    except csv.Error:
        widths.append(0)
    return widths or [0]


def _filled(cells: Sequence[str]) -> bool:
    """Whether a line of a table holds anything; empty ones may stand above the header."""
    return any(map(str.strip, cells))


def _header(cells: Sequence[str], path: Path, key: str) -> list[str]:
    """The names of the columns, without blanks and invisible characters around them.

    Raises:
        UserError: a name is there twice or holds NUL, or the line is JSON.
    """
    header = [_AROUND_NAMES.sub("", cell) for cell in cells]
    if reason := next(filter(None, map(_nul, header)), ""):
        raise UserError(f"{key}: the header of {path}: {reason}")
    if header and _JSON_START.match(header[0]):
        raise UserError(
            f"{key}: {path} begins like JSON, expected the names of columns; give its name the ending .jsonl if each line "
            "is an object, else .json"
        )
    require_distinct(filter(None, header), f"{key}: {path}")
    return header


def _noted(lines: Iterable[str], kept: list[str]) -> Iterator[str]:
    """The lines, each appended to `kept` before it is handed on."""
    for line in lines:
        kept.append(line)
        yield line


@contextmanager
def _field_limit(most: int) -> Iterator[None]:
    """Let the csv module read cells of up to `most` characters, instead of 131,072."""
    before = csv.field_size_limit(most)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _named(header: Sequence[str], values: Sequence[str], where: str, separator: str) -> Row:
    """A row by the names of its columns; errors begin with `where`, the row's number and file."""
    if any(values[len(header) :]) or len(values) < len(header):
        raise UserError(
            f"{where} has {len(values)} values for {len(header)} columns ({columns_of(header)}); "
            "quote texts that hold a separator or a line break, and name every column in the first line"
            + _row_names(header, values)
            + _other_separator(header)
        )
    row = dict(
        zip(header, values, strict=False)
    )  # empty cells behind the last column: spreadsheets write them
    for column, value in row.items():
        if reason := _quotation_flaw(value, separator):
            raise UserError(f"{where}, column {column!r}: {reason}")
    return row


def _row_names(header: Sequence[str], values: Sequence[str]) -> str:
    """What to do in R, whose write.table gives the column of row names no name of its own."""
    named = len(values) == len(header) + 1 and values[0].isdecimal()
    return "; in R, write the table without row names: row.names = FALSE" if named else ""


def _other_separator(names: Iterable[str]) -> str:
    """How to say that a table has another separator, which stands in the names of its columns."""
    marks = [mark for mark in _SEPARATORS if mark != "," and any(mark in name for name in names)]
    return (
        f"; if {_SEPARATORS[marks[0]]} separate the columns, put the line sep={marks[0]} above them"
        if marks
        else ""
    )


def _quotation_flaw(value: str, separator: str) -> str:
    """Why a value is not what its quotation marks say, and what to do; "" if it may be."""
    inner = value.strip()
    if value[:1].isspace() and len(inner) > 1 and inner[0] == inner[-1] == '"':
        return 'a blank stands before the quotation mark, which then belongs to the text; write ,"..." without the blank'
    if separator == "\t" and "\t" in value and "\n" in value:
        return (
            "a tab and a line break within quotation marks, as where a mark is part of the text and the other one is "
            'missing; write the whole text in marks and each mark in it twice: "say ""no"""'
        )
    return ""


def _unfinished(values: Sequence[str], header: Sequence[str], error: str) -> str:
    """The column of a row's last cell or of its first one that is too long, in words; "" where it cannot be told."""
    long = [place for place, value in enumerate(values) if len(value) > LONGEST]
    if not values or not (long or error.startswith("unexpected end")):
        return ""
    place = long[0] if long else len(values) - 1
    return f", column {header[place]!r}" if place < len(header) else f", value {place + 1}"


def _jsonl(path: Path, key: str) -> list[Row]:
    return list(_objects(path, key))


def _objects(path: Path, key: str) -> Iterator[Row]:
    """The rows of a jsonl file as they are read."""
    number = 0
    for line_number, line in enumerate(read_lines(path, key), start=1):
        if not line.strip():
            continue
        hint = "" if number else _hint(line)
        try:
            row = parsed(line, f"{key}: line {line_number} of {path}")
        except UserError as error:
            raise UserError(f"{error}{hint}") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{key}: line {line_number} of {path} is not an object with the columns as keys{hint}"
            )
        number += 1
        yield _checked(row, number, path)


def _hint(line: str) -> str:
    """What a first line that is no JSON object may be, and what to do."""
    text = line.strip()
    if (
        text.startswith("[")
        or text == "{"
        or (text.startswith("{") and not text.endswith(("}", "},")))
    ):
        return "; if the file is one list, or its objects take several lines, give its name the ending .json"
    if text.endswith("},"):
        return "; if a comma stands between the objects, remove it: a line holds one object alone"
    if text.startswith("{"):
        return ""
    return "; if it is a table of separated values, give its name the ending .csv or .tsv"


def _json(path: Path, key: str) -> list[Row]:
    text = read_text(path, key)
    try:
        found = rows_in(values_in(text, path), str(path))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if found.form:
        log.info("%s holds %s: %d rows", path, found.form, len(found.rows))
    return [_checked(row, number, path) for number, row in enumerate(found.rows, start=1)]


def _checked(row: Row, number: int, path: Path) -> Row:
    """A row of JSON without lone surrogates, and not nested beyond what later steps can print and copy."""
    for column, value in row.items():
        if reason := _surrogate(column) or _nested_flaw(value, 0):
            raise UserError(f"row {number} of {path}, column {column!r}: {reason}")
    return row


def _nested_flaw(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return _surrogate(value)
    if not isinstance(value, dict | list):
        return ""
    if depth == _DEEPEST:
        return f"lists or objects nested more than {_DEEPEST} times; flatten them, or remove the column"
    inner = chain(value, value.values()) if isinstance(value, dict) else value
    return next((reason for each in inner if (reason := _nested_flaw(each, depth + 1))), "")


def _parquet(path: Path, key: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    if reason := file_kinds.refusal(path):
        raise UserError(f"{key}: {reason}")
    try:
        # Not `read_table`: it takes the file for a folder of them, and reports a repeated column as damage.
        file = parquet.ParquetFile(path)
        require_distinct(file.schema_arrow.names, f"{key}: {path}")
        table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{key}: {path} is damaged or is not a parquet file ({in_one_line(error)}); write it or download it again"
        ) from None
    try:
        return list(table.to_pylist())
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{_unreadable_cell(table, path)} cannot be read ({in_one_line(error)}); "
            "write the file again without the column, or with text in it"
        ) from None


def _unreadable_cell(table: Any, path: Path) -> str:
    """Row and column of the first cell of a pyarrow table that is no Python value, such as text that is not UTF-8."""
    for column, cells in zip(table.column_names, table.columns, strict=True):
        for number, cell in enumerate(cells, start=1):
            try:
                cell.as_py()
            except (ValueError, OverflowError):
                return f"row {number} of {path}, column {column!r}"
    return str(path)


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
