"""Features of answer tokens that need no activations: the controls of token detectors."""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from ghosttrack.facts.answer_words import MARKS, UNSPACED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Hash buckets of words.
BUCKETS = 2048
# Longest sequence of words that is looked up in the context.
LONGEST_COPY = 8
# Tokens before and after a token, over which a statistic is averaged.
WINDOW = 5
# Edges of bins of the position in the answer, in tokens, and number of bins of relative positions.
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PARTS = 10
# In scripts without spaces between words, every letter is a word. Accents, points and
# vowel signs may follow a letter, as in Hebrew, Arabic and Hindi.
_MARKS = rf"[\u0300-\u036f\u0591-\u05bd\u05c1\u05c2\u064b-\u065f\u0670{MARKS}]"
_WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]{_MARKS}*)+")


class _Words:
    """The words of a text with their character ranges."""

    def __init__(self, text: str) -> None:
        found = list(_WORD.finditer(text))
        self.plain = [unicodedata.normalize("NFC", match.group()) for match in found]
        self.words = [word.casefold() for word in self.plain]
        self.ends = [match.end() for match in found]
        self.starts = [match.start() for match in found]

    def at(self, start: int, end: int) -> int:
        """Index of the first word that the characters start to end - 1 overlap; -1 if none."""
        place = int(np.searchsorted(self.ends, start, side="right"))
        return place if place < len(self.words) and self.starts[place] < end else -1


def position(examples: Ints) -> Floats:
    """Bins of a token's position from the start and from the end, and its relative position.

    Args:
        examples: (rows,) example of each token; the tokens of an example are in order.
    Returns:
        (rows, columns).
    """
    index, size = _places(examples)
    relative = index / np.maximum(size - 1, 1)
    part = np.minimum((relative * PARTS).astype(np.int64), PARTS - 1)
    return np.column_stack(
        [
            np.eye(len(POSITIONS) + 1)[np.searchsorted(POSITIONS, index, side="right")],
            np.eye(len(POSITIONS) + 1)[np.searchsorted(POSITIONS, size - 1 - index, side="right")],
            np.eye(PARTS)[part],
            relative,
            np.log1p(index),
        ]
    )


def length(examples: Ints, answers: Sequence[str]) -> Floats:
    """Logarithms of an answer's tokens, characters and sentences, and their squares."""
    _, size = _places(examples)
    characters = np.array([len(answer) for answer in answers], dtype=np.float64)[examples]
    ends = np.array([len(re.findall(r"[.!?\n]+", answer)) for answer in answers])[examples]
    columns = np.log1p(np.column_stack([size, characters, ends]))
    return np.column_stack([columns, columns**2])


def one_hot(values: Sequence[str]) -> Floats:
    """A column per distinct value."""
    code, names = pd.factorize(np.array(values, dtype=object), sort=True)
    return np.asarray(np.eye(len(names))[code], dtype=np.float64)


