"""Values and columns of one table row: read them as text, and describe their faults."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError

Row = Mapping[str, Any]

# Maximum number of characters of a text or a question: about 25,000 tokens. The attention masks of
# longer texts take gigabytes.
LONGEST_TEXT = 100_000
# How pandas, R, Excel and databases write a missing value. In csv and tsv it looks like text.
MISSING = frozenset(
    ("nan", "NaN", "NaT", "<NA>", "null", "NULL", "None", "NA", "N/A", "#N/A", "\\N")
)
# Separators of csv and tsv files, and their names in messages.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_ERRORS = frozenset(("#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"))
# Number of characters of a bad value, and of column names, that an error shows.
_SHOWN, _NAMED = 80, 20


def require_distinct(columns: Iterable[str], where: str) -> None:
    """Check that column names are distinct; the UserError begins with `where`."""
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise UserError(
                f"{where} has two columns with the name {shown(column)}; rename or remove one"
            )
        seen.add(column)


def require_exact_names(columns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuse a column that differs from an optional one in case or space: it would not be read."""
    present = set(columns)
    for column in columns:
        name = str(column).strip().casefold()
        if name in names and name not in present:
            raise UserError(
                f"{where} has the column {column!r}, which would not be read; rename it to "
                f"{name!r}, or to another word if it holds something else"
            )


def require_columns(row: Row, columns: Iterable[tuple[str, str]], name: str) -> None:
    """Check that a table has the columns that are read.

    Args:
        row: one row, or the result of `all_columns`.
        columns: pairs of settings key ("" if there is none) and column name.
        name: the file.
    Raises:
        UserError: a column is missing; lists the columns that exist.
    """
    for key, column in columns:
        if not _has(row, column):
            available = available_names(row, column)
            raise UserError(
                f"{f'{key}: ' if key else ''}{name} has no column {column!r}; found "
                f"{columns_of(available)}. {_remedy(row, column, key)}{_header_hint(name)}"
                f"{separator_hint(available)}"
            )


def all_columns(rows: Iterable[Row], wanted: Sequence[str] = ()) -> Row:
    """All columns that occur in the rows, each with its first value that is not None.

    A row of JSON may lack a column. Reading stops when all columns in `wanted` have been found.
    """
    columns: dict[str, Any] = {}
    for row in rows:
        for column, value in row.items():
            if columns.get(column) is None:
                columns[column] = value
        if wanted and all(_has(columns, column) for column in wanted):
            break
    return columns


def _remedy(row: Row, column: str, key: str) -> str:
    """A remedy for a missing column, which may differ in case or be in an object or list."""
    similar = [name for name in map(str, row) if name.strip().casefold() == column.casefold()]
    inside = [
        f"{name}.{column}"
        for name, value in row.items()
        if isinstance(value, Mapping) and column in value
    ]
    if key and len(similar + inside) == 1:
        return f"Set {key} to {(similar + inside)[0]!r}"
    known = repr(similar[0]) if len(similar) == 1 else "the column that holds it"
    usual = f"Set {key} to {known}" if key else f"Rename {known} to {column!r}"
    nested = [
        name for name, value in row.items() if isinstance(value, list) and _has_objects(value)
    ]
    nested = nested or [
        name for name, value in row.items() if isinstance(value, Mapping) and column in value
    ]
    objects = f", or, if the rows are the objects in {columns_of(nested)}, write these to a file, one per line"
    return usual + (objects if nested and not similar else "")


def _has_objects(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], Mapping)


def _header_hint(name: str) -> str:
    """Where a csv or tsv file names its columns; "" for other formats."""
    separated = Path(name).suffix.lower() in (".csv", ".tsv")
    return " (the first line of a csv or tsv file names its columns)" if separated else ""


def separator_hint(names: Iterable[str]) -> str:
    """A remedy if column names contain another separator; "" if they do not."""
    marks = [mark for mark in SEPARATORS if mark != "," and any(mark in name for name in names)]
    return (
        f"; if {SEPARATORS[marks[0]]} separate the columns, add a first line sep={marks[0]}"
        if marks
        else ""
    )


def cell(row: Row, column: str) -> Any:
    """The value in a column; None if there is none.

    `answer.value` is the key `value` of the object in column `answer`, unless a column has this
    name. For a list of objects it is the list of their values.
    """
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = _inside(value, key)
    return value


def available_names(row: Row, column: str) -> list[str]:
    """The column names of a row, and the keys of the object that should contain a nested column."""
    head = column.partition(".")[0]
    inner = row.get(head) if head != column else None
    return [
        *map(str, row),
        *(f"{head}.{key}" for key in (inner if isinstance(inner, Mapping) else ())),
    ]


