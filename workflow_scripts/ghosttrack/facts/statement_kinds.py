"""Training statements of many kinds for the detector that is kept, from the shipped tables.

Every block is a minimal pair as in `facts.statements`, in one wording: all its words occur equally
often in true and in false statements. Blocks of the strict tables have the group of the same two
facts in the strict data sets of the same seed, and one group holds all statements of its facts in
all kinds. So no fold splits a fact, whatever sets are joined.

Some subjects (places, counties, kinds of things, glosses) also occur in the shipped training text
of the autoencoders, which does not say which statements are true.
"""

import csv
import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ghosttrack.errors import UserError
from ghosttrack.facts.examples import Example, example_table
from ghosttrack.facts.fact_text import corpus_documents
from ghosttrack.facts.kind_wordings import (
    COMPARISONS,
    END,
    FRONT,
    MIDDLE,
    WORDINGS,
    Comparison,
    Wording,
)
from ghosttrack.facts.statements import DATA, STRICT_SETS, Fact, load_table, look_alike, pair_facts

if TYPE_CHECKING:
    import pandas as pd

AFFIRMED, NEGATED = "affirmed", "negated"
# Two numbers that differ by less than this factor are not compared, and not exchanged.
CLEAR_FACTOR = 1.5
GLOSSES, LONGEST_GLOSS = 400, 80
# Columns that follow those of `Example`.
KIND_COLUMNS = ("kind", "form", "polarity", "changed_start", "changed_end")

# Relations of names, whose statements are affirmed, reversed, negated and joined.
NAMED = (
    "capital",
    "city",
    "us_city",
    "county",
    "country_continent",
    "city_continent",
    "language",
    "border",
    "currency",
)
# Relations of data/common_facts.yaml.
PLAIN = (
    "young",
    "opposite",
    "made_from",
    "author",
    "painter",
    "composer",
    "originator",
    "landmark",
    "workplace",
    "used_to",
    "next_month",
    "next_day",
    "has_parts",
    "usual_colour",
    "measured_in",
    "studied_by",
    "word_in_spanish",
    "word_in_french",
    "word_in_german",
    "word_in_italian",
)
NUMBERS = ("number", "symbol", "mass", "area", "population", "sum")
# What the facts of a relation are about. The detector is also tested on facts about something else
# than it was fitted on.
SUBJECTS = {
    "states": (
        "capital",
        "country_continent",
        "language",
        "border",
        "currency",
        "area",
        "population",
        "area_compared",
        "population_compared",
        "landmark",
    ),
    "towns": ("city", "us_city", "county", "city_continent", "place_compared"),
    "elements": ("number", "symbol", "mass", "mass_compared"),
    "sums": ("sum",),
    "classes": ("is_a",),
    "glosses": ("gloss",),
    "words": ("opposite", *(name for name in PLAIN if name.startswith("word_in"))),
    "works": ("author", "painter", "composer", "originator"),
    "everyday": (
        "young",
        "made_from",
        "workplace",
        "used_to",
        "next_month",
        "next_day",
        "has_parts",
        "usual_colour",
        "measured_in",
        "studied_by",
    ),
}

Pair = tuple[Fact, Fact]


class Block(NamedTuple):
    """Two facts whose answers can be exchanged, and the group of their statements."""

    group: str
    facts: Pair


class Sentence(NamedTuple):
    """A sentence without its full stop, and the character range of its answer."""

    text: str
    start: int
    end: int


class Statement(NamedTuple):
    """One text of a kind before it gets its identity."""

    group: str
    relation: str
    form: str
    polarity: str
    fact: Fact
    sentence: Sentence
    label: int


