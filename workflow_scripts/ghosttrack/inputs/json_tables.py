"""The rows of a JSON file, in the forms that pandas, datasets and public data sets write.

| content of the file | rows |
|---|---|
| a list of objects | the objects |
| objects one after another, on one or several lines each | the objects |
| `{"data": [objects], ...}` or another key of `_WRAPPERS` | the objects of that list |
| the same with `paragraphs` and `qas` (SQuAD) | the questions with title and context |
| `{NAME: [objects]}`, whatever the name | the objects |
| `{"columns": [...], "data": [[...], ...]}` (orient="split" of pandas) | the inner lists |
| `{"text": [...], "label": [...]}`, lists of equal length (`Dataset.to_dict`) | one per index |
| `{"text": {"0": ..., "1": ...}, ...}` (pandas' default, orient="columns") | one per inner key |
| `{"0": {"text": ..., ...}, ...}` (pandas' orient="index") | the inner objects |
| another object | that one object |

Anything else is refused with a way to convert it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.cells import require_distinct

_WRAPPERS = frozenset(("data", "rows", "records", "examples", "questions", "items", "instances"))
ONE_A_LINE = (
    "write one object per line, with pandas: "
    'frame.to_json("NAME.jsonl", orient="records", lines=True)'
)
# White space, and the byte order mark that remains where files were concatenated.
_DECODER_SPACE = " \t\n\r\ufeff"


class JsonRows(NamedTuple):
    """Rows, and a description of their form for the log; "" for a plain list of objects."""

    rows: list[dict[str, Any]]
    form: str


def parsed(text: str, where: str) -> Any:
    """JSON as Python values.

    Raises:
        UserError: it is not JSON, is nested too deeply, or repeats a key; the message begins with
            `where`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise UserError(f"{where} holds lists or objects nested too deeply; flatten it") from None
    except _RepeatedKeyError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {_short(error)}") from None


def values_in(text: str, path: object) -> list[Any]:
    """The JSON values of a text, in order.

    Raises:
        UserError: as `parsed`; names the line at which the value begins.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    values: list[Any] = []
    start = _skip_space(text, 0)
    while start < len(text):
        try:
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise UserError(
                f"{_line(text, start, path)} holds lists or objects nested too deeply; flatten it"
            ) from None
        except _RepeatedKeyError as error:
            raise UserError(f"{_line(text, start, path)}: {error}") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{_line(text, error.pos, path)} is not JSON: {error.msg}") from None
        except ValueError as error:
            raise UserError(f"{_line(text, start, path)} is not JSON: {_short(error)}") from None
        values.append(value)
        start = _skip_space(text, end)
    return values


def rows_in(values: Sequence[Any], where: str) -> JsonRows:
    """The rows in a file's JSON values, by the table of this module.

    A UserError begins with `where`.
    """
    if len(values) != 1:
        return JsonRows(_objects(values, where), "")
    (content,) = values
    if isinstance(content, list):
        return JsonRows(_objects(content, where), "")
    if not isinstance(content, dict):
        raise UserError(
            f"{where} holds {_kind(content)}, not a list of objects with the columns as keys"
        )
    return _in_object(content, where)


def _in_object(content: dict[str, Any], where: str) -> JsonRows:
    columns, data = content.get("columns"), content.get("data")
    if (
        isinstance(columns, list)
        and isinstance(data, list)
        and all(isinstance(row, list) for row in data)
    ):
        return JsonRows(
            _split(columns, data, where), 'lists named by "columns" (pandas\' orient="split")'
        )
    inside = list(content.values())
    lists = [key for key in content if _are(content[key], dict)]
    named = [key for key in lists if key.lower() in _WRAPPERS or len(content) == 1]
    if len(named) == 1:
        return JsonRows(_questions(content[named[0]]), f"the list under the key {named[0]!r}")
    if named or (lists and len(lists) == len(content)):
        raise UserError(
            f"{where} holds lists of objects under several keys ({', '.join(named or lists)}); "
            "write one of them to a file of its own"
        )
    if _are(inside, list):
        return JsonRows(
            _columns({key: dict(enumerate(values)) for key, values in content.items()}, where),
            "one list per column",
        )
    if _are(inside, dict):
        return _nested(content, where)
    return JsonRows([content] if content else [], "")


def _questions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For SQuAD's articles their questions with title and context; otherwise the rows unchanged."""
    if not all(_are(row.get("paragraphs"), dict) for row in rows):
        return rows
    paragraphs = [(row.get("title"), part) for row in rows for part in row["paragraphs"]]
    if not all(_are(paragraph.get("qas"), dict) for _, paragraph in paragraphs):
        return rows
    return [
        {"title": title, "context": paragraph.get("context"), **question}
        for title, paragraph in paragraphs
        for question in paragraph["qas"]
    ]


def _are(values: Any, kind: type) -> bool:
    """Whether a value is a non-empty list whose items are all of one type."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, kind) for value in values)
    )


def _objects(values: Sequence[Any], where: str) -> list[dict[str, Any]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(
                f"{where} is not a list of objects with the columns as keys: item {number} is "
                f"{_kind(value)}; {ONE_A_LINE}"
            )
    return list(values)


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def _split(columns: list[Any], data: list[list[Any]], where: str) -> list[dict[str, Any]]:
    for number, row in enumerate(data, start=1):
        if len(row) != len(columns):
            raise UserError(
                f"{where}: row {number} of data has {len(row)} values for {len(columns)} columns"
            )
    names = [str(column) for column in columns]
    require_distinct(names, where)
    return [dict(zip(names, row, strict=True)) for row in data]


def _columns(content: Mapping[str, Mapping[Any, Any]], where: str) -> list[dict[str, Any]]:
    """Rows of an object that maps each column to its values by row.

    All columns need the same rows.
    """
    first, *others = content
    for other in others:
        if content[other].keys() != content[first].keys():
            raise UserError(
                f"{where} holds columns with different rows: {first!r} has {len(content[first]):,} "
                f"values, {other!r} has {len(content[other]):,}; {ONE_A_LINE}"
            )
    return [{column: content[column][row] for column in content} for row in content[first]]


def _nested(content: dict[str, Any], where: str) -> JsonRows:
    """Rows of an object of objects; the keys that are numbers are the rows."""
    outer, inner = (
        all(map(str.isdecimal, content)),
        all(key.isdecimal() for inner_object in content.values() for key in inner_object),
    )
    if inner and not outer:
        return JsonRows(_columns(content, where), 'one column per key (pandas\' orient="columns")')
    if outer and not inner:
        return JsonRows(list(content.values()), 'one row per key (pandas\' orient="index")')
    keys = ", ".join(list(content)[:3])
    raise UserError(
        f"{where} holds objects under the keys {keys}, ..., which may be rows or columns; "
        f"{ONE_A_LINE}, where frame is "
        'pandas.read_json(FILE, orient="index") if the keys are rows, or with orient="columns" if '
        "they are columns"
    )


def _short(error: ValueError) -> str:
    """The message without Python's advice to programmers."""
    return str(error).partition("; use sys.")[0]


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dict; json.loads would silently keep the last value of a repeated key."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"an object has the key {repeated!r} twice; keep one")
    return content


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _DECODER_SPACE:
        position += 1
    return position


def _line(text: str, position: int, path: object) -> str:
    return f"line {text.count(chr(10), 0, position) + 1} of {path}"
