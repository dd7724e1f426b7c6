"""Rows of csv and tsv files."""

import csv
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.cells import (
    SEPARATORS,
    Row,
    columns_of,
    nul_flaw,
    require_distinct,
    separator_hint,
    surrogate_flaw,
)
from ghosttrack.inputs.lines import LONGEST, UTF8, UndecodableError, read_lines

log = logging.getLogger("ghosttrack")

# A first line that tells Excel the separator.
_SEP = re.compile(r"\"?sep=([,;|\t])\"?\s*", re.IGNORECASE)
# Invisible characters around a column name: white space, zero-width spaces, and the byte order
# marks that remain where files were concatenated.
_AROUND_NAMES = re.compile(r"\A[\s\u200b\ufeff]+|[\s\u200b\ufeff]+\Z")
# A file that begins with JSON, not with a column name.
_JSON_START = re.compile(r"\[\s*(\{|\[|$)|\{\s*([\"']|$)")
# Number of rows by which the separator is recognised.
_TRIED_ROWS = 100


class _Source(NamedTuple):
    """A file, the setting or argument that names it, and how its bytes are decoded."""

    path: Path
    key: str
    encoding: str = UTF8
    errors: str | None = None

    def lines(self) -> Iterator[str]:
        """Its lines with their line ends."""
        return read_lines(
            self.path, self.key, newline="", encoding=self.encoding, errors=self.errors
        )


def read(path: Path, key: str, encoding: str = UTF8) -> list[Row]:
    """All rows of a csv or tsv file.

    Raises:
        UserError: naming `key`, the file, and the row, column and line that cannot be read.
    """
    try:
        return _read(_Source(path, key, encoding))
    except UndecodableError as error:
        raise UndecodableError(f"{error}{_undecodable(path, key, encoding)}") from None


def _undecodable(path: Path, key: str, encoding: str) -> str:
    """Row and column of the first byte that does not fit the encoding, for an error message."""
    try:
        rows = _read(_Source(path, key, encoding, "surrogateescape"))
    except UserError:
        return ""
    return next(
        (
            f"; it is in row {number}, column {column!r}"
            for number, row in enumerate(rows, start=1)
            for column, value in row.items()
            if surrogate_flaw(value)
        ),
        "; it is in the header",
    )


def _read(source: _Source) -> list[Row]:
    path, key, separator = source.path, source.key, _separator(source)
    header: list[str] = []
    rows: list[Row] = []
    lines: list[str] = []  # lines of the current row
    reader = csv.reader(_recorded(_table_lines(source), lines), delimiter=separator, strict=True)
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
            ) or _misquoted("".join(lines), header, separator)
        raise UserError(
            f"{key}: {path} is not a table of values separated by {SEPARATORS[separator]}: "
            f"{row}{column}, line {reader.line_num}: {error}; close every quotation mark, and "
            "double those inside a quoted text"
            + (
                ', because a backslash does not escape them; in R, write with qmethod = "double"'
                if any('\\"' in line for line in lines)
                else ""
            )
        ) from None
    return rows


def read_columns(path: Path, key: str) -> list[str]:
    """The column names of a csv or tsv file; [] if its header cannot be read.

    Raises:
        UserError: as `read`, for the file and its header.
    """
    source = _Source(path, key)
    table = csv.reader(_table_lines(source), delimiter=_separator(source))
    try:
        with _field_limit(LONGEST):
            header = next(filter(_filled, table), [])
    except csv.Error:
        return []  # `read` names the row that is wrong
    return _header(header, path, key)


def _table_lines(source: _Source) -> Iterator[str]:
    """The lines of a csv or tsv file from its header on, without a first line such as `sep=;`."""
    lines = source.lines()
    first = _first_line(lines)
    return _without_marks(lines if _SEP.fullmatch(first) else chain([first], lines))


def _without_marks(lines: Iterable[str]) -> Iterator[str]:
    """The lines without the byte order marks that remain where files were concatenated."""
    quoted = False
    for line in lines:
        yield line if quoted else line.lstrip("\ufeff")
        quoted ^= line.count('"') % 2 == 1


def _first_line(lines: Iterator[str]) -> str:
    """The first line without byte order marks (there may be several); "" if there is none."""
    return next(lines, "").lstrip("\ufeff")


def _separator(source: _Source) -> str:
    """The character that separates the values of a csv or tsv file.

    A first line such as `sep=;` decides. Otherwise it is the usual separator of the extension,
    unless another separator fits and the usual one does not:

    - the usual one gives rows of different lengths, and the other one rows of equal length; or
    - the usual one gives a single column, and the other one splits both the header and the first
    row.

    The log names a separator that is not the usual one.

    Raises:
        UserError: several other separators fit, or the file is a Markdown table.
    """
    path, key = source.path, source.key
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if named := _SEP.fullmatch(_first_line(source.lines())):
        return named[1]
    usual_widths = _widths(source, usual)
    if _even(usual_widths):
        return usual
    # A header may contain the usual separator: "text (short, one line);label".
    single = usual_widths[0] == 1
    others = {mark: _widths(source, mark) for mark in SEPARATORS if mark != usual}
    fitting = [mark for mark, widths in others.items() if _even(widths)]
    fitting = fitting or [mark for mark, widths in others.items() if single and _splits(widths)]
    if single and len(fitting) > 1:
        raise UserError(
            f"{key}: the separator of {path} may be {' or '.join(map(repr, fitting))}; "
            f"write the file with {SEPARATORS[usual]} between its columns"
        )
    if len(fitting) != 1:
        return usual
    if fitting == ["|"] and _is_markdown(source):
        raise UserError(
            f"{key}: {path} is a Markdown table; save it as CSV, without the line of dashes"
        )
    log.info(
        "%s: its columns are separated by %s, not by %s",
        path,
        SEPARATORS[fitting[0]],
        SEPARATORS[usual],
    )
    return fitting[0]


