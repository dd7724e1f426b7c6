"""Labels of generated answers: normalised match against the gold answers, whole words only.

An answer that cannot be called right or wrong by its words is marked so, never guessed.
"""

import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

Words = tuple[str, ...]


class Verdict(StrEnum):
    """What the words of an answer say about it."""

    CORRECT = "correct"
    WRONG = "wrong"
    AMBIGUOUS = "ambiguous"  # right and another answer together, hedged, or the right one denied
    EMPTY = "empty"  # no word at all, or a refusal


# Letters that carry no separable accent: l, d and h with stroke, eth, o with slash, dotless i, thorn, ligatures.
PLAIN_LETTERS = str.maketrans("\u0142\u0111\u0127\u00f0\u00f8\u0131", "ldhdoi") | {
    0xFE: "th",
    0xE6: "ae",
    0x153: "oe",
}
# An apostrophe inside a word is no boundary, however it is written: N'Djamena, Ndjamena, Nuku\u02bbalofa.
APOSTROPHES = "'\u2018\u2019\u02bb\u02bc`\u00b4\u2032"
# Spaces that only ever stand inside a number: no-break, thin, narrow no-break.
DIGIT_SPACES = "\u00a0\u2009\u202f"
ARTICLES = frozenset(("the", "a", "an"))
# Kuwait City is Kuwait: both sides lose the ending.
GENERIC_ENDINGS = frozenset(("city",))
# Points inside these do not end a sentence: St. John's, Washington D.C., U.S. state.
ABBREVIATIONS = frozenset(
    ("st", "mt", "ft", "dr", "mr", "mrs", "ms", "vs", "jr", "sr", "u.s", "u.k", "d.c", "e.g", "i.e")
)
HEDGES = (
    "or",
    "maybe",
    "perhaps",
    "possibly",
    "probably",
    "either",
    "might be",
    "could be",
    "may be",
    "not sure",
    "unsure",
    "i think",
    "i guess",
    "i believe",
    "it depends",
)
DENIALS = ("not", "never", "isnt", "is not", "no longer", "rather than", "instead of", "formerly")
REFUSALS = (
    "unknown",
    "i dont know",
    "i do not know",
    "dont know",
    "do not know",
    "n a",
    "none",
    "not known",
    "cannot say",
    "no idea",
    "unclear",
    "not applicable",
    "no answer",
)
UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: value for value, word in enumerate(UNITS)} | {
    word: 10 * place for place, word in enumerate(TENS, 2)
}
NEGATIVE = ("minus", "negative")
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}


