"""Rows of a local csv, tsv, json, jsonl or parquet file, with their values unchanged."""

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds, separated
from ghosttrack.inputs.cells import Row, require_distinct, surrogate_flaw
from ghosttrack.inputs.json_tables import parsed, rows_in, values_in
from ghosttrack.inputs.lines import UTF8, in_one_line, read_lines, read_text

log = logging.getLogger("ghosttrack")

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

# Maximum nesting of lists and objects in a cell. Python can print and copy only some hundreds.
_DEEPEST = 50


def read_rows(path: Path, key: str = "path", encoding: str = UTF8) -> list[Row]:
    """All rows of a table. Error messages count rows from 1.

    In csv and tsv files every value is text ("" if empty), and white space around a column name is
    ignored. `json_tables` lists the supported forms of a .json file.

    Args:
        path: the file.
        key: the settings key or argument that names the file, for error messages.
        encoding: of a text file.
    Raises:
        UserError: the file cannot be read or has no rows; names the file, and the row and column.
    """
    path = Path(path).expanduser()
    if reason := refusal(path):
        raise UserError(f"{key}: {reason}")
    rows = _READERS[path.suffix.lower()](path, key, encoding)
    if not rows:
        raise UserError(
            f"{key}: {path} holds no rows, expected at least one; add rows or name another file"
        )
    return rows


def rows_ahead(path: Path, key: str) -> Iterator[Row]:
    """The part of a table that a dry run checks.

    Yields:
        The rows of a jsonl file one by one; for csv and tsv one row with the columns and no values;
        nothing for other formats.
    Raises:
        UserError: as `read_rows`, for the part of the file that has been read.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".jsonl":
        yield from _objects(path, key)
    if path.suffix.lower() in (".csv", ".tsv") and (columns := separated.read_columns(path, key)):
        yield dict.fromkeys(columns)


def refusal(path: Path) -> str:
    """Why a file cannot be a table, by its name and first bytes; "" if it can."""
    if reason := file_kinds.not_a_file(path):
        return f"{reason}; expected a {', '.join(FILES)} file"
    if path.suffix.lower() not in FILES:
        return f"{path} must end in one of {', '.join(FILES)}; {file_kinds.converted(path)}"
    return file_kinds.refusal(path)


def _jsonl(path: Path, key: str, encoding: str) -> list[Row]:
    return list(_objects(path, key, encoding))


def _objects(path: Path, key: str, encoding: str = UTF8) -> Iterator[Row]:
    """The rows of a jsonl file, read one by one."""
    number = 0
    for line_number, read in enumerate(read_lines(path, key, encoding=encoding), start=1):
        line = read.lstrip("\ufeff")  # remains where files were concatenated
        if not line.strip():
            continue
        hint = "" if number else _hint(line)
        try:
            row = parsed(line, f"{key}: line {line_number} of {path}")
        except UserError as error:
            raise UserError(f"{error}{hint}") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{key}: line {line_number} of {path} is not an object with the columns as "
                f"keys{hint}"
            )
        number += 1
        yield _checked(row, number, path)


def _hint(line: str) -> str:
    """A remedy for a first line that is not a JSON object."""
    text = line.strip()
    if (
        text.startswith("[")
        or text == "{"
        or (text.startswith("{") and not text.endswith(("}", "},")))
    ):
        return (
            "; if the file is one list, or an object spans several lines, change the file's "
            "extension to .json"
        )
    if text.endswith("},"):
        return "; if commas separate the objects, remove them: each line must be one object"
    if text.startswith("{"):
        return ""
    return "; if it is a table of separated values, change the file's extension to .csv or .tsv"


def _json(path: Path, key: str, encoding: str) -> list[Row]:
    text = read_text(path, key, encoding)
    try:
        table = rows_in(values_in(text, path), str(path))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if table.form:
        log.info("%s holds %s: %d rows", path, table.form, len(table.rows))
    return [_checked(row, number, path) for number, row in enumerate(table.rows, start=1)]


def _checked(row: Row, number: int, path: Path) -> Row:
    """The row, after a check for lone surrogates and for values that are nested too deeply."""
    for column, value in row.items():
        if reason := surrogate_flaw(column) or _nested_flaw(value, 0):
            raise UserError(f"row {number} of {path}, column {column!r}: {reason}")
    return row


def _nested_flaw(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return surrogate_flaw(value)
    if not isinstance(value, dict | list):
        return ""
    if depth == _DEEPEST:
        return (
            f"lists or objects nested more than {_DEEPEST} times; flatten them or remove the column"
        )
    inner = chain(value, value.values()) if isinstance(value, dict) else value
    return next((reason for part in inner if (reason := _nested_flaw(part, depth + 1))), "")


def _parquet(path: Path, key: str, _encoding: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    if reason := file_kinds.refusal(path):
        raise UserError(f"{key}: {reason}")
    try:
        # Not `read_table`: it also reads directories, and reports a repeated column as damage.
        file = parquet.ParquetFile(path)
        require_distinct(file.schema_arrow.names, f"{key}: {path}")
        table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{key}: {path} is damaged or is not a parquet file ({in_one_line(error)}); write it "
            "or download it again"
        ) from None
    try:
        return list(table.to_pylist())
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{_unreadable_cell(table, path)} cannot be read ({in_one_line(error)}); "
            "write the file again without this column, or with text in it"
        ) from None


def _unreadable_cell(table: Any, path: Path) -> str:
    """Row and column of the first cell that Python cannot hold, such as invalid UTF-8."""
    for column, cells in zip(table.column_names, table.columns, strict=True):
        for number, cell in enumerate(cells, start=1):
            try:
                cell.as_py()
            except (ValueError, OverflowError):
                return f"row {number} of {path}, column {column!r}"
    return str(path)


_READERS = {
    ".csv": separated.read,
    ".tsv": separated.read,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