def words(
    examples: Ints, tokens: Ints, starts: Ints, ends: Ints, answers: Sequence[str]
) -> sparse.csr_array:
    """Hashed identities of the token, of the tokens beside it, and of the words around it.

    Args:
        examples, tokens: (rows,) example and token id. starts, ends: (rows,) characters.
        answers: of the examples.
    Returns:
        (rows, BUCKETS).
    """
    parsed = [_Words(answer) for answer in answers]
    column: list[int] = []
    pointer = [0]
    for row, (example, token, start, end) in enumerate(
        zip(examples.tolist(), tokens.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ):
        text = parsed[example]
        place = text.at(start, end)
        names = [f"token {token}"]
        names += [
            f"token {step} {tokens[row + step]}"
            for step in (-1, 1)
            if 0 <= row + step < len(tokens) and examples[row + step] == example
        ]
        if place >= 0:
            names += [
                f"word {step} {text.words[place + step]}"
                for step in (-1, 0, 1)
                if 0 <= place + step < len(text.words)
            ]
        column += sorted({zlib.crc32(name.encode()) % BUCKETS for name in names})
        pointer.append(len(column))
    values = np.ones(len(column), dtype=np.float32)
    return sparse.csr_array((values, column, pointer), shape=(len(examples), BUCKETS))


def copy(
    examples: Ints, starts: Ints, ends: Ints, answers: Sequence[str], contexts: Sequence[str]
) -> Floats:
    """How far the words of an answer are copied from its context.

    Columns: whether the token's word is in the context; the length of the longest sequence of words
    around it that is in the context, up to LONGEST_COPY; whether it is a number, or has a capital,
    and is not in the context; whether the token is in a word; the fraction of copied words around.
    """
    columns = np.zeros((len(examples), 6))
    edges = np.searchsorted(examples, np.arange(len(answers) + 1))
    for example, (answer, context) in enumerate(zip(answers, contexts, strict=True)):
        text = _Words(answer)
        longest = _longest_copies(text.words, _Words(context).words)
        known = longest > 0
        around = _averaged(known.astype(np.float64), np.zeros(len(known), dtype=np.int64))
        for row in range(int(edges[example]), int(edges[example + 1])):
            place = text.at(int(starts[row]), int(ends[row]))
            if place < 0:
                continue
            word = text.plain[place]
            columns[row] = (
                known[place],
                longest[place],
                word[0].isdigit() and not known[place],
                word[0].isupper() and not known[place],
                1,
                around[place],
            )
    return columns


def _longest_copies(answer: Sequence[str], context: Sequence[str]) -> Ints:
    """Length of the longest sequence with each word that the context has, (words,)."""
    longest = np.zeros(len(answer), dtype=np.int64)
    for size in range(1, LONGEST_COPY + 1):
        known = {tuple(context[at : at + size]) for at in range(len(context) - size + 1)}
        found = [
            at for at in range(len(answer) - size + 1) if tuple(answer[at : at + size]) in known
        ]
        if not found:
            break
        for at in found:
            longest[at : at + size] = size
    return longest


def with_surroundings(values: Floats, examples: Ints) -> Floats:
    """Statistics of tokens, their squares, and their means over WINDOW tokens on each side.

    Args:
        values: (rows, columns).
    Returns:
        (rows, 3 columns).
    """
    around = np.column_stack([_averaged(column, examples) for column in values.T])
    return np.column_stack([values, np.sign(values) * values**2, around])


def with_means(values: NDArray[Any], examples: Ints) -> NDArray[np.float32]:
    """Columns, and their means over WINDOW tokens on each side, in float32.

    Args:
        values: (rows, columns).
    Returns:
        (rows, 2 columns).
    """
    count = values.shape[1]
    found = np.empty((len(values), 2 * count), dtype=np.float32)
    found[:, :count] = values
    for column in range(count):
        found[:, count + column] = _averaged(values[:, column].astype(np.float64), examples)
    return found


def _averaged(values: Floats, examples: Ints) -> Floats:
    """Mean over up to WINDOW rows on each side in the same example, (rows,)."""
    total, count = np.zeros(len(values)), np.zeros(len(values))
    for step in range(-WINDOW, WINDOW + 1):
        at = np.arange(len(values)) + step
        inside = (at >= 0) & (at < len(values))
        at = at.clip(0, max(len(values) - 1, 0))
        same = inside & (examples[at] == examples)
        total += np.where(same, values[at], 0.0)
        count += same
    return total / np.maximum(count, 1)


def _places(examples: Ints) -> tuple[Floats, Floats]:
    """Index of each token in its answer, and number of the answer's tokens, each (rows,)."""
    sizes = np.bincount(examples)
    first = np.cumsum(sizes) - sizes
    return (
        (np.arange(len(examples)) - first[examples]).astype(np.float64),
        sizes[examples].astype(np.float64),
    )
