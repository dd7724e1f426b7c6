"""Labels of tokens from character spans, by known answers."""

import pytest

from ghosttrack.facts.spans import Span, has_hallucination, shifted, token_probabilities


@pytest.mark.parametrize(
    ("answer", "spans", "ranges", "expected"),
    [
        # A span that begins inside a token marks the whole token.
        ("Parisian", [Span(3, 8)], [(0, 5), (5, 8)], [1, 1]),
        ("Parisian", [Span(5, 8)], [(0, 5), (5, 8)], [0, 1]),
        # The space before a word belongs to its token and does not count.
        ("It fell", [Span(0, 3)], [(0, 2), (2, 7)], [1, 0]),
        ("It fell", [Span(2, 4)], [(0, 2), (2, 7)], [0, 1]),
        ("It  fell", [Span(2, 3)], [(0, 2), (2, 3), (3, 8)], [0, 1, 0]),  # a token of white space
        # Overlapping spans: the largest probability.
        ("abcd", [Span(0, 3, 0.4), Span(1, 4, 0.9)], [(0, 1), (1, 2), (3, 4)], [0.4, 0.9, 0.9]),
        ("abcd", [Span(0, 2), Span(1, 3)], [(0, 1), (1, 2), (2, 3), (3, 4)], [1, 1, 1, 0]),
        # A span up to the last character, and one of the last character alone.
        ("abc.", [Span(0, 4)], [(0, 3), (3, 4)], [1, 1]),
        ("abc.", [Span(3, 4)], [(0, 3), (3, 4)], [0, 1]),
        # One character of several bytes in three tokens.
        ("x 🙂!", [Span(2, 3)], [(0, 1), (1, 3), (2, 3), (2, 3), (3, 4)], [0, 1, 1, 1, 0]),
        ("é🙂ü", [Span(1, 2)], [(0, 1), (1, 2), (2, 3)], [0, 1, 0]),
        ("abc", [], [(0, 3)], [0]),
        # Tokens that begin before the answer or end after it.
        ("42", [Span(0, 1)], [(-1, 1), (1, 3)], [1, 0]),
        ("42", [Span(1, 2)], [(-1, 0), (-1, 1), (1, 3)], [0, 0, 1]),
    ],
)
def test_known_spans_give_known_token_labels(
    answer: str, spans: list[Span], ranges: list[tuple[int, int]], expected: list[float]
) -> None:
    assert token_probabilities(answer, spans, ranges) == expected


def test_spans_are_cut_to_the_part_of_the_text_that_they_are_moved_to() -> None:
    spans = [Span(0, 2), Span(1, 4, 0.5), Span(5, 9), Span(8, 9)]
    assert shifted(spans, 2, 5) == [Span(0, 2, 0.5), Span(3, 5)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], False),
        ([Span(0, 1)], True),
        ([Span(0, 1, 0.51)], True),
        ([Span(0, 1, 0.5), Span(0, 1, 0.3)], False),
    ],
)
def test_an_answer_is_hallucinated_if_more_than_half_of_the_annotators_mark_a_span(
    spans: list[Span], expected: bool
) -> None:
    assert has_hallucination(spans) == expected
