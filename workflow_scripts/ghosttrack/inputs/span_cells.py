"""Hallucinated spans in a cell, in the forms that public data sets and pandas write.

| content of the cell | spans |
|---|---|
| `[]` | none |
| a list of objects with `start` and `end` (RAGTruth) | one per object; `text` must be the characters |
| such a list with `prob` (soft labels of Mu-SHROOM) | the fraction of annotators is kept |
| a list of pairs `[start, end]` (hard labels of Mu-SHROOM) | one per pair |
| an object with the lists `start` and `end` (data sets of the hub) | one per entry |
| text that begins with `[` or `{` | the list or object, in JSON or as a Python literal |
| the answer with tags (FAVA): `<entity><mark>new</mark><delete>old</delete></entity>` | what the tags hold, without `<mark>`, which is the correction |

Positions are numbers of characters (code points) from the start of the answer; `end` is the one
after the last character.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.facts.spans import Span
from ghosttrack.inputs.cells import Row, cell, shown

EXPECTED = (
    'a list of spans such as [{"start": 3, "end": 9}] or [[3, 9]], [] for none, or the answer with '
    "tags as FAVA writes it"
)
# The error types of FAVA (Mishra et al. 2024). `mark` holds a correction, which is no part of the
# answer; `delete` holds what it replaces.
FAVA_TAGS = ("entity", "relation", "contradictory", "invented", "subjective", "unverifiable")
_TAG = re.compile(rf"</?(?:{'|'.join((*FAVA_TAGS, 'mark', 'delete'))})>")


class _FormError(Exception):
    """A cell has none of the supported forms; the message describes its content."""


def spans_of(row: Row, column: str, answer: str, number: int, name: str) -> list[Span]:
    """The spans in a cell, in order.

    Args:
        row: the row. column: its column with spans.
        answer: the answer as the file has it, with its white space.
        number: number of the row, from 1. name: the file.
    Raises:
        UserError: the cell has none of the supported forms, or a span is outside the answer.
    """
    value = cell(row, column)
    where = f"row {number} of {name}, column {column!r} (spans_column)"
    try:
        found = list(_spans(value, answer))
    except (_FormError, RecursionError) as error:
        detail = str(error) if isinstance(error, _FormError) else "found nested lists"
        raise UserError(f"{where}: {detail}; expected {EXPECTED}") from None
    for place, (span, text) in enumerate(found, start=1):
        if not 0 <= span.start < span.end <= len(answer):
            raise UserError(
                f"{where}: span {place} has the characters {span.start} to {span.end} of an answer "
                f"of {len(answer)} characters; expected 0 <= start < end <= {len(answer)}. Count "
                "characters (not bytes or tokens) from the start of the answer, or remove the span"
            )
        if not 0 <= span.probability <= 1:
            raise UserError(
                f"{where}: span {place} has the probability {span.probability}; expected 0 to 1"
            )
        if text is not None and answer[span.start : span.end] != text:
            raise UserError(
                f"{where}: span {place} has the text {shown(text)}, and the characters "
                f"{span.start} to {span.end} of the answer are "
                f"{shown(answer[span.start : span.end])}. Count characters (not bytes or tokens) "
                "from the start of the answer"
            )
    return [span for span, _ in found]


def _spans(value: Any, answer: str) -> Iterator[tuple[Span, str | None]]:
    """Each span with the text that the cell gives for it."""
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{") and not _is_tagged(value, answer):
            value = _literal(value.strip())
        elif value.strip():
            yield from ((span, None) for span in _tagged(value, answer))
            return
    if isinstance(value, Mapping):
        value = _from_columns(value)
    if not isinstance(value, list):
        raise _FormError("found nothing" if value in (None, "") else f"found {shown(value)}")
    for item in value:
        yield _span(item)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        raise _FormError(f"found {shown(text)}, which is no list") from None


def _from_columns(value: Mapping[str, Any]) -> list[Any]:
    """Objects from an object of lists."""
    if not all(isinstance(value.get(key), list) for key in ("start", "end")):
        raise _FormError(f"found an object with the keys {', '.join(map(str, value))}")
    lists = {key: entries for key, entries in value.items() if isinstance(entries, list)}
    if len(set(map(len, lists.values()))) > 1:
        raise _FormError(f"found lists of different lengths in {shown(dict(value))}")
    return [dict(zip(lists, entries, strict=True)) for entries in zip(*lists.values(), strict=True)]


def _span(item: Any) -> tuple[Span, str | None]:
    if isinstance(item, Mapping):
        if not {"start", "end"} <= set(item):
            raise _FormError(f"found a span without start or end: {shown(dict(item))}")
        # A parquet file has null where an object has no such key.
        given = [item[key] for key in ("prob", "probability") if item.get(key) is not None]
        probability = given[0] if given else 1.0
        text = item.get("text")
        return (
            Span(_position(item["start"]), _position(item["end"]), _probability(probability)),
            text if isinstance(text, str) else None,
        )
    if isinstance(item, list | tuple) and len(item) in (2, 3):
        return Span(_position(item[0]), _position(item[1]), *map(_probability, item[2:])), None
    raise _FormError(f"found {shown(item)} in the list")


def _position(value: Any) -> int:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or (isinstance(value, float) and not value.is_integer()):
        raise _FormError(f"found the position {shown(value)}, which is no whole number")
    return int(value)


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FormError(f"found the probability {shown(value)}, which is no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # an integer that no float can hold


def _tagged(text: str, answer: str) -> Iterator[Span]:
    """Spans of an answer with the tags of FAVA. White space may differ from the answer's."""
    depth = corrections = place = 0
    start = 0
    spans = []
    for part in _parts(text):
        if not _TAG.fullmatch(part):
            if not corrections:
                place = _passed(part, answer, place)
            continue
        opens, tag = not part.startswith("</"), part.strip("</>")
        if tag == "mark":
            corrections += 1 if opens else -1
        else:
            if opens and depth == 0:
                start = place
            depth += 1 if opens else -1
            if depth == 0:
                spans.append((start, place))
        if min(depth, corrections) < 0:
            raise _FormError(f"found {part} without its opening tag")
    if depth or corrections:
        raise _FormError("found a tag that is not closed")
    if answer[place:].strip():
        raise _FormError(
            f"found a text that ends before {shown(answer[place:].strip())} of the answer"
        )
    for first, last in spans:
        trimmed = answer[first:last]
        if trimmed.strip():
            yield Span(first + len(trimmed) - len(trimmed.lstrip()), first + len(trimmed.rstrip()))


def _is_tagged(text: str, answer: str) -> bool:
    """Whether a text is an answer that begins with a bracket, with or without tags."""
    return bool(_TAG.search(text)) or "".join(text.split()) == "".join(answer.split())


def _parts(text: str) -> Iterator[str]:
    """Tags and the texts between them, in order."""
    at = 0
    for match in _TAG.finditer(text):
        yield text[at : match.start()]
        yield match.group()
        at = match.end()
    yield text[at:]


def _passed(part: str, answer: str, place: int) -> int:
    """The place in the answer after a part of the tagged text that begins at `place`."""
    for character in part:
        if character.isspace():
            continue
        while place < len(answer) and answer[place].isspace():
            place += 1
        if place >= len(answer) or answer[place] != character:
            raise _FormError(
                f"found {shown(part)} where the answer has {shown(answer[place : place + 40])}"
            )
        place += 1
    return place
