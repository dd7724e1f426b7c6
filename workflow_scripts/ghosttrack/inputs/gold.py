"""Accepted (gold) answers of a question, in the forms that public data sets and pandas write.

| content of the cell | answers |
|---|---|
| text | the text, or several texts separated by `;` |
| a number or a boolean (in csv and tsv also as text) | `7` for 7 and 7.0, `true`, `false` |
| null, NaN, blanks, an empty list | none |
| a list | its texts, numbers and booleans; nested lists and objects are read by this table |
| text that begins with `[` or `{` | the list or object, in JSON or as a Python literal |
| a JSON string in quotation marks | the string |
| `{text}`, also with positions (SQuAD, Natural Questions) | `text`, which may be a list |
| `{value, aliases, ...}` (TriviaQA) | `value` and `aliases`; `Value` and `Aliases` likewise |
| `{short_answers, yes_no_answer, ...}` (Natural Questions) | their texts, `yes` or `no` |
| `{choices, labels}` (MC1, MC2 of TruthfulQA) | the choices with label 1 |

An HTML entity in a text (`AT&amp;T`) is its character.
Anything else is refused. Text is never executed as Python: `ast.literal_eval` reads literals only.
"""

import ast
import html
import io
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.inputs.cells import MISSING, Row, as_text, cell, shown, text_flaw

EXPECTED = (
    'a text, a number, texts separated by `;`, a list such as ["Paris", "City of Paris"], or an '
    "object with the keys text, value and aliases, short_answers, or choices and labels"
)

# The repr of other Python collections, which are not supported: array([...]), dict(...),
# deque([...]).
_CONSTRUCTOR = re.compile(r"[A-Za-z_.]+\(\s*[\[{(]")
# The parts between semicolons. A semicolon that ends an HTML entity is no separator: AT&amp;T.
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);")
_PARTS = re.compile(rf"(?:{_ENTITY.pattern}|[^;])+")
# The test split of TriviaQA has this token instead of its hidden answers.
_HIDDEN = "<unk>"
# Keys next to `text` that give the position of an answer, and keys next to TriviaQA's `value` and
# `aliases`.
_POSITIONS = frozenset(
    (
        "answerstart",
        "answerend",
        "start",
        "end",
        "starttoken",
        "endtoken",
        "startbyte",
        "endbyte",
        "answerid",
        "id",
    )
)
_TRIVIA = frozenset(
    (
        "normalizedvalue",
        "normalizedaliases",
        "matchedwikientityname",
        "normalizedmatchedwikientityname",
        "humananswers",
        "type",
    )
)
_NATURAL = frozenset(("yesnoanswer", "longanswer", "id"))
_YES_NO = {"1": ["yes"], "0": ["no"], "yes": ["yes"], "no": ["no"], "-1": [], "none": [], "": []}


class UnreadableAnswerError(Exception):
    """A cell has none of the supported forms; the message describes its content."""


def answers_of(row: Row, column: str, number: int, name: str) -> list[str]:
    """Gold answers in a cell, in order and without surrounding white space; [] if there are none.

    Raises:
        UserError: the cell has none of the supported forms; names file, row and column.
    """
    where = f"row {number} of {name}, column {column!r}"
    try:
        answers = gold_answers(
            cell(row, column), separated=Path(name).suffix.lower() in (".csv", ".tsv")
        )
    except UnreadableAnswerError as error:
        raise UserError(f"{where}: {error}; expected {EXPECTED}") from None
    except RecursionError:
        raise UserError(f"{where}: lists or objects nested too deeply; flatten them") from None
    if reason := next((flaw for answer in answers if (flaw := text_flaw(answer))), ""):
        raise UserError(f"{where}: {reason}")
    return answers


def gold_answers(value: Any, *, separated: bool = False) -> list[str]:
    """Gold answers in a value, by the table of this module; [] if there are none.

    Args:
        value: a value from json or parquet, or the text of a csv cell.
        separated: the value is from csv or tsv, where numbers and booleans are text.
    Raises:
        UnreadableAnswerError: the value has none of the supported forms.
    """
    if isinstance(value, str):
        return _of_text(value.strip(), separated)
    if isinstance(value, list):
        return [answer for item in value for answer in _of_item(item)]
    if isinstance(value, Mapping):
        return _of_object(value)
    answer = as_text(value)
    if answer is None:
        raise UnreadableAnswerError(f"found {shown(value)} ({type(value).__name__})")
    return [answer] if answer else []


