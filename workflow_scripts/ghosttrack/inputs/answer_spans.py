"""Find an answer in its text: whole words and numbers before parts of them."""

import re
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any
from unicodedata import category

_NUMBER = re.compile(r"(?<![\w.,])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}


def last_span(text: str, answer: str) -> tuple[int, int] | None:
    """Character range of the last occurrence of `answer`; None if there is none.

    An occurrence that is a whole word or number precedes one inside a longer word or number: "3" is
    found in "3 of 13", and "art" in "the art of carts".
    """
    start = last = text.rfind(answer)
    while start >= 0:
        if _is_whole(text, start, start + len(answer)):
            return start, start + len(answer)
        start = text.rfind(answer, 0, start + len(answer) - 1)
    return None if last < 0 else (last, last + len(answer))


def form_in(text: str, answer: Any) -> Any:
    """A number or boolean as its text writes it; other answers, and those not found, unchanged.

    The number 3.0 is "3", "3.0" or "3.00", and 1000 may be "1,000". A text such as "3.0" in a csv
    file counts as a number if the text does not contain it.
    """
    if isinstance(answer, str):
        if answer.strip() in text:
            return answer
        answer_value: Any = _BOOLEANS.get(answer.strip().lower(), answer.strip())
    else:
        answer_value = answer
    if isinstance(answer_value, bool):
        forms = (str(answer_value).lower(), str(answer_value), str(answer_value).upper())
        return next((form for form in forms if form in text), answer)
    if not isinstance(answer_value, str | Real | Decimal) or not (value := _decimal(answer_value)):
        return answer
    numbers = [found[0] for found in _NUMBER.finditer(text)]
    return next((form for form in reversed(numbers) if _decimal(form) == value), answer)


def _decimal(value: Any) -> tuple[Decimal] | None:
    """A finite number, in a tuple because 0 is false; None if it is none."""
    try:
        number = Decimal(str(value).replace(",", ""))
    except InvalidOperation:
        return None
    return (number,) if number.is_finite() else None


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is no part of a longer word or number."""
    before, after = text[max(start - 2, 0) : start], text[end : end + 2]
    first, last = text[start], text[end - 1]
    if before and _in_word(before[-1]) and _in_word(first):
        return False
    if after and (category(after[0])[0] == "M" or (_in_word(last) and _in_word(after[0]))):
        return False
    if first.isdigit() and re.search(r"\d[.,]$", before):
        return False
    return not (last.isdigit() and re.match(r"[.,]\d", after))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or category(character)[0] == "M"
