"""Labels of generated answers: match with the gold answers by whole, normalised words.

An answer whose words do not decide between correct and wrong is marked ambiguous or empty.
"""

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

from ghosttrack.facts.answer_words import ARTICLES, SHORT_MONTHS, Words, forms, normalise, tokens


class AnswerVerdict(StrEnum):
    """Result of comparing an answer with the gold answers."""

    CORRECT = "correct"
    WRONG = "wrong"
    AMBIGUOUS = "ambiguous"  # hedged, denied, or a correct and another answer together
    EMPTY = "empty"  # no word, or a refusal


# Full stops after these do not end a sentence: St. John's, Washington D.C., U.S. state.
ABBREVIATIONS = frozenset(
    ("st", "mt", "ft", "dr", "mr", "mrs", "ms", "vs", "jr", "sr", "u.s", "u.k", "d.c", "e.g", "i.e")
)
# A full stop after these belongs to the name that follows: Gen. Custer.
TITLES = frozenset(
    ("adm", "capt", "col", "gen", "gov", "hon", "lt", "maj", "prof", "rep", "rev", "sen", "sgt")
)
# And after these to a number: Symphony No. 9, Dec. 7, ca. 1500.
NUMBERED = frozenset(("no", "nos", "op", "vol", "approx", "ca", *SHORT_MONTHS))
# Words that begin a sentence. A name does not go on with one of them: World War I. It began.
STARTERS = frozenset(
    re.findall(
        r"\w+",
        "a an and answer at but he her his how i in is it its on q question she that the their there "
        "these they this we what when where which who why you",
    )
)
# The letter of a choice before its text: A. Paris, (b) Rome, C: Oslo.
_CHOICE = re.compile(r"\W*([A-Za-z])\s*[.:)](?!\w)")
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


