"""Which SAE features are named as reasons for a score, and what they stand for.

A feature is named if it is sparse and its top contexts have something in common. Other features
count in the score, but a name would mislead.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.runtime import tables
from ghosttrack.runtime.run_paths import RunPaths

# Largest share of held-out tokens on which a named feature is active.
DENSEST = 0.1
# Contexts and promoted tokens that are shown.
CONTEXTS, PROMOTED = 3, 5
_COLUMNS = [
    "feature",
    "density",
    "output_text",
    "context_row",
    "context_document",
    "context_before",
    "context_token",
    "context_after",
]
# Words on each side of a token that are compared, and characters on each side that are shown.
_WORDS, _BEFORE, _AFTER = 8, 60, 40
# The coherence of a named feature exceeds that of this share of random sets of contexts.
_QUANTILE, _DRAWS = 0.99, 200
# Fewest contexts from different documents that can have something in common.
_LEAST = 3
_WORD = re.compile(r"\w+")
# Separators of documents in the decoded text, such as <|endoftext|>.
_SEPARATOR = re.compile(r"<\|[^|>]*\|>|</?s>")


class Meaning(NamedTuple):
    """What a feature stands for.

    contexts: its strongest contexts in different held-out documents, as (before, token, after).
    promotes: tokens whose logits its decoder direction raises most.
    """

    name: str
    contexts: tuple[tuple[str, str, str], ...]
    promotes: tuple[str, ...]


class _Context(NamedTuple):
    """A context: its document, its token in lower case, and the words around it."""

    document: int
    token: str
    words: frozenset[str]


class LayerMeanings:
    """Meanings of the features of one layer, from its table features/layer_LL.parquet.

    Args:
        table: columns as docs/reference/outputs.md describes them.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self._rows = table.set_index("feature")
        self._known: dict[int, Meaning | None] = {}
        self._contexts: dict[int, _Context] = {}
        columns = [table[name] for name in _COLUMNS[3:]]
        for lists in zip(*columns, strict=True):
            for row, document, *window in zip(*lists, strict=True):
                if row not in self._contexts:
                    self._contexts[row] = _context(document, *window)
        seen = self._contexts.values()
        count = max(len(seen), 1)
        self._weight = {
            word: float(np.log(count / found))
            for word, found in Counter(word for each in seen for word in each.words).items()
        }
        self._threshold = self._random_coherence(table)

    def of(self, feature: int) -> Meaning | None:
        """What a feature stands for; None if it is dense or its contexts have nothing in common."""
        if feature not in self._known:
            self._known[feature] = self._meaning(feature)
        return self._known[feature]

    def coherence(self, contexts: Sequence[_Context]) -> float:
        """Mean similarity of two contexts of different documents, 0 to 1; 0 for too few of them.

        It is 1 for contexts of equal tokens, otherwise the cosine between the sets of the words
        around them, weighted by inverse document frequency.
        """
        if len({each.document for each in contexts}) < _LEAST:
            return 0.0
        values = [
            self._similarity(one, other)
            for one, other in combinations(contexts, 2)
            if one.document != other.document
        ]
        return sum(values) / len(values)

    def _meaning(self, feature: int) -> Meaning | None:
        row = self._rows.loc[feature]
        if row["density"] > DENSEST:
            return None
        found = [self._contexts[number] for number in row["context_row"]]
        if self.coherence(found) <= self._threshold:
            return None
        windows = list(
            zip(row["context_before"], row["context_token"], row["context_after"], strict=True)
        )
        first: dict[int, int] = {}  # the strongest context of each document
        for index, each in enumerate(found):
            first.setdefault(each.document, index)
        chosen = list(first.values())
        return Meaning(
            self._name([found[index] for index in chosen], [windows[index] for index in chosen]),
            tuple(
                (_shown(before)[-_BEFORE:].lstrip(), token, _shown(after)[:_AFTER].rstrip())
                for before, token, after in (windows[index] for index in chosen[:CONTEXTS])
            ),
            tuple(text.strip() for text in row["output_text"][:PROMOTED]),
        )

    def _name(self, found: Sequence[_Context], windows: Sequence[tuple[str, str, str]]) -> str:
        """The token that most contexts share, else the words that most of them have around it."""
        token, count = Counter(each.token for each in found).most_common(1)[0]
        if token and 2 * count >= len(found):
            before, written, _ = windows[[each.token for each in found].index(token)]
            inside = not written[:1].isspace() and before[-1:].isalnum() and token[0].isalnum()
            return f"-{written.strip()}" if inside else written.strip()
        around = Counter(word for each in found for word in each.words)
        ranked = sorted(
            (word for word, count in around.items() if count > 1),
            key=lambda word: (-around[word] * self._weight[word], word),
        )
        return f"near {', '.join(ranked[:2])}" if ranked else windows[0][1].strip()

    def _similarity(self, one: _Context, other: _Context) -> float:
        if one.token and one.token == other.token:
            return 1.0
        shared = self._total(one.words & other.words)
        own = math.sqrt(self._total(one.words) * self._total(other.words))
        return shared / max(own, 1e-9)

    def _total(self, words: Iterable[str]) -> float:
        return sum(self._weight[word] for word in words)

    def _random_coherence(self, table: pd.DataFrame) -> float:
        """The _QUANTILE of the coherence of as many contexts as a feature has, drawn at random."""
        numbers, draw = sorted(self._contexts), np.random.default_rng(0)
        size = int(table["context_row"].map(len).max()) if len(table) else 0
        if len(numbers) < 2 or size < _LEAST:
            return 1.0
        drawn = draw.choice(numbers, size=(_DRAWS, size))
        values = [self.coherence([self._contexts[row] for row in rows]) for rows in drawn.tolist()]
        return float(np.quantile(values, _QUANTILE))


class Meanings:
    """Meanings of the features of a run; a layer's table is read when it is first asked for."""

    def __init__(self, run: Path) -> None:
        self._run = RunPaths(run)
        self._layers: dict[int, LayerMeanings] = {}

    def of(self, layer: int, feature: int) -> Meaning | None:
        """What a feature stands for; None if it must not be named."""
        if layer not in self._layers:
            table = tables.read_parquet(self._run.features(layer), columns=_COLUMNS)
            self._layers[layer] = LayerMeanings(table)
        return self._layers[layer].of(feature)


def _shown(text: str) -> str:
    """A window without separators of documents."""
    return _SEPARATOR.sub("", text)


def _context(document: Any, before: str, token: str, after: str) -> _Context:
    words = [
        *(word.lower() for word in _WORD.findall(_shown(before))[-_WORDS:]),
        *(word.lower() for word in _WORD.findall(_shown(after))[:_WORDS]),
    ]
    return _Context(int(document), token.strip().lower(), frozenset(words))