def first_answer(text: str) -> str:
    """The answer at the head of a continuation: up to its first line end or sentence end, without the end mark.

    Leading blank lines are skipped. Points in abbreviations, initials and numbers end no sentence.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for mark in re.finditer(r"[.!?;]+(?=\s|$|[\"')\]])", line):
        before = line[: mark.start()]
        word = re.split(r"[\s,(]", before)[-1].casefold()
        initial = re.fullmatch(r"[a-z](\.[a-z])+", word) is not None or word in ABBREVIATIONS
        if mark.group() == "." and initial and line[mark.end() :].strip():
            continue
        return before.strip()
    return line


def judge(answer: str, gold: Sequence[str], others: Collection[str] = ()) -> Verdict:
    """Mark an answer (already cut by `first_answer`) against the accepted answers.

    Args:
        answer: what the model said.
        gold: every accepted answer, at least one. Matched as whole words after normalisation (see `normalise`).
        others: answers to other questions of the relation; one of them beside a gold answer makes it ambiguous.
            A longer name wins over a shorter one inside it: `Guinea-Bissau` does not say `Guinea`.
    Raises:
        ValueError: no gold answer has a word to match.
    """
    accepted = {words for name in gold if (words := normalise(name))}
    if not accepted:
        raise ValueError("gold: no accepted answer to compare with")
    words = normalise(answer)
    plain = _tokens(answer)
    refused = any(plain[: len(refusal)] == refusal for refusal in map(_phrase, REFUSALS))
    if refused and plain not in {_tokens(name) for name in gold}:
        return Verdict.EMPTY
    if words in accepted:
        return Verdict.CORRECT
    candidates = {found for name in others if (found := normalise(name))} - accepted
    if (
        ARTICLES.issuperset(words)
        and words not in candidates
        and not any(_is_letter(name) for name in accepted)
    ):
        return Verdict.EMPTY
    spans = _longest_spans(words, accepted | candidates)
    right = any(name in accepted for name in spans)
    wrong = any(name in candidates for name in spans)
    if right and (wrong or _holds(plain, DENIALS)):
        return Verdict.AMBIGUOUS
    if _hedged(plain, accepted):
        return Verdict.AMBIGUOUS
    return Verdict.CORRECT if right else Verdict.WRONG


def _is_letter(words: Words) -> bool:
    """Whether an answer is one letter, as of a multiple choice; "A" is then an answer like another."""
    return len(words) == 1 and len(words[0]) == 1 and words[0].isalpha()


def _hedged(plain: Words, accepted: Iterable[Words]) -> bool:
    # A hedge that is part of a gold answer itself is none.
    return any(
        _contains(plain, _phrase(hedge))
        and not any(_contains(name, _phrase(hedge)) for name in accepted)
        for hedge in HEDGES
    )


def _holds(plain: Words, phrases: Iterable[str]) -> bool:
    return any(_contains(plain, _phrase(phrase)) for phrase in phrases)


def _longest_spans(words: Words, names: Collection[Words]) -> list[Words]:
    """Names found in `words`, those inside a longer found name left out."""
    longest = max(map(len, names))
    found = []
    for start in range(len(words)):
        for size in range(min(longest, len(words) - start), 0, -1):
            if words[start : start + size] in names:
                found.append((start, start + size))
                break
    return [
        words[start:end]
        for start, end in found
        if not any(
            other != (start, end) and other[0] <= start and end <= other[1] for other in found
        )
    ]


def _contains(words: Words, phrase: Words) -> bool:
    return any(
        words[start : start + len(phrase)] == phrase
        for start in range(len(words) - len(phrase) + 1)
    )


@functools.lru_cache(maxsize=65_536)
def normalise(text: str) -> Words:
    """Words that are compared: NFKC, lower case, no accents, no punctuation, no articles, numbers as digits.

    `Saint` becomes `st`; `City` at the end of a longer name is dropped (`Kuwait City` = `Kuwait`).
    """
    tokens = _tokens(text)
    # The last word is no article: Vitamin A, Plan A. An answer may be one letter: "A" is a grade.
    words = [word for word in tokens[:-1] if word not in ARTICLES] + list(tokens[-1:])
    words = ["st" if word == "saint" else word for word in words]
    if len(words) > 1 and words[-1] in GENERIC_ENDINGS:
        words.pop()
    return tuple(_digits(words))


def _tokens(text: str) -> Words:
    plain = re.sub(
        rf"(?<=\d)[{DIGIT_SPACES}](?=\d{{3}}(?!\d))", "", text
    )  # 3 500, with a space of its own
    plain = unicodedata.normalize("NFKC", plain).casefold()
    plain = "".join(
        char for char in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(char)
    )
    plain = plain.translate(PLAIN_LETTERS)
    plain = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)  # 1,000
    plain = re.sub(rf"(?<=[^\W\d_])[{APOSTROPHES}](?=[^\W\d_])", "", plain)
    plain = plain.translate(dict.fromkeys(map(ord, APOSTROPHES), " "))
    plain = re.sub(r"\b([a-z])\.(?=[a-z]\b)", r"\1", plain)  # u.s. -> us
    # A minus sign counts only when it stands alone before a number, not as a hyphen: carbon-14.
    # + and # behind a letter are part of the word: C++, C#, A+.
    words = re.findall(r"(?:(?<![\w-])[-\u2212])?\d+(?:\.\d+)?|[^\W\d_]+(?:[+#]+(?!\w))?", plain)
    return tuple(_canonical(word.replace("\u2212", "-")) for word in words)


def _canonical(word: str) -> str:
    """Numbers without zeros that say nothing: 22.0 -> 22, 007 -> 7; other words as they are."""
    found = re.fullmatch(r"(-?)0*(\d+)(?:\.(\d*?)0*)?", word)
    if not found:
        return word
    sign, whole, part = found.groups()
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


@functools.cache
def _phrase(text: str) -> Words:
    return tuple(text.split())


def _digits(words: Sequence[str]) -> list[str]:
    """Replace runs of number words by digits: `one hundred and five` -> `105`, `minus six` -> `-6`."""
    result: list[str] = []
    position = 0
    while position < len(words):
        end, value = _number(words, position)
        if end > position:
            result.append(str(value))
            position = end
        else:
            result.append(words[position])
            position += 1
        if len(result) > 1 and result[-2] in NEGATIVE and result[-1].replace(".", "").isdecimal():
            result[-2:] = [f"-{result[-1]}"]
    return result


def _number(words: Sequence[str], start: int) -> tuple[int, int]:
    """End and value of the number written in words at `start`; the end is `start` when there is none."""
    total, current, position, room = 0, 0, start, 100
    while position < len(words):
        word = words[position]
        if word in NUMBERS and NUMBERS[word] < room:
            current += NUMBERS[word]
            # After twenty only a unit can follow; after a unit or a teen, only a scale.
            room = 10 if NUMBERS[word] >= 20 else 0
        elif word == "hundred" and (
            0 < current < 100 or position == start
        ):  # the article of "a hundred" is gone
            current, room = max(current, 1) * SCALES[word], 100
        elif word in SCALES and word != "hundred" and (current or position == start):
            total, current, room = total + max(current, 1) * SCALES[word], 0, 100
        elif (
            word == "and"
            and room == 100
            and position > start
            and position + 1 < len(words)
            and words[position + 1] in NUMBERS
        ):
            pass
        else:
            break
        position += 1
    return position, total + current
