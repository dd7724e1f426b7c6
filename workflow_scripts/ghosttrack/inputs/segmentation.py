"""Words and sentences of a text in any script, and the windows in which a long text is read.

The package `regex` has Unicode's tables. Words end at its default word boundaries, and sentences
follow Unicode's sentence rules with a list of English abbreviations (Unicode Standard Annex 29).
Spans are character ranges; none of them cuts a grapheme.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import regex

Span = tuple[int, int]

_GRAPHEME = regex.compile(r"\X")
_BOUNDARY = regex.compile(r"(?w)\b")
_CONTENT = regex.compile(r"[\p{L}\p{N}\p{M}\p{S}]")
# A number with its sign, currency or unit sign, and units such as km/h and °C.
_SIGN, _UNIT = r"[%‰°\u2032\u2033\p{Sc}]", r"\p{L}{1,4}[²³]?"
_NUMBER = regex.compile(
    rf"[-+\u2212±]?\p{{Sc}}?\p{{Nd}}+(?:[.,]\p{{Nd}}+)*(?:{_SIGN}+{_UNIT}|{_SIGN}|{_UNIT}/{_UNIT})?"
    rf"|°\p{{L}}|\b\p{{L}}{{1,8}}[²³]|\b{_UNIT}/(?:s|h|min|m[²³]?)\b"
)
# Full stops and the like with closing quotes and the white space behind them, or line ends.
_END = regex.compile(
    r"(?P<term>[\p{SB=STerm}\p{SB=ATerm}]++)(?!\p{M})(?P<close>\p{SB=Close}*+)(?P<space>\s*+)"
    r"|(?P<line>[\n\r\v\f\x85\u2028\u2029]\s*+)"
)
_TERM = regex.compile(r"[\p{SB=STerm}\p{SB=ATerm}]")
_CLOSE = regex.compile(r"\p{SB=Close}")
# Longest abbreviation or list number with what precedes it.
_NEAR = 40
_INITIAL = regex.compile(r"(?:^|[\s(.\p{Pd}])\p{Lu}$")
_WORD_BEFORE = regex.compile(r"[\p{L}\p{M}.]+$")
_ENUMERATION = regex.compile(r"\s*(?:\p{N}{1,3}|\p{L})$")
_WORD_AFTER = regex.compile(r"\p{L}[\p{L}\p{M}]*")
# Never the end of a sentence, and only before one of _STARTERS.
_TITLES = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "mt",
        "gen",
        "col",
        "lt",
        "sgt",
        "capt",
        "sen",
        "rep",
        "gov",
        "rev",
        "hon",
        "messrs",
        "e.g",
        "i.e",
        "cf",
        "vs",
    ]
)
_SHORT = frozenset(
    [
        "etc",
        "inc",
        "ltd",
        "co",
        "corp",
        "jr",
        "sr",
        "ca",
        "approx",
        "no",
        "nos",
        "vol",
        "fig",
        "figs",
        "est",
        "dept",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "ph.d",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
    ]
)
_STARTERS = frozenset(
    [
        "the",
        "a",
        "an",
        "it",
        "its",
        "he",
        "she",
        "they",
        "we",
        "i",
        "you",
        "this",
        "that",
        "these",
        "those",
        "there",
        "his",
        "her",
        "their",
        "in",
        "on",
        "at",
        "but",
        "and",
        "however",
        "if",
        "when",
        "while",
        "as",
        "for",
        "to",
    ]
)


class Sentence(NamedTuple):
    """A sentence: text[start:end] without its full stop, and `stop`, the end of its last mark."""

    start: int
    end: int
    stop: int


class Window(NamedTuple):
    """A part of a text that is read at once: text[start:stop], of which first:last is judged."""

    start: int
    stop: int
    first: int
    last: int


def words(text: str) -> list[Span]:
    """Words and numbers of a text in order, without white space and punctuation.

    A number keeps its decimals, sign, currency and unit sign (3.14, -5%, 20°C); units such as km/h
    are one word. A script without spaces between words has one word per ideograph or syllable.
    """
    cuts = sorted({0, len(text), *(found.start() for found in _BOUNDARY.finditer(text))})
    spans = [(start, end) for start, end in pairwise(cuts) if _CONTENT.search(text, start, end)]
    numbers = [found.span() for found in _NUMBER.finditer(text)]
    return _whole_graphemes(text, _joined(spans, numbers))


def _joined(spans: Sequence[Span], larger: Sequence[Span]) -> list[Span]:
    """Spans of which those that overlap one of `larger` are joined with it."""
    result: list[Span] = []
    for start, end in sorted([*spans, *larger]):
        if result and start < result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _whole_graphemes(text: str, spans: Sequence[Span]) -> list[Span]:
    """The same spans, extended to whole graphemes, without overlaps."""
    if text.isascii() and "\r" not in text:
        return list(spans)
    cuts = [found.start() for found in _GRAPHEME.finditer(text)]
    cuts.append(len(text))
    result: list[Span] = []
    for start, end in spans:
        start = cuts[bisect_right(cuts, start) - 1]
        end = cuts[bisect_left(cuts, end)]
        if result and start < result[-1][1]:
            start = result[-1][1]
        if start < end:
            result.append((start, end))
    return result


def sentences(text: str) -> list[Sentence]:
    """Sentences of a text in order.

    A blank line ends a sentence, and so does a line end, unless a small letter follows. What has no
    letter, digit or symbol is no sentence; if the text has none at all, it is one sentence.
    """
    stops = []
    start = 0
    for found in _END.finditer(text):
        if _ends_sentence(text, start, found):
            start = found.end()
            stops.append((found.end("close") if found["term"] else found.start(), start))
    stops.append((len(text), len(text)))
    result = []
    start = 0
    for stop, after in stops:
        if _CONTENT.search(text, start, stop):
            result.append((start, stop))
        start = after
    whole = _whole_graphemes(text, [_stripped(text, *span) for span in result])
    judged = _whole_graphemes(text, [_without_mark(text, *span) for span in whole])
    if not judged:
        end = len(text.rstrip())
        return [Sentence(0, end, end)] if end else []
    return [
        Sentence(first, last, stop) for (first, last), (_, stop) in zip(judged, whole, strict=True)
    ]


def _stripped(text: str, start: int, stop: int) -> Span:
    part = text[start:stop]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _without_mark(text: str, start: int, stop: int) -> Span:
    """The span without its last full stops and the quotes behind them, if content remains."""
    closed = stop
    while closed > start and _CLOSE.match(text, closed - 1):
        closed -= 1
    end = closed
    while end > start and _TERM.match(text, end - 1):
        end -= 1
    if end == closed or not _CONTENT.search(text, start, end):
        end = stop
    return start, start + len(text[start:end].rstrip())


def _ends_sentence(text: str, start: int, found: regex.Match[str]) -> bool:
    after = text[found.end() : found.end() + 40]
    following = _WORD_AFTER.match(after)
    small = bool(following) and following[0][0].islower()
    if found["line"] is not None:
        return "\n" in found["line"][1:] or not small
    if not after:
        return True
    if "\n" in found["space"].strip(" \t"):
        return not small or found["space"].count("\n") > 1
    if small or regex.match(r"[,;:]", after):
        return False
    term, before = found["term"], text[max(start, found.start() - _NEAR) : found.start()]
    if not found["space"]:
        # "3.14", "example.org", "a?b"; scripts without spaces have marks of their own.
        return not term.isascii()
    if not set(term) <= {".", "\u2024", "\uff0e"} or len(term) > 1:
        return True
    return not _is_abbreviation(before, after, following[0].lower() if following else "")


def _is_abbreviation(before: str, after: str, following: str) -> bool:
    """Whether the full stop between the two belongs to an abbreviation or a list number."""
    if _ENUMERATION.fullmatch(before):
        return True
    found = _WORD_BEFORE.search(before)
    word = found[0].lower().lstrip(".") if found else ""
    if word in _TITLES:
        return True
    if after[:1].isdigit() and word in ("no", "nos", "vol", "fig", "figs", *_TITLES):
        return True
    short = word in _SHORT or bool(_INITIAL.search(before)) or "." in word
    return short and following not in _STARTERS and bool(following)


def windows(
    text: str, spans: Sequence[Sentence], tokens: Sequence[Span], room: int
) -> list[Window]:
    """A window for every sentence: as many sentences before it as fit, up to its last mark.

    A sentence of more than `room` tokens is judged in several parts, cut between words.

    Args:
        spans: sentences in order.
        tokens: character ranges of all tokens of the text, in order.
        room: largest number of tokens of a window.
    """
    starts = [first for first, _ in tokens]
    ends = [last for _, last in tokens]

    def count(first: int, last: int) -> int:
        return bisect_left(starts, last) - bisect_right(ends, first)

    result = []
    for number, sentence in enumerate(spans):
        stop = len(text) if number == len(spans) - 1 else sentence.stop
        stop = stop if count(sentence.start, stop) <= room else sentence.stop
        if count(sentence.start, stop) > room:
            result += [
                Window(first, last, first, last)
                for first, last in _parts(text, sentence, tokens, room)
            ]
            continue
        begin = number
        while begin and count(spans[begin - 1].start, stop) <= room:
            begin -= 1
        start = 0 if not begin and count(0, stop) <= room else spans[begin].start
        result.append(Window(start, stop, sentence.start, sentence.end))
    return result


def _parts(text: str, sentence: Sentence, tokens: Sequence[Span], room: int) -> list[Span]:
    """Parts of a sentence with at most `room` tokens, cut between words where that is possible.

    A grapheme of more than `room` tokens is a part of its own.
    """
    start, end = sentence.start, sentence.end
    starts, ends = [first for first, _ in tokens], [last for _, last in tokens]
    graphemes = [found.start() for found in _GRAPHEME.finditer(text, start, end)]
    between = sorted({start + cut for span in words(text[start:end]) for cut in span})
    result = []
    while start < end:
        at = bisect_right(ends, start) + room
        furthest = end if at >= len(starts) else min(end, starts[at])
        if furthest < end:
            furthest = (
                _last_between(between, start, furthest)
                or _last_between(graphemes, start, furthest)
                or next((cut for cut in graphemes if cut > start), end)
            )
        result.append((start, furthest))
        start = furthest
    parts = [span for span in (_stripped(text, *part) for part in result) if span[0] < span[1]]
    return _whole_graphemes(text, parts)


def _last_between(cuts: Sequence[int], low: int, high: int) -> int:
    """The last cut above `low` and up to `high`; 0 if there is none."""
    at = bisect_right(cuts, high) - 1
    return cuts[at] if at >= 0 and cuts[at] > low else 0
