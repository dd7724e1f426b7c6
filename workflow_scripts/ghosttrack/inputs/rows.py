"""Rows of a local csv, tsv, json, jsonl or parquet file, as text stands in them, with readable errors."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

Row = Mapping[str, Any]


def read_rows(path: Path, key: str = "path") -> list[Row]:
    """All rows of a table; the first is row 1 in every message about it.

    In csv and tsv every value is text, the empty one included. A .json file holds a list of objects,
    one object a line, or an object whose `Data` is the list (TriviaQA's own form).

    Raises:
        UserError: naming the file and `key`, the setting or argument that led to it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{key}: {path} is not there; expected a {', '.join(FILES)} file")
    if path.suffix.lower() not in FILES:
        raise UserError(f"{key}: {path} must end in one of {', '.join(FILES)}")
    try:
        rows = _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text ({error}); convert it") from None
    except csv.Error as error:
        raise UserError(f"{key}: {path} is not a table of separated values ({error})") from None
    if not rows:
        raise UserError(f"{key}: {path} holds no rows")
    return rows


def require_columns(row: Row, columns: Iterable[tuple[str, str]], name: str) -> None:
    """Check that a table has its columns, given as (settings key or "", column); names every column found."""
    for key, column in columns:
        if column not in row:
            raise UserError(
                f"{f'{key}: ' if key else ''}{name} has no column {column!r}; found {', '.join(map(str, row))}"
                + (f". Set {key} to the column that holds it" if key else "")
            )


def text_of(row: Row, column: str, number: int, name: str, *, empty: bool = False) -> str:
    """The text in a cell, stripped; anything but text, or no text, is a UserError with the row's number."""
    value = row.get(column)
    if isinstance(value, str) and (value.strip() or empty):
        return value.strip()
    found = "nothing" if value is None or value == "" else "blanks" if isinstance(value, str) else repr(value)
    raise UserError(
        f"row {number} of {name}: expected text in column {column!r}, found {found}; fill it or remove the row"
    )


def list_of(value: Any) -> list[str]:
    """A cell with several texts: a list, a list written as JSON, or texts separated by `;`."""
    if value is None:
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return list_of(json.loads(value))
            except ValueError:
                pass  # a text that merely starts with a bracket
        value = value.split(";")
    return [text for item in value if (text := str(item).strip())]


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path} has two columns of one name: {', '.join(header)}")
        rows: list[Row] = []
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"row {len(rows) + 1} of {path} has {len(values)} values for {len(header)} columns; quote texts that "
                    "hold a separator"
                )
            rows.append(dict(zip(header, values, strict=True)))
        return rows


def _jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"line {number} of {path} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {path} is not an object with the columns as keys")
            rows.append(row)
    return rows


def _json(path: Path) -> list[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return _jsonl(path)
    if isinstance(content, dict):
        content = content.get("Data", [content])
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path} is not a list of objects with the columns as keys")
    return content


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a parquet file ({error})") from None


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
