"""Words, sentences and windows: they lie within the text, in order, and cover it in any script."""

import time
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghosttrack.inputs.segmentation import Sentence, sentences, windows, words

# Letters, marks, digits, ends of sentences and white space of several scripts, and any character.
SCRIPTS = st.text(
    st.one_of(
        st.sampled_from(
            "aZ\u00e9\u0301\u0308\u00df\u0431\u03a9.!?\u2026,;:'\"\u201c\u201d()[]-\u2013/%\u00b0\u20ac$\u00b23.14\u0966\u096b \u0009\u000a\u000d\u2028\u0928\u092e\u0938\u094d\u0924\u0947\u0964\u0964\u200d\u05e9\u05dc\u05d5\u05dd\u05be\u0644\u061f\u6771\u4eac\u3002\uff01\uff1f\u0e01\u0e47\U0001f469\U0001f467\U0001f1eb\U0001f1f7\U0001f1e9\ufe0f"
        ),
        st.characters(codec="utf-8"),
    ),
    max_size=120,
)
CONTENT = regex.compile(r"[\p{L}\p{N}]")


def graphemes(text: str) -> set[int]:
    return {0, len(text), *(found.start() for found in regex.finditer(r"\X", text))}


def check_spans(text: str, spans: list[tuple[int, int]]) -> None:
    cuts = graphemes(text)
    before = 0
    for start, end in spans:
        assert before <= start < end <= len(text)
        assert {start, end} <= cuts
        before = end
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(found.start() in covered for found in CONTENT.finditer(text))


@given(SCRIPTS)
@example("e\u0301.\u0301 A")
@example("\r\n")
@settings(max_examples=400, deadline=None)
def test_words_are_ordered_whole_graphemes_and_cover_letters_and_digits(text: str) -> None:
    check_spans(text, words(text))
    assert all(text[start:end].strip() for start, end in words(text))


@given(SCRIPTS)
@example("A. \u0301B")
@example("1. A. B.\n\n2. C")
@settings(max_examples=400, deadline=None)
def test_sentences_are_ordered_whole_graphemes_and_cover_letters_and_digits(text: str) -> None:
    found = sentences(text)
    check_spans(text, [(start, end) for start, end, _ in found])
    assert bool(found) == bool(text.strip())
    for sentence, following in pairwise(found):
        assert sentence.end <= sentence.stop <= following.start


@given(SCRIPTS, st.integers(1, 12))
@example(" \u0e31", 1)
@settings(max_examples=400, deadline=None)
def test_windows_cover_every_sentence_and_hold_at_most_the_room(text: str, room: int) -> None:
    """Every UTF-8 byte is a token, as in a byte-level tokenizer at its worst."""
    tokens = [
        (place, place + 1)
        for place, character in enumerate(text)
        for _ in character.encode("utf-8", "surrogatepass")
    ]
    found = windows(text, sentences(text), tokens, room)
    check_spans(text, [(first, last) for _, _, first, last in found])
    for start, stop, first, last in found:
        assert 0 <= start <= first < last <= stop <= len(text)
        count = sum(1 for place, _ in tokens if start <= place < stop)
        assert count <= room or (start, stop) == (first, last)
        if count > room:
            assert len(regex.findall(r"\X", text[start:stop])) == 1


def test_a_window_holds_the_sentences_before_it_that_fit() -> None:
    text = "One two. Three four. Five six seven."
    tokens = [found.span() for found in regex.finditer(r" ?\w+|\.", text)]
    spans = sentences(text)
    assert [text[a:b] for a, b, _, _ in windows(text, spans, tokens, 99)] == [
        "One two.",
        "One two. Three four.",
        text,
    ]
    assert [text[a:b] for a, b, _, _ in windows(text, spans, tokens, 7)] == [
        "One two.",
        "One two. Three four.",
        "Three four. Five six seven.",
    ]
    parts = windows(text, spans, tokens, 2)
    assert [text[first:last] for _, _, first, last in parts] == [
        "One two",
        "Three four",
        "Five six",
        "seven",
    ]


def shown(text: str) -> list[str]:
    return [text[start:end] for start, end, _ in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris is in Chad. Berlin is not.", ["Paris is in Chad", "Berlin is not"]),
        ("Dr. Smith met J. K. Rowling.", ["Dr. Smith met J. K. Rowling"]),
        (
            "He lives in the U.S. The rent is high. See no. 5.",
            ["He lives in the U.S", "The rent is high", "See no. 5"],
        ),
        ("Pi is 3.14. It is not 3", ["Pi is 3.14", "It is not 3"]),
        ("1. Rome is a city.\n2. Oslo is too.", ["1. Rome is a city", "2. Oslo is too"]),
        ("A line that\nis wrapped.\n\nNext one", ["A line that\nis wrapped", "Next one"]),
        ("Title\nRome is a city", ["Title", "Rome is a city"]),
        ("“Rome is in Chad.” So he said!", ["“Rome is in Chad", "So he said"]),
        ("Rome is a city (in Italy).", ["Rome is a city (in Italy)"]),
        ("Is it? Yes... No", ["Is it", "Yes", "No"]),
        ("दिल्ली भारत में है। पेरिस नहीं।", ["दिल्ली भारत में है", "पेरिस नहीं"]),
        ("東京は日本の首都です。京都は違う。", ["東京は日本の首都です", "京都は違う"]),
        ("רומא באיטליה. פריז לא.", ["רומא באיטליה", "פריז לא"]),
        ("هل هذا صحيح؟ نعم.", ["هل هذا صحيح", "نعم"]),
        ("  ", []),
        (" ... ", [" ..."]),
    ],
)
def test_sentences_of_several_scripts(text: str, expected: list[str]) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pi is 3.14, not 1,000.5.", ["Pi", "is", "3.14", "not", "1,000.5"]),
        ("20°C, -5% or €3.50 at 5 km/h", ["20°C", "-5%", "or", "€3.50", "at", "5", "km/h"]),
        ("10 m² at 20 °C", ["10", "m²", "at", "20", "°C"]),
        ("don't use cafe\u0301s", ["don't", "use", "cafe\u0301s"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("東京 3", ["東", "京", "3"]),
        ("👨\u200d👩\u200d👧 ok", ["👨\u200d👩\u200d👧", "ok"]),
    ],
)
def test_words_of_several_scripts(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in words(text)] == expected


def test_the_full_stop_is_no_part_of_the_judged_sentence() -> None:
    assert sentences("Rome is big.” Yes!") == [Sentence(0, 11, 13), Sentence(14, 17, 18)]


@pytest.mark.parametrize("text", ["a" * 50_000 + "." * 50_000, ".) " * 30_000, "A. " * 30_000])
def test_the_time_grows_in_proportion_to_the_text(text: str) -> None:
    def seconds(part: str) -> float:
        start = time.process_time()
        sentences(part)
        words(part)
        return time.process_time() - start

    short, long = seconds(text[: len(text) // 10]), seconds(text)
    assert long < 30 * short + 0.2