def build_kinds(seed: int, texts_per_kind: int = 300) -> "pd.DataFrame":
    """Labelled statements of all kinds, half of them false in every block.

    Args:
        seed: determines blocks, wordings and their order.
        texts_per_kind: maximum number per kind; blocks are never divided. A kind has fewer texts if
            its tables are exhausted.
    Returns:
        One row per statement: the fields of `Example`, then `kind`, `form` (position of the answer:
        end, front, middle; for comparisons more or less), `polarity` (affirmed, negated), and the
        character range `changed_start`, `changed_end` of the answer that is exchanged within the
        block. The judged span is the whole text without its final full stop.
    Raises:
        UserError: fewer texts than one block.
    """
    if texts_per_kind < 4:
        raise UserError(
            f"texts_per_kind: {texts_per_kind} is less than one block of 4 statements; raise it"
        )
    rows, more = [], []
    for kind, make in KINDS.items():
        rng = random.Random(f"{kind} {seed}")
        count = 0
        seen: set[str] = set()
        for block in make(seed, rng):
            texts = {statement.sentence.text for statement in block}
            if count + len(block) > texts_per_kind:
                break
            if len(texts) < len(block) or texts & seen:
                continue
            seen |= texts
            for statement in block:
                rows.append(_example(f"{kind}-{count:05d}", statement))
                more.append(
                    (
                        kind,
                        statement.form,
                        statement.polarity,
                        statement.sentence.start,
                        statement.sentence.end,
                    )
                )
                count += 1
    frame = example_table(rows)
    for name, values in zip(KIND_COLUMNS, zip(*more, strict=True), strict=True):
        frame[name] = values
    return frame


def subject_matter(relations: Iterable[str]) -> list[str]:
    """What the facts of each relation are about, a key of SUBJECTS.

    Raises:
        KeyError: a relation has no subject matter.
    """
    of = {relation: name for name, members in SUBJECTS.items() for relation in members}
    return [of[relation] for relation in relations]


def _example(identity: str, statement: Statement) -> Example:
    sentence = statement.sentence
    return Example(
        id=identity,
        group=statement.group,
        relation=statement.relation,
        subject=statement.fact.subject,
        question="",
        prompt="",
        answer=sentence.text,
        text=f"{sentence.text}.",
        answer_start=0,
        answer_end=len(sentence.text),
        label=statement.label,
        mode="given",
        gold=statement.fact.gold,
    )


def fill(template: str, subject: str, answer: str) -> Sentence:
    """A wording with its subject and answer, with the right articles and a capital letter."""
    template = re.sub(
        r"\b([Aa]) (\{[sa]\})",
        lambda match: (
            f"{match[1]}n {match[2]}"
            if _article(subject if match[2] == "{s}" else answer) == "an"
            else match[0]
        ),
        template,
    )
    before = template[: template.index("{a}")].replace("{s}", subject)
    text = template.replace("{a}", answer, 1).replace("{s}", subject)
    return Sentence(text[:1].upper() + text[1:], len(before), len(before) + len(answer))


def _article(word: str) -> str:
    return "an" if re.match("[aeiou]|hour", word) else "a"


# Blocks of the relations


@functools.lru_cache(maxsize=64)
def blocks_of(relation: str, seed: int) -> tuple[Block, ...]:
    """All minimal-pair blocks of a relation, in the order of their groups."""
    if relation in _MADE_FACTS:
        facts = [
            fact for fact in _MADE_FACTS[relation]() if not look_alike(fact.subject, fact.answer)
        ]
        pairs = pair_facts(facts, random.Random(f"{relation} {seed}"), strict=True)
        named = [(f"kinds_{relation}-{number:05d}", pair) for number, pair in enumerate(pairs)]
    else:
        named = [
            (f"{table}-{number:05d}", pair)
            for table in _tables_of(relation)
            for number, pair in enumerate(_pairs_of_table(table, seed))
            if {fact.relation for fact in pair} == {relation}
        ]
    return tuple(Block(group, pair) for group, pair in named if pair[0].subject != pair[1].subject)


def _tables_of(relation: str) -> list[str]:
    return [
        table
        for table in STRICT_SETS
        if any(fact.relation == relation for fact in load_table(table))
    ]


@functools.lru_cache(maxsize=64)
def _pairs_of_table(table: str, seed: int) -> tuple[Pair, ...]:
    """The same pairs, in the same order, as in `statements.build_statements`."""
    facts = [fact for fact in load_table(table) if fact.role == "evaluated"]
    return tuple(pair_facts(facts, random.Random(f"{table} {seed}"), strict=True))


def _fact(relation: str, subject: str, answer: str, excluded: Sequence[str] = ()) -> Fact:
    return Fact(relation, subject, answer, (), (), tuple(excluded), (), "evaluated")