def _of_text(text: str, separated: bool) -> list[str]:
    """Answers in a cell that holds text."""
    if text in MISSING:  # refused, because it may also be an answer
        raise UnreadableAnswerError(
            f"found {text}, which may be a missing value or an answer; leave the cell empty, or "
            f"write {json.dumps([text])}"
        )
    if text.startswith(("[", "{")):
        return gold_answers(_literal(text))
    if text.startswith('"') and isinstance(content := _json(text), str):
        # A list that was encoded as JSON twice is a string that contains a list.
        return _of_text(content, separated) if content.startswith(("[", "{")) else _texts(content)
    if _CONSTRUCTOR.match(text) or (text.startswith("(") and isinstance(_python(text), tuple)):
        raise UnreadableAnswerError(
            f"found {shown(text)}, the Python form of a collection; write it as a JSON list"
        )
    if separated and (re.fullmatch(r"-?\d+\.0", text) or text in ("True", "False")):
        return [text.removesuffix(".0").lower()]
    return [answer for part in _PARTS.findall(text) for answer in _texts(part)]


def _texts(text: str) -> list[str]:
    """A text with characters in place of HTML entities, which no answer has; [] if it is blank."""
    plain = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text).strip()
    return [plain] if plain else []


def _of_item(item: Any) -> list[str]:
    """Answers in an item of a list; a text is one answer, even if it contains `;`."""
    if not isinstance(item, str):
        return gold_answers(item)
    text = item.strip()
    if text.startswith(("[", "{")) and _holds_text(_json(text) or _python(text)):
        raise UnreadableAnswerError(
            f"found the text {shown(text)} as an item of a list; write it as a list"
        )
    return _texts(text)


def _holds_text(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(isinstance(part, str) or _holds_text(part) for part in inner)


def _literal(text: str) -> Any:
    """The list or object that a text represents in JSON or in Python."""
    for read in (_json, _python):
        if isinstance(value := read(text), list | dict):
            return value
    raise UnreadableAnswerError(
        f"found {shown(text)}, which begins like a list or an object but is neither JSON nor a "
        "Python literal; write a single answer that begins with a bracket as "
        f"{shown(json.dumps([text]))}"
    )


def _json(text: str) -> Any:
    """JSON as Python values; None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python(text: str) -> Any:
    """The value of a Python literal; None if the text is not a literal or may come from numpy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an escape that repr() never writes
            value = ast.literal_eval(text)
        return None if _adjacent_strings(text) else value
    except (
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
        Warning,
        tokenize.TokenError,
    ):
        return None


def _adjacent_strings(text: str) -> bool:
    """Whether strings are adjacent: ['a' 'b'] is two texts in numpy, but one in Python."""
    kinds = [
        token.type
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type != tokenize.NL
    ]
    return any(one == other == tokenize.STRING for one, other in pairwise(kinds))


def _of_object(value: Mapping[Any, Any]) -> list[str]:
    """Answers in an object of a supported form; keys whose value is null are ignored."""
    parts = {_plain(key): part for key, part in value.items() if part is not None}
    if not parts:
        return []
    for needed, allowed, read in _OBJECTS:
        if parts.keys() & needed and parts.keys() <= needed | allowed:
            return read(parts)
    raise UnreadableAnswerError(
        f"found an object with the keys {shown([str(key) for key in value])}"
    )


def _plain(key: Any) -> str:
    return str(key).lower().replace("_", "")


def _of_part(value: Any) -> list[str]:
    """Answers in the value of an object's key; a text is one answer, even if it contains `;`."""
    return _of_item(value) if isinstance(value, str) else gold_answers(value)


def _trivia(parts: Mapping[str, Any]) -> list[str]:
    answers = [*_of_part(parts.get("value")), *_of_part(parts.get("aliases"))]
    return [answer for answer in answers if answer != _HIDDEN]


def _natural(parts: Mapping[str, Any]) -> list[str]:
    answers = _of_part(parts["shortanswers"])
    yes_no = parts.get("yesnoanswer")
    for value in yes_no if isinstance(yes_no, list) else [yes_no]:
        key = str(as_text(value)).lower()
        if key not in _YES_NO:
            raise UnreadableAnswerError(
                f"found yes_no_answer {shown(value)} instead of YES, NO, NONE, 1, 0 or -1"
            )
        answers += _YES_NO[key]
    return answers


def _choices(parts: Mapping[str, Any]) -> list[str]:
    choices, labels = parts.get("choices"), parts.get("labels")
    if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
        raise UnreadableAnswerError(
            "found choices and labels that are not two lists of the same length"
        )
    if wrong := [label for label in labels if label not in (0, 1)]:
        raise UnreadableAnswerError(
            f"found the label {shown(wrong[0])} of a choice instead of 1 (true) or 0"
        )
    return [
        answer
        for choice, label in zip(choices, labels, strict=True)
        if label
        for answer in _of_part(choice)
    ]


_Form = tuple[frozenset[str], frozenset[str], Callable[[Mapping[str, Any]], list[str]]]
# Keys of which one is required, further allowed keys, and the function that reads the object.
_OBJECTS: Sequence[_Form] = (
    (frozenset(("text",)), _POSITIONS, lambda parts: _of_part(parts["text"])),
    (frozenset(("value", "aliases")), _TRIVIA, _trivia),
    (frozenset(("shortanswers",)), _NATURAL, _natural),
    (frozenset(("choices", "labels")), frozenset(), _choices),
)
