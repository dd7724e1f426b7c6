"""Hallucinated spans of an answer, and the labels of its tokens that follow from them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

# A span counts as hallucinated above this probability, and so does a token: more than half of the
# annotators marked it, as in the scorer of Mu-SHROOM.
HARD = 0.5


class Span(NamedTuple):
    """Characters start to end - 1 of an answer, and the fraction of annotators that marked them."""

    start: int
    end: int
    probability: float = 1.0


def has_hallucination(spans: Iterable[Span]) -> bool:
    """Whether a span counts as hallucinated: the label of the answer."""
    return any(span.probability > HARD for span in spans)


def shifted(spans: Iterable[Span], offset: int, length: int) -> list[Span]:
    """Spans of a text as spans of its part of `length` characters from `offset` on.

    Characters outside the part are cut off, and spans without any other are left out.
    """
    moved = (
        span._replace(start=max(span.start - offset, 0), end=min(span.end - offset, length))
        for span in spans
    )
    return [span for span in moved if span.start < span.end]


def token_probabilities(
    answer: str, spans: Sequence[Span], ranges: Iterable[tuple[int, int]]
) -> list[float]:
    """Largest probability of the spans that each token overlaps; 0 without any.

    White space at the ends of a token does not count, unless the token has nothing else: with
    tokens " Paris" and " fell", a span "Paris " marks the first alone.

    Args:
        answer: the text that the spans refer to.
        spans: may overlap.
        ranges: first character in `answer` of each token, and the one after its last. Tokens that
            are parts of one character have the same range.
    """
    return [
        max(
            (span.probability for span in spans if span.start < last and span.end > first),
            default=0.0,
        )
        for first, last in (_visible(answer, *each) for each in ranges)
    ]


def _visible(answer: str, first: int, last: int) -> tuple[int, int]:
    first, last = max(first, 0), min(last, len(answer))
    text = answer[first:last]
    if not text.strip():
        return first, last
    return first + len(text) - len(text.lstrip()), last - len(text) + len(text.rstrip())