def _rows(name: str) -> list[dict[str, str]]:
    with (DATA / "statements" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _measured(relation: str, table: str, column: str) -> list[Fact]:
    """Facts with a number; numbers of nearly the same size are never exchanged."""
    # Whole square kilometres below ten are too coarse: Monaco has 2, not 1.
    least = 10 if column == "area" else 0
    rows = [row for row in _rows(table) if _number(row[column]) > least]
    values = sorted({row[column] for row in rows}, key=_number)
    return [
        _fact(
            relation,
            row["name"],
            row[column],
            [other for other in values if _clear(other, row[column]) is None],
        )
        for row in rows
    ]


def _clear(one: str, other: str) -> bool | None:
    """Whether the first number is larger; None if the two are too close."""
    ratio = _number(one) / _number(other)
    return None if 1 / CLEAR_FACTOR < ratio < CLEAR_FACTOR else ratio > 1


def _counties() -> list[Fact]:
    """Only counties by name: a parish is no county, and a city lies beside namesakes elsewhere."""
    return [
        _fact("county", row["name"], row["state"])
        for row in _rows("us_counties")[::4]
        if row["name"].endswith(" County")
    ]


def _symbols() -> list[Fact]:
    return list(load_table("element_symbol"))


def _sums() -> list[Fact]:
    return [
        _fact("sum", f"{one} plus {other}", str(one + other))
        for one in range(2, 21)
        for other in range(2, one + 1)
    ]


@functools.cache
def _common() -> dict[str, Any]:
    text = (DATA / "common_facts.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _definitions() -> list[Fact]:
    """Members of classes; classes that overlap are never exchanged."""
    common = _common()
    return [
        _fact(
            "is_a",
            member if name in common["mass"] else f"{_article(member)} {member}",
            name,
            [other for line in common["overlapping"] if name in line for other in line],
        )
        for name, members in common["classes"].items()
        for member in members
    ]


def _plain(relation: str) -> list[Fact]:
    """Common facts of a relation; a subject with an article excludes what its noun excludes."""
    excluded = _common()["excluded"].get(relation, {})
    return [
        _fact(relation, subject, answer, excluded.get(re.sub("^an? ", "", subject), ()))
        for subject, answer in _common()["facts"][relation].items()
    ]


def _glosses() -> list[Fact]:
    """The most common nouns with one short gloss."""
    documents = list(corpus_documents(seed=0))
    counts = Counter(chain.from_iterable(re.findall(r"[a-z]+", document) for document in documents))
    glosses: dict[str, str] = {}
    for document in sorted(documents):
        found = re.fullmatch(r"([a-z]{3,12}): ((?:a|an|the|any) [a-z ,'-]+)\..*", document)
        if found and len(found[2]) <= LONGEST_GLOSS:
            glosses.setdefault(found[1], found[2])
    common = sorted(glosses, key=lambda word: (-counts[word], word))[:GLOSSES]
    return [_fact("gloss", word, glosses[word]) for word in common]


_MADE_FACTS: dict[str, Callable[[], list[Fact]]] = {
    "county": _counties,
    "symbol": _symbols,
    "mass": functools.partial(_measured, "mass", "elements", "mass"),
    "area": functools.partial(_measured, "area", "countries", "area"),
    "population": functools.partial(_measured, "population", "countries", "population"),
    "sum": _sums,
    "is_a": _definitions,
    "gloss": _glosses,
    **{relation: functools.partial(_plain, relation) for relation in PLAIN},
}


# Kinds


def _four(
    block: Block, form: str, polarity: str, write: Callable[[str, str], Sentence]
) -> list[Statement]:
    """All four statements of a block; `write` makes one from a subject and an answer."""
    return [
        Statement(
            block.group,
            fact.relation,
            form,
            polarity,
            fact,
            write(fact.subject, stated.answer),
            int((fact is stated) == (polarity == NEGATED)),
        )
        for fact, stated in product(block.facts, repeat=2)
    ]


def _shuffled(
    relations: Sequence[str], seed: int, rng: random.Random, count: int | None = None
) -> Iterator[list[Block]]:
    """Blocks of all relations in turn, each at most once; `count` of different relations at a time."""
    pools = []
    for relation in relations:
        pool = list(blocks_of(relation, seed))
        rng.shuffle(pool)
        pools.append(pool)
    while any(pools):
        waiting = [pool for pool in pools if pool]
        rng.shuffle(waiting)
        if count is None:
            yield from ([pool.pop()] for pool in waiting)
        elif len(waiting) < count:
            return
        else:
            yield [pool.pop() for pool in waiting[:count]]


def _wording(relation: str, forms: Sequence[str], rng: random.Random) -> Wording | None:
    options = [wording for wording in WORDINGS[relation] if wording.form in forms]
    return rng.choice(options) if options else None


def _template(wording: Wording, polarity: str) -> str:
    return wording.affirmed if polarity == AFFIRMED else wording.negated


def _single(
    relations: Sequence[str], forms: Sequence[str], polarities: Sequence[str]
) -> Callable[[int, random.Random], Iterator[list[Statement]]]:
    """A kind whose texts are single sentences in one of these forms and polarities."""

    def make(seed: int, rng: random.Random) -> Iterator[list[Statement]]:
        for number, (block,) in enumerate(_shuffled(relations, seed, rng)):
            polarity = polarities[number % len(polarities)]
            wording = _wording(block.facts[0].relation, forms, rng)
            if wording is not None:
                yield _four(
                    block,
                    wording.form,
                    polarity,
                    functools.partial(fill, _template(wording, polarity)),
                )

    return make


def _two_sentences(seed: int, rng: random.Random) -> Iterator[list[Statement]]:
    """A true sentence of another relation before or after a true or false one."""
    yield from _joined(seed, rng, lambda one, other: (f"{one}. {other}", len(one) + 2))


def _conjunctions(seed: int, rng: random.Random) -> Iterator[list[Statement]]:
    """Two clauses of two relations, or of one block in both orders."""
    for number, block in enumerate(_joined(seed, rng, _with_and)):
        yield block
        if number % 2:
            yield from _both(seed, rng, number // 2)


def _with_and(one: str, other: str) -> tuple[str, int]:
    # Names keep their capital letter; wordings that begin with a word of their own lose it.
    first = other.split(" ", 1)[0]
    if first in ("The", "In", "On", "One", "Between", "People", "Whoever", "A"):
        other = other[0].lower() + other[1:]
    return f"{one}, and {other}", len(one) + 6


def _joined(
    seed: int, rng: random.Random, join: Callable[[str, str], tuple[str, int]]
) -> Iterator[list[Statement]]:
    for number, (block, beside) in enumerate(_shuffled(NAMED, seed, rng, 2)):
        polarity = (AFFIRMED, AFFIRMED, NEGATED)[number % 3]
        wording = _wording(block.facts[0].relation, (END, FRONT, MIDDLE), rng)
        other = _wording(beside.facts[0].relation, (END, FRONT, MIDDLE), rng)
        fact = rng.choice(beside.facts)
        if wording is None or other is None:
            continue
        true = fill(other.affirmed, fact.subject, fact.answer).text
        last = bool(number % 2)

        def write(
            subject: str,
            answer: str,
            template: str = _template(wording, polarity),
            true: str = true,
            last: bool = last,
        ) -> Sentence:
            judged = fill(template, subject, answer)
            if last:
                text, shift = join(true, judged.text)
            else:
                text, shift = join(judged.text, true)[0], 0
            return Sentence(text, judged.start + shift, judged.end + shift)

        # The other sentence is the same in all four texts, so it says nothing about their label.
        yield _four(block, wording.form, polarity, write)


def _both(seed: int, rng: random.Random, number: int) -> Iterator[list[Statement]]:
    """Both facts of one block in one sentence: true with their own answers, false exchanged."""
    relation = NAMED[number % len(NAMED)]
    block = rng.choice(blocks_of(relation, seed))
    wording = _wording(relation, (END, FRONT), rng)
    if wording is None:
        return
    statements = []
    for first, second in (block.facts, block.facts[::-1]):
        for one, other, label in ((first, second, 0), (second, first, 1)):
            judged = fill(wording.affirmed, first.subject, one.answer)
            text, _ = _with_and(
                judged.text, fill(wording.affirmed, second.subject, other.answer).text
            )
            statements.append(
                Statement(
                    block.group,
                    relation,
                    wording.form,
                    AFFIRMED,
                    first,
                    Sentence(text, judged.start, judged.end),
                    label,
                )
            )
    yield statements


def _comparisons(polarity: str) -> Callable[[int, random.Random], Iterator[list[Statement]]]:
    def make(seed: int, rng: random.Random) -> Iterator[list[Statement]]:
        pools = {name: _compared(name, seed) for name in COMPARISONS}
        for rows in pools.values():
            rng.shuffle(rows)
        while any(pools.values()):
            for name in [name for name, rows in pools.items() if rows]:
                group, larger, smaller = pools[name].pop()
                yield list(
                    _comparison(
                        f"kinds_{name}_compared-{group:05d}",
                        name,
                        larger,
                        smaller,
                        polarity,
                        rng.choice(COMPARISONS[name]),
                    )
                )

    return make


def _comparison(
    group: str, relation: str, larger: str, smaller: str, polarity: str, wording: Comparison
) -> Iterator[Statement]:
    """Both orders of "more" and of "less": each name and each wording is true once, false once."""
    templates = {
        AFFIRMED: (wording.more, wording.less),
        NEGATED: (wording.not_more, wording.not_less),
    }[polarity]
    for form, template in zip(("more", "less"), templates, strict=True):
        for subject, answer in ((larger, smaller), (smaller, larger)):
            true = (subject == larger) == (form == "more")
            fact = _fact(relation, subject, answer)
            yield Statement(
                group,
                f"{relation}_compared",
                form,
                polarity,
                fact._replace(answer=larger if form == "more" else smaller),
                fill(template, subject, answer),
                int(true == (polarity == NEGATED)),
            )


def _compared(relation: str, seed: int) -> list[tuple[int, str, str]]:
    """Number, larger and smaller name of pairs that clearly differ; every name occurs once.

    A country is compared by area or by population, not by both: its size would show in both.
    """
    table, column = {
        "area": ("countries", "area"),
        "population": ("countries", "population"),
        "mass": ("elements", "mass"),
        "place": ("places", "population"),
    }[relation]
    rows = _rows(table)
    random.Random(f"compared {table} {seed}").shuffle(rows)
    if table == "countries":
        half = len(rows) // 2
        rows = rows[:half] if relation == "area" else rows[half:]
    pairs = []
    for number, (one, other) in enumerate(zip(rows[::2], rows[1::2], strict=False)):
        larger = _clear(one[column], other[column])
        if larger is not None:
            first, second = (one, other) if larger else (other, one)
            pairs.append((number, first["name"], second["name"]))
    return pairs


KINDS: dict[str, Callable[[int, random.Random], Iterator[list[Statement]]]] = {
    "affirmed": _single(NAMED, (END,), (AFFIRMED,)),
    "affirmed_reversed": _single(NAMED, (FRONT,), (AFFIRMED,)),
    "affirmed_middle": _single(NAMED, (MIDDLE,), (AFFIRMED,)),
    "negated": _single(NAMED, (END,), (NEGATED,)),
    "negated_reversed": _single(NAMED, (FRONT,), (NEGATED,)),
    "negated_middle": _single(NAMED, (MIDDLE,), (NEGATED,)),
    "number": _single(NUMBERS, (END, FRONT, MIDDLE), (AFFIRMED,)),
    "number_negated": _single(NUMBERS, (END, FRONT, MIDDLE), (NEGATED,)),
    "definition": _single(("is_a",), (END, FRONT, MIDDLE), (AFFIRMED,)),
    "definition_negated": _single(("is_a",), (END, FRONT, MIDDLE), (NEGATED,)),
    "gloss": _single(("gloss",), (END, FRONT), (AFFIRMED, AFFIRMED, NEGATED)),
    "plain": _single(PLAIN, (END, FRONT, MIDDLE), (AFFIRMED,)),
    "plain_negated": _single(PLAIN, (END, FRONT, MIDDLE), (NEGATED,)),
    "comparison": _comparisons(AFFIRMED),
    "comparison_negated": _comparisons(NEGATED),
    "two_sentences": _two_sentences,
    "conjunction": _conjunctions,
}
