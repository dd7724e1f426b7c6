"""The rows of a JSON file, in the forms that people, pandas, datasets and public data sets write.

| the file holds | the rows are |
|---|---|
| a list of objects | the objects |
| objects one after the other, each on one or on several lines | the objects |
| `{"data": [objects], ...}`, also `rows`, `records`, `examples`, `questions`, `items`, `instances` | the objects of that list |
| the same with `paragraphs` and `qas` inside (SQuAD) | the questions, with their title and context |
| `{NAME: [objects]}`, whatever the name | the objects |
| `{"columns": [...], "data": [[...], ...]}` (pandas' orient="split") | the inner lists, named by `columns` |
| `{"text": [...], "label": [...]}`, all lists of one length (`Dataset.to_dict`) | one for each place in the lists |
| `{"text": {"0": ..., "1": ...}, ...}` (pandas' default, orient="columns") | one for each of the inner keys |
| `{"0": {"text": ..., ...}, ...}` (pandas' orient="index") | the inner objects |
| another object | that one object |

Anything else is refused with the way to write it anew.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ghosttrack.errors import UserError

_WRAPPERS = frozenset(("data", "rows", "records", "examples", "questions", "items", "instances"))
ONE_A_LINE = 'write one object a line, with pandas: frame.to_json("NAME.jsonl", orient="records", lines=True)'
_DECODER_SPACE = " \t\n\r"


class Found(NamedTuple):
    """Rows, and the form in which they stand, for the log; "" for a plain list of objects."""

    rows: list[dict[str, Any]]
    form: str


def parsed(text: str, where: str) -> Any:
    """JSON as Python values.

    Raises:
        UserError: it is not JSON, is nested too deeply, or an object has a key twice; the message begins with `where`.
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
    """The JSON values of a text, one after the other; errors as in `parsed`, with the line at which the value begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    found: list[Any] = []
    place = _next(text, 0)
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except RecursionError:
            raise UserError(
                f"{_line(text, place, path)} holds lists or objects nested too deeply; flatten it"
            ) from None
        except _RepeatedKeyError as error:
            raise UserError(f"{_line(text, place, path)}: {error}") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{_line(text, error.pos, path)} is not JSON: {error.msg}") from None
        except ValueError as error:
            raise UserError(f"{_line(text, place, path)} is not JSON: {_short(error)}") from None
        found.append(value)
        place = _next(text, end)
    return found


def rows_in(values: Sequence[Any], where: str) -> Found:
    """The rows of a file's JSON values, by the table of this module; a UserError begins with `where`."""
    if len(values) != 1:
        return Found(_objects(values, where), "")
    (content,) = values
    if isinstance(content, list):
        return Found(_objects(content, where), "")
    if not isinstance(content, dict):
        raise UserError(
            f"{where} holds {_kind(content)}, not a list of objects with the columns as keys"
        )
    return _in_object(content, where)


def _in_object(content: dict[str, Any], where: str) -> Found:
    columns, data = content.get("columns"), content.get("data")
    if (
        isinstance(columns, list)
        and isinstance(data, list)
        and all(isinstance(row, list) for row in data)
    ):
        return Found(
            _split(columns, data, where),
            'lists named by "columns", as pandas\' orient="split" writes them',
        )
    inside = list(content.values())
    lists = [key for key in content if _are(content[key], dict)]
    named = [key for key in lists if key.lower() in _WRAPPERS or len(content) == 1]
    if len(named) == 1:
        return Found(_questions(content[named[0]]), f"the list under the key {named[0]!r}")
    if named or (lists and len(lists) == len(content)):
        raise UserError(
            f"{where} holds lists of objects under the keys {', '.join(named or lists)}; write one of them alone to a file"
        )
    if _are(inside, list):
        return Found(
            _columns({key: dict(enumerate(each)) for key, each in content.items()}, where),
            "a list a column",
        )
    if _are(inside, dict):
        return _nested(content, where)
    return Found([content] if content else [], "")


def _questions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions of SQuAD's articles, each with the title and the context that it stands under; else the rows."""
    if not all(_are(row.get("paragraphs"), dict) for row in rows):
        return rows
    paragraphs = [(row.get("title"), each) for row in rows for each in row["paragraphs"]]
    if not all(_are(each.get("qas"), dict) for _, each in paragraphs):
        return rows
    return [
        {"title": title, "context": each.get("context"), **question}
        for title, each in paragraphs
        for question in each["qas"]
    ]


def _are(values: Any, kind: type) -> bool:
    """Whether a value is a list that holds something, all of it of one kind."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, kind) for value in values)
    )


def _objects(values: Sequence[Any], where: str) -> list[dict[str, Any]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(
                f"{where} is not a list of objects with the columns as keys: item {number} is {_kind(value)}; {ONE_A_LINE}"
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
    if len(set(names)) < len(names):
        raise UserError(f"{where} has two columns of one name: {', '.join(names)}")
    return [dict(zip(names, row, strict=True)) for row in data]


def _columns(content: Mapping[str, Mapping[Any, Any]], where: str) -> list[dict[str, Any]]:
    """Rows of an object of columns, each an object or a numbered list with the same keys."""
    first, *others = content
    for other in others:
        if content[other].keys() != content[first].keys():
            raise UserError(
                f"{where} holds a column a key, and not the same rows in each: {first!r} has {len(content[first]):,} "
                f"values, {other!r} has {len(content[other]):,}; {ONE_A_LINE}"
            )
    return [{column: content[column][row] for column in content} for row in content[first]]


def _nested(content: dict[str, Any], where: str) -> Found:
    """Rows of an object of objects, where numbers as keys tell the rows from the columns."""
    outer, inner = (
        all(map(str.isdecimal, content)),
        all(key.isdecimal() for each in content.values() for key in each),
    )
    if inner and not outer:
        return Found(
            _columns(content, where), 'a column a key, as pandas\' orient="columns" writes it'
        )
    if outer and not inner:
        return Found(list(content.values()), 'a row a key, as pandas\' orient="index" writes it')
    keys = ", ".join(list(content)[:3])
    raise UserError(
        f"{where} holds objects by the keys {keys}, ..., which may be rows or columns; {ONE_A_LINE}, where frame is "
        'pandas.read_json(FILE, orient="index") if the keys name rows, and orient="columns" if they name columns'
    )


def _short(error: ValueError) -> str:
    """What is wrong, without Python's advice to its programmer."""
    return str(error).partition("; use sys.")[0]


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys; Python itself keeps the last value of such a key without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"an object has the key {twice!r} twice; keep one")
    return found


def _next(text: str, place: int) -> int:
    while place < len(text) and text[place] in _DECODER_SPACE:
        place += 1
    return place


def _line(text: str, place: int, path: object) -> str:
    return f"line {text.count(chr(10), 0, place) + 1} of {path}"
