"""Embedded training text: glosses, and statements about facts that no data set evaluates.

No document names the subject of an evaluated fact together with its answer, so an autoencoder
cannot learn evaluated answers from this text.
"""

import csv
import functools
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from ghosttrack.facts.statements import DATA, fold, known_pairs

# Fraction of documents with one statement, like the evaluated texts; the others have a few
# statements.
SINGLE_SHARE = 0.6
STATEMENTS_PER_DOCUMENT = (2, 5)
SUMS = 1500

Words = tuple[str, ...]
Attributes = dict[str, str]


class PairFinder:
    """Finds texts that name a subject and its answer, by whole words without accents and case."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._answers: dict[Words, set[Words]] = defaultdict(set)
        for subject, answer in pairs:
            self._answers[_words(subject)].add(_words(answer))
        names = {
            *self._answers,
            *(answer for answers in self._answers.values() for answer in answers),
        }
        self._starting: dict[str, list[Words]] = defaultdict(list)
        for name in sorted(names):
            if name:
                self._starting[name[0]].append(name)

    def find(self, text: str) -> tuple[str, str] | None:
        """One (subject, answer) pair that occurs in `text`, or None."""
        words = _words(text)
        names: set[Words] = set()
        for position, word in enumerate(words):
            for name in self._starting.get(word, ()):
                if words[position : position + len(name)] == name:
                    names.add(name)
        if len(names) > 1:
            for name in sorted(names):
                for answer in sorted(self._answers.get(name, ())):
                    if answer in names and answer != name:
                        return " ".join(name), " ".join(answer)
        return None


def _words(text: str) -> Words:
    return tuple(re.findall(r"\w+", fold(text)))


@functools.cache
def pair_finder() -> PairFinder:
    """A finder of the facts of all shipped tables."""
    return PairFinder(known_pairs())


def corpus_documents(seed: int) -> Iterator[str]:
    """WordNet's glosses with their examples, one document per synset, shuffled by `seed`."""
    with lzma.open(DATA / "corpus" / "wordnet.txt.xz", "rt", encoding="utf-8") as stream:
        documents = stream.read().splitlines()
    random.Random(f"corpus {seed}").shuffle(documents)
    yield from documents


def statement_documents(seed: int) -> Iterator[str]:
    """Statements about held-out subjects, shuffled by `seed`: about 200,000 tokens.

    Half of them are true. No document says which.
    """
    rng = random.Random(f"statements {seed}")
    sentences = [sentence for make in _MAKERS for sentence in make(rng)]
    rng.shuffle(sentences)
    finder = pair_finder()
    position = 0
    while position < len(sentences):
        count = 1 if rng.random() < SINGLE_SHARE else rng.randint(*STATEMENTS_PER_DOCUMENT)
        document = " ".join(sentences[position : position + count])
        position += count
        if finder.find(document) is None:
            yield document


def _attributes(name: str) -> list[Attributes]:
    with (DATA / "statements" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _statements(
    rng: random.Random, rows: list[Attributes], key: str, templates: Iterable[str], count: int
) -> Iterator[str]:
    """`count` templates per row; half of the statements take their `key` from a random row."""
    choices = list(templates)
    for row in rows:
        for template in rng.sample(choices, min(count, len(choices))):
            value = row[key] if rng.random() < 0.5 else rng.choice(rows)[key]
            text = template.format(**{**row, key: value})
            yield text[:1].upper() + text[1:]


def _places(rng: random.Random) -> Iterator[str]:
    rows = _attributes("places")
    yield from _statements(
        rng,
        rows,
        "country",
        (
            "{name} is a city in {country}.",
            "{name} is located in {country}.",
            "The city of {name} is in {country}.",
            "One of the cities of {country} is {name}.",
            "In {country} there is a city called {name}.",
            "People who live in {name} live in {country}.",
        ),
        2,
    )
    yield from _statements(
        rng,
        rows,
        "population",
        (
            "The population of {name} is about {population}.",
            "About {population} people live in {name}.",
            "{name} has about {population} inhabitants.",
        ),
        1,
    )
    yield from _statements(
        rng,
        rows,
        "timezone",
        (
            "The time zone of {name} is {timezone}.",
            "Clocks in {name} follow the time zone {timezone}.",
        ),
        1,
    )


def _counties(rng: random.Random) -> Iterator[str]:
    yield from _statements(
        rng,
        _attributes("us_counties"),
        "state",
        (
            "{name} is located in the state of {state}.",
            "{name} is a county in {state}.",
            "The state of {state} has a county named {name}.",
            "{name} belongs to {state}.",
        ),
        2,
    )


def _kinds(rng: random.Random) -> Iterator[str]:
    yield from _statements(
        rng,
        _attributes("kinds"),
        "kind",
        (
            "The word {name} names a kind of {kind}.",
            "A word for a kind of {kind} is {name}.",
            "In English, {name} means a kind of {kind}.",
            "The meaning of {name} is a kind of {kind}.",
        ),
        1,
    )


def _countries(rng: random.Random) -> Iterator[str]:
    rows = _attributes("countries")
    for key, templates in {
        "area": (
            "The area of {name} is {area} square kilometres.",
            "{name} covers {area} square kilometres.",
        ),
        "population": (
            "The population of {name} is about {population}.",
            "About {population} people live in {name}.",
        ),
        "phone": (
            "The telephone code of {name} is {phone}.",
            "To call {name}, dial {phone} first.",
        ),
        "domain": (
            "The internet domain of {name} is {domain}.",
            "Web addresses in {name} end in {domain}.",
        ),
        "code": ("The two-letter code of {name} is {code}.",),
    }.items():
        yield from _statements(rng, rows, key, templates, 2)


def _elements(rng: random.Random) -> Iterator[str]:
    yield from _statements(
        rng,
        _attributes("elements"),
        "mass",
        (
            "The atomic mass of {name} is {mass}.",
            "An atom of {name} has a mass of about {mass} units.",
        ),
        2,
    )


def _sums(rng: random.Random) -> Iterator[str]:
    for _ in range(SUMS):
        one, other = rng.randint(1, 99), rng.randint(1, 99)
        wrong = 0 if rng.random() < 0.5 else rng.choice((-10, -2, -1, 1, 2, 10))
        sign, result = rng.choice((("plus", one + other), ("minus", one - other)))
        yield f"{one} {sign} {other} is {result + wrong}."


_MAKERS: tuple[Callable[[random.Random], Iterator[str]], ...] = (
    _places,
    _counties,
    _kinds,
    _countries,
    _elements,
    _sums,
)