def first_answer(text: str, names: Iterable[str] = ()) -> str:
    """The first sentence of the first non-blank line of a continuation, without its end mark.

    The end marks of Chinese, Japanese, Hindi, Arabic and Urdu count, too. Full stops in
    abbreviations, initials and numbers do not end a sentence.

    Args:
        names: answers to the question. A mark inside one of them ends no sentence, if the line has
            it in the same letters: Roe v. Wade, Jeopardy! champion.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for mark in re.finditer(
        r"[.!?;]+(?=\s|$|[\"')\]])|[\u3002\uff01\uff1f\u0964\u061f\u06d4]+", line
    ):
        before = line[: mark.start()]
        if any(_is_inside(mark.start(), name, line) for name in names):
            continue
        if mark.group() == "." and _goes_on(before, line[mark.end() :]):
            continue
        return before.strip()
    return line


def _is_inside(position: int, name: str, line: str) -> bool:
    """Whether the line has the name around the position, with text of the name after it."""
    parts = re.finditer(re.escape(name.strip()), line, re.IGNORECASE)
    return any(part.start() < position < part.end() - 1 for part in parts)


def _goes_on(before: str, after: str) -> bool:
    """Whether the full stop between the two ends no sentence."""
    if not after.strip():
        return False
    word = re.split(r"[\s,(]", before)[-1]
    plain = word.casefold()
    if plain in ABBREVIATIONS or re.fullmatch(r"[a-z](\.[a-z])+", plain):
        return True
    found = re.match(r"\s+(\w+)(\.?)", after)
    following, dot = found.groups() if found else ("", "")
    if plain in NUMBERED:
        return following[:1].isdigit()
    initials = len(following) == 1 and dot == "."
    starts = following.casefold() in STARTERS and not initials
    if not following[:1].isupper() or starts:
        return False
    # The number before the first line of a list: 1. Paris.
    if plain in TITLES or before.strip() == "1":
        return True
    # An initial follows another word of the name, or a name of two words or another initial follows
    # it: George W. Bush, F. Scott Fitzgerald, J. K. Rowling. At the start of an answer, a letter may
    # be the answer: K. Potassium is a metal.
    earlier = before.split()[:-1]
    named = earlier[-1][0].isupper() if earlier else initials or _two_names(after)
    return len(word) == 1 and word.isupper() and named


def _two_names(after: str) -> bool:
    """Whether two capitalised words begin the text, the second of which begins no sentence."""
    found = re.match(r"\s+\w+\s+(\w+)", after)
    return bool(found and found[1][0].isupper() and found[1].casefold() not in STARTERS)


def judge(
    answer: str, gold: Sequence[str], others: Collection[str] = (), arguable: Collection[str] = ()
) -> AnswerVerdict:
    """Compare an answer with the accepted answers.

    Args:
        answer: the result of `first_answer`.
        gold: every accepted answer, at least one. They are matched as whole words after
            normalisation (see `normalise`).
        others: answers to other questions of the relation. An answer with one of them and a gold
            answer is ambiguous. The longest match counts: `Guinea-Bissau` does not contain
            `Guinea`.
        arguable: answers that are neither accepted nor wrong. An answer with one is ambiguous.
    Raises:
        ValueError: no gold answer contains a word.
    """
    accepted = {words for name in gold for words in forms(name)}
    if not accepted:
        raise ValueError("gold: no accepted answer contains a word")
    choice = _CHOICE.match(answer)
    if choice and any(_is_letter(words) and words[0].isascii() for words in accepted):
        answer = choice[1]
    words = normalise(answer)
    plain = tokens(answer)
    refused = any(plain[: len(refusal)] == refusal for refusal in map(_phrase, REFUSALS))
    if refused and plain not in {tokens(name) for name in gold}:
        return AnswerVerdict.EMPTY
    if words in accepted:
        return AnswerVerdict.CORRECT
    candidates = _occurring(others, answer) - accepted
    doubtful = _occurring(arguable, answer) - accepted
    accepted = _occurring(gold, answer)
    lettered = _is_letter(words) and any(_is_letter(name) for name in accepted)
    if ARTICLES.issuperset(words) and words not in candidates and not lettered:
        return AnswerVerdict.EMPTY
    spans = _longest_spans(words, accepted | candidates | doubtful)
    right = any(name in accepted for name in spans)
    wrong = any(name in candidates for name in spans)
    if any(name in doubtful for name in spans):
        return AnswerVerdict.AMBIGUOUS
    if right and (wrong or _holds(plain, DENIALS)):
        return AnswerVerdict.AMBIGUOUS
    if _hedged(plain, accepted):
        return AnswerVerdict.AMBIGUOUS
    return AnswerVerdict.CORRECT if right else AnswerVerdict.WRONG


def is_matchable(name: str) -> bool:
    """Whether a gold answer is judged correct if the model gives it: it has a word, in one line."""
    return (
        bool(normalise(name))
        and judge(first_answer(f" {name}", [name]), [name]) == AnswerVerdict.CORRECT
    )


def _occurring(names: Iterable[str], answer: str) -> set[Words]:
    """The names, normalised, without symbols of two letters that the answer has in no such case.

    The symbol of indium is not in "It is in the table".
    """
    return {
        words
        for name in names
        if not re.fullmatch(r"[A-Z][A-Za-z]", name)
        or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer)
        for words in forms(name)
    }


def _is_letter(words: Words) -> bool:
    """Whether an answer is one letter, as in a multiple-choice question ("A" is no article)."""
    return len(words) == 1 and len(words[0]) == 1 and words[0].isalpha()


def _hedged(plain: Words, accepted: Iterable[Words]) -> bool:
    # Words that belong to a gold answer are not hedges.
    return any(
        _contains(plain, _phrase(hedge))
        and not any(_contains(name, _phrase(hedge)) for name in accepted)
        for hedge in HEDGES
    )


def _holds(plain: Words, phrases: Iterable[str]) -> bool:
    return any(_contains(plain, _phrase(phrase)) for phrase in phrases)


def _longest_spans(words: Words, names: Collection[Words]) -> list[Words]:
    """Names that occur in `words`, without those inside a longer match."""
    longest = max(map(len, names), default=0)
    matches = []
    for start in range(len(words)):
        for size in range(min(longest, len(words) - start), 0, -1):
            if words[start : start + size] in names:
                matches.append((start, start + size))
                break
    return [
        words[start:end]
        for start, end in matches
        if not any(
            other != (start, end) and other[0] <= start and end <= other[1] for other in matches
        )
    ]


def _contains(words: Words, phrase: Words) -> bool:
    return any(
        words[start : start + len(phrase)] == phrase
        for start in range(len(words) - len(phrase) + 1)
    )


@functools.cache
def _phrase(text: str) -> Words:
    return tuple(text.split())
