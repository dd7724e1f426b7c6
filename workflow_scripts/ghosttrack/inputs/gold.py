"""Accepted (gold) answers of a question, from every form in which public files and pandas write them.

| the cell holds | the answers are |
|---|---|
| text | the text; several where `;` separates them |
| a number or a boolean | `7` for 7 and 7.0, `true`, `false`; in csv and tsv also where pandas wrote `7.0` or `True` |
| null, NaN, blanks, an empty list | none |
| a list | its texts, numbers and booleans as they stand; lists and objects inside it are read by this table |
| text that begins with `[` or `{` | the list or object, if it is JSON or what Python writes for one |
| a JSON string with its quotation marks | the string |
| `{text, answer_start}` (SQuAD), `{text}`, and the positions of Natural Questions | `text`, one or a list |
| `{value, aliases, ...}` (TriviaQA) | `value` and `aliases`; `Value` and `Aliases` likewise |
| `{short_answers, yes_no_answer, ...}` (Natural Questions) | the texts of `short_answers`, and `yes` or `no` |
| `{choices, labels}` (MC1, MC2 of TruthfulQA) | the choices with label 1 |

Anything else is refused. No text is ever run as Python: `ast.literal_eval` reads literals only.
"""

import ast
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
from ghosttrack.inputs.rows import MISSING, Row, cell, shown, text_flaw, written

EXPECTED = (
    'a text, a number, texts separated by `;`, a list such as ["Paris", "City of Paris"], or an object with the keys text, '
    "value and aliases, short_answers, or choices and labels"
)

# array([...]), dict(...), deque([...]): how Python shows other collections, which this module does not read.
_CONSTRUCTOR = re.compile(r"[A-Za-z_.]+\(\s*[\[{(]")
# What stands between semicolons; the one that ends an HTML entity separates nothing: AT&amp;T.
_PARTS = re.compile(r"(?:&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);|[^;])+")
# The token that the test split of TriviaQA has in place of its hidden answers.
_HIDDEN = "<unk>"
# Keys beside `text` that say where an answer stands, and keys beside TriviaQA's `value` and `aliases`.
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
    """A cell that holds no answers in a form of the table; the message says what was found."""


def answers_of(row: Row, column: str, number: int, name: str) -> list[str]:
    """Gold answers in a cell of a file's row, in order and stripped; [] where the cell holds none.

    Raises:
        UserError: naming file, row and column, what the cell holds and what was expected.
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
    if reason := next((found for answer in answers if (found := text_flaw(answer))), ""):
        raise UserError(f"{where}: {reason}")
    return answers


def gold_answers(value: Any, *, separated: bool = False) -> list[str]:
    """Gold answers in a value, by the table of this module; [] for none.

    Args:
        value: a cell as json or parquet give it, or the text of a csv cell.
        separated: the value is a cell of csv or tsv, where numbers and booleans are text.
    Raises:
        UnreadableAnswerError: the value has none of the forms.
    """
    if isinstance(value, str):
        return _of_text(value.strip(), separated)
    if isinstance(value, list):
        return [answer for item in value for answer in _of_item(item)]
    if isinstance(value, Mapping):
        return _of_object(value)
    answer = written(value)
    if answer is None:
        raise UnreadableAnswerError(f"found {shown(value)} ({type(value).__name__})")
    return [answer] if answer else []


def _of_text(text: str, separated: bool) -> list[str]:
    """Answers in the text of a whole cell."""
    if text in MISSING:  # it might be an answer too, so that such a cell is refused
        raise UnreadableAnswerError(
            f"found {text}, which may be a missing value or an answer; leave the cell empty, or write {json.dumps([text])}"
        )
    if text.startswith(("[", "{")):
        return gold_answers(_literal(text))
    if text.startswith('"') and isinstance(content := _json(text), str):
        # A list that was written as JSON twice is a string that holds a list.
        return _of_text(content, separated) if content.startswith(("[", "{")) else _texts(content)
    if _CONSTRUCTOR.match(text) or (text.startswith("(") and isinstance(_python(text), tuple)):
        raise UnreadableAnswerError(
            f"found {shown(text)}, which Python shows for a collection; write it as a JSON list"
        )
    if separated and (re.fullmatch(r"-?\d+\.0", text) or text in ("True", "False")):
        return [text.removesuffix(".0").lower()]
    return [part for each in _PARTS.findall(text) if (part := each.strip())]


def _texts(text: str) -> list[str]:
    return [text.strip()] if text.strip() else []


def _of_item(item: Any) -> list[str]:
    """Answers in an item of a list: a text is one answer, whatever marks it holds."""
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
    return any(isinstance(each, str) or _holds_text(each) for each in inner)


def _literal(text: str) -> Any:
    """The list or object that a text writes as JSON or as Python."""
    for read in (_json, _python):
        if isinstance(value := read(text), list | dict):
            return value
    raise UnreadableAnswerError(
        f"found {shown(text)}, which begins like a list or an object and is neither JSON nor what Python writes for one; "
        f"a single answer with a bracket is written {shown(json.dumps([text]))}"
    )


def _json(text: str) -> Any:
    """JSON as Python values; None if the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python(text: str) -> Any:
    """A Python literal as values; None if the text is none, or if it may be what numpy writes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an escape that Python's own repr never writes
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
    """Whether two strings stand side by side: ['a' 'b'] is two texts of numpy, and one text in Python."""
    kinds = [
        token.type
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type != tokenize.NL
    ]
    return any(one == other == tokenize.STRING for one, other in pairwise(kinds))


def _of_object(value: Mapping[Any, Any]) -> list[str]:
    """Answers in an object of a known form; keys whose value is null do not count."""
    parts = {_plain(key): each for key, each in value.items() if each is not None}
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
    """Answers in a value of an object's key: a text is one answer, and is not split."""
    return _of_item(value) if isinstance(value, str) else gold_answers(value)


def _trivia(parts: Mapping[str, Any]) -> list[str]:
    answers = [*_of_part(parts.get("value")), *_of_part(parts.get("aliases"))]
    return [answer for answer in answers if answer != _HIDDEN]


def _natural(parts: Mapping[str, Any]) -> list[str]:
    answers = _of_part(parts["shortanswers"])
    said = parts.get("yesnoanswer")
    for each in said if isinstance(said, list) else [said]:
        key = str(written(each)).lower()
        if key not in _YES_NO:
            raise UnreadableAnswerError(
                f"found {shown(each)} as yes_no_answer, where YES, NO, NONE, 1, 0 or -1 stands"
            )
        answers += _YES_NO[key]
    return answers


def _choices(parts: Mapping[str, Any]) -> list[str]:
    choices, labels = parts.get("choices"), parts.get("labels")
    if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
        raise UnreadableAnswerError("found choices and labels that are not two lists of one length")
    if wrong := [label for label in labels if label not in (0, 1)]:
        raise UnreadableAnswerError(
            f"found the label {shown(wrong[0])} of a choice, where 1 (true) or 0 stands"
        )
    return [
        answer
        for choice, label in zip(choices, labels, strict=True)
        if label
        for answer in _of_part(choice)
    ]


_Form = tuple[frozenset[str], frozenset[str], Callable[[Mapping[str, Any]], list[str]]]
# One of these keys, no others than these and those, and what reads them.
_OBJECTS: Sequence[_Form] = (
    (frozenset(("text",)), _POSITIONS, lambda parts: _of_part(parts["text"])),
    (frozenset(("value", "aliases")), _TRIVIA, _trivia),
    (frozenset(("shortanswers",)), _NATURAL, _natural),
    (frozenset(("choices", "labels")), frozenset(), _choices),
)