def _inside(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_inside(part, key) for part in value]
    return value.get(key) if isinstance(value, Mapping) else None


def _has(row: Row, column: str) -> bool:
    """Whether a row has or may have a column; null or a list may have a nested column."""
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


def as_text(value: Any) -> str | None:
    """A text, number or boolean as text: 7.0 becomes "7" and True becomes "true".

    Returns:
        "" for a missing value (None or NaN); None for other types and for infinite numbers.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal) and not value.is_infinite():  # from parquet files of databases
        digits = "" if value.is_nan() else f"{value:f}"  # `normalize` would round to 28 digits
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    if not isinstance(value, Real) or math.isinf(value):
        return None
    return "" if math.isnan(value) else _decimal(float(value))


def _decimal(value: float) -> str:
    """A finite number in its shortest decimal form, without exponent and without a final ".0"."""
    import numpy as np

    digits = repr(value)
    if not value.is_integer() and float(narrow := np.float32(value)) == value:
        digits = str(narrow)  # a float32 of a parquet file: 0.1, not 0.10000000149011612
    return f"{Decimal(digits):f}".removesuffix(".0")


def text_of(row: Row, column: str, number: int, name: str, *, numbers: bool = False) -> str:
    """The text in a cell, without surrounding white space.

    Args:
        row: the row. column: its column.
        number: number of the row, from 1. name: the file.
        numbers: also accept numbers and booleans, converted by `as_text`.
    Raises:
        UserError: there is no text, or a text that cannot be used; names the row.
    """
    value = cell(row, column)
    if numbers and isinstance(value, Real | Decimal):
        value = as_text(value)
    if isinstance(value, str) and value.strip():
        if reason := _spreadsheet_error(value) or text_flaw(value):
            raise UserError(f"row {number} of {name}, column {column!r}: {reason}")
        return value.strip()
    raise UserError(
        f"row {number} of {name}: expected text in column {column!r}, {no_text_reason(value)}"
    )


def missing_flaw(text: str, name: str) -> str:
    """Why a cell of a csv or tsv file may be a missing value, with a remedy; "" if it is a text."""
    separated = Path(name).suffix.lower() in (".csv", ".tsv")
    if not separated or text.strip() not in MISSING:
        return ""
    return (
        f"found {text.strip()}, which programs write for a missing value; leave the cell empty, or "
        "write its value"
    )


def no_text_reason(value: Any) -> str:
    """What a cell contains instead of text, with a remedy."""
    if isinstance(value, str) or as_text(value) == "":
        content = "blanks" if isinstance(value, str) and value else "nothing"
        return f"found {content}; fill the cell or remove the row"
    return (
        f"found {shown(value)} ({type(value).__name__}); write it as text, or name another column"
    )


def _spreadsheet_error(text: str) -> str:
    """A remedy for the error value of a spreadsheet; "" for any other text."""
    if text.strip() in _ERRORS:
        return f"{text.strip()} is the error value of a spreadsheet; correct the formula or remove the row"
    return ""


def text_flaw(text: str) -> str:
    """Why a text, question or accepted answer cannot be used, with a remedy; "" if it can."""
    return nul_flaw(text) or flaw(text, LONGEST_TEXT)


def flaw(text: str, longest: int) -> str:
    """Why a text of a corpus cannot be used, with a remedy; "" if it can."""
    if len(text) > longest:
        return (
            f"{len(text):,} characters, more than {longest:,}; shorten the text or remove the row"
        )
    return surrogate_flaw(text)


def nul_flaw(text: str) -> str:
    """The position of a NUL character in a text, with a remedy; "" if there is none."""
    position = text.find("\0") + 1
    return (
        f"character {position} is NUL, as in UTF-16 or binary files; remove it, or save the file "
        "as UTF-8"
        if position
        else ""
    )


def surrogate_flaw(text: str) -> str:
    """The position of a lone surrogate in a text, with a remedy; "" if there is none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            return f"character {error.start + 1} is {half}, half of a surrogate pair; remove it"
    return ""


def shown(value: Any) -> str:
    """The `repr` of a value for an error message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def columns_of(row: Iterable[Any]) -> str:
    """At most 20 column names for a message, quoted if they have invisible characters."""
    names = [str(name) for name in row]
    visible = [
        name if name and name == name.strip() and name.isprintable() else repr(name)
        for name in names[:_NAMED]
    ]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(visible) + more if names else "none"