def _even(widths: Sequence[int]) -> bool:
    """Whether header and rows have the same number of values, more than one."""
    return widths[0] > 1 and len(set(widths)) == 1


def _splits(widths: Sequence[int]) -> bool:
    """Whether both the header and the first row have more than one value."""
    return widths[0] > 1 and 1 not in widths[:2]


def _is_markdown(source: _Source) -> bool:
    """Whether the second line consists of dashes, colons and vertical bars."""
    second = next(islice(filter(str.strip, _table_lines(source)), 1, None), "")
    return "-" in second and not set(second.strip()) - set("|-: ")


def _widths(source: _Source, separator: str) -> list[int]:
    """Number of values in the header and in each of the first rows, with a given separator.

    The list ends with 0 if a line has misplaced quotation marks. It is [0] if there is no header.
    """
    widths: list[int] = []
    try:
        with _field_limit(LONGEST):
            table = csv.reader(_table_lines(source), delimiter=separator, strict=True)
            widths += [len(header) for header in islice(filter(_filled, table), 1)]
            for values in islice(filter(None, table), _TRIED_ROWS):
                widths.append(len(values))
    except csv.Error:
        widths.append(0)
    return widths or [0]


def _filled(cells: Sequence[str]) -> bool:
    """Whether a line has any value; empty lines may precede the header."""
    return any(map(str.strip, cells))


def _header(cells: Sequence[str], path: Path, key: str) -> list[str]:
    """The column names, without surrounding white space and invisible characters.

    Raises:
        UserError: a name occurs twice or contains NUL, or the line is JSON.
    """
    header = [_AROUND_NAMES.sub("", cell) for cell in cells]
    if reason := next(filter(None, map(nul_flaw, header)), ""):
        raise UserError(f"{key}: the header of {path}: {reason}")
    if header and _JSON_START.match(header[0]):
        raise UserError(
            f"{key}: {path} begins with JSON, expected column names; change its extension to "
            ".jsonl if each line is an object, else to .json"
        )
    require_distinct(filter(None, header), f"{key}: {path}")
    return header


def _recorded(lines: Iterable[str], record: list[str]) -> Iterator[str]:
    """The lines; each is also appended to `record`."""
    for line in lines:
        record.append(line)
        yield line


@contextmanager
def _field_limit(limit: int) -> Iterator[None]:
    """Allow the csv module to read cells of up to `limit` characters; its default is 131,072."""
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _named(header: Sequence[str], values: Sequence[str], where: str, separator: str) -> Row:
    """A row as a mapping from column names to values; `where` names row and file in errors."""
    if any(values[len(header) :]) or len(values) < len(header):
        raise UserError(
            f"{where} has {len(values)} values for {len(header)} columns ({columns_of(header)}); "
            "quote texts that contain a separator or a line break, and name every column in the "
            "first line" + _row_names_hint(header, values) + separator_hint(header)
        )
    # Spreadsheets write empty cells after the last column.
    row = dict(zip(header, values, strict=False))
    for column, value in row.items():
        if reason := _quotation_flaw(value, separator):
            raise UserError(f"{where}, column {column!r}: {reason}")
    return row


def _row_names_hint(header: Sequence[str], values: Sequence[str]) -> str:
    """A remedy for row names without a column name, as from R's write.table; otherwise ""."""
    row_names = len(values) == len(header) + 1 and values[0].isdecimal()
    return "; in R, write the table without row names: row.names = FALSE" if row_names else ""


def _quotation_flaw(value: str, separator: str) -> str:
    """What is wrong with the quotation marks of a value, with a remedy; "" if nothing is."""
    inner = value.strip()
    if value[:1].isspace() and len(inner) > 1 and inner[0] == inner[-1] == '"':
        return (
            "a blank precedes the opening quotation mark, which therefore belongs to the text; "
            'write ,"..." without the blank'
        )
    if separator == "\t" and "\t" in value and "\n" in value:
        return (
            "a quoted text contains a tab and a line break, so its closing quotation mark may be "
            'missing; quote the whole text and double each quotation mark in it: "say ""no"""'
        )
    return ""


def _unfinished(values: Sequence[str], header: Sequence[str], error: str) -> str:
    """The column of an unfinished or too long cell, for an error message; "" if it is unknown."""
    long = [index for index, value in enumerate(values) if len(value) > LONGEST]
    if not values or not (long or error.startswith("unexpected end")):
        return ""
    index = long[0] if long else len(values) - 1
    return f", column {header[index]!r}" if index < len(header) else f", value {index + 1}"


def _misquoted(row: str, header: Sequence[str], separator: str) -> str:
    """The column of the first quoted cell with text after it, for an error message; "" if none."""
    column, quoted, opening = 0, False, True
    characters = iter(range(len(row)))
    for index in characters:
        mark = row[index]
        if quoted and mark == '"':
            if row[index + 1 : index + 2] == '"':
                next(characters)
                continue
            quoted = False
            if row[index + 1 : index + 2] not in ("", separator, "\r", "\n"):
                return f", column {header[column]!r}" if column < len(header) else ""
        elif quoted:
            continue
        elif mark == separator:
            column += 1
        elif mark == '"' and opening:
            quoted = True
        opening = mark == separator and not quoted
    return ""
