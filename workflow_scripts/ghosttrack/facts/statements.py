"""Statements whose text does not reveal their label, and questions, from the shipped fact tables.

Two facts (A, a) and (B, b) of one relation form a minimal-pair block: "A a" and "B b" are true,
"A b" and "B a" are false. Within a block every subject and every answer occurs once in a true and
once in a false statement. If whole blocks are assigned to folds, neither words nor lengths nor
single subjects separate true from false statements. The block is the `group` of its examples.
"""

import csv
import functools
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.facts import remarks
from ghosttrack.facts.examples import Example, Question, example_table, question_table

if TYPE_CHECKING:
    import pandas as pd

DATA = Path(__file__).parents[1] / "data"

STRICT_SETS = (
    "cities",
    "capitals",
    "capitals_hard",
    "continents",
    "languages",
    "borders_hard",
    "us_cities",
    "element_number",
    "currencies",
)
# Positive controls: their text reveals the label, and an evaluation must detect that.
CONTROL_SETS = ("element_symbol", "translation", "currencies_surface", "larger_than")


class Fact(NamedTuple):
    """One row of a fact table."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]  # other names of the answer
    accepted: tuple[str, ...]  # other correct answers
    excluded_distractors: tuple[str, ...]  # arguably correct: never used as a false answer
    distractors: tuple[str, ...]  # plausible wrong answers; if given, no others are used
    role: str  # "evaluated", or "demonstration": shown in few-shot prompts, never evaluated

    @property
    def gold(self) -> list[str]:
        """Every answer that counts as correct, the usual one first."""
        return [self.answer, *self.aliases, *self.accepted]


class Template(NamedTuple):
    """Wording of a relation: the prompt contains `{subject}`, the reverse prompt `{answer}`."""

    prompt: str
    question: str
    reverse_prompt: str = ""
    reverse_question: str = ""


TEMPLATES = {
    "capital": Template(
        "The capital of {subject} is",
        "What is the capital of {subject}?",
        "{answer} is the capital of",
        "{answer} is the capital of which place?",
    ),
    "largest_city": Template(
        "The largest city of {subject} is", "What is the largest city of {subject}?"
    ),
    "city": Template("{subject} is a city in", "In which country is {subject}?"),
    "us_city": Template(
        "{subject} is located in the state of", "In which state of the United States is {subject}?"
    ),
    "country_continent": Template("{subject} is a country in", "On which continent is {subject}?"),
    "city_continent": Template(
        "The city of {subject} is in", "On which continent is the city of {subject}?"
    ),
    "language": Template(
        "An official language of {subject} is",
        "What is an official language of {subject}?",
        "{answer} is an official language of",
        "{answer} is an official language of which country?",
    ),
    "border": Template(
        "{subject} shares a land border with", "Which country shares a land border with {subject}?"
    ),
    "number": Template(
        "The atomic number of {subject} is",
        "What is the atomic number of {subject}?",
        "The element with atomic number {answer} is",
        "Which element has atomic number {answer}?",
    ),
    "symbol": Template(
        "The chemical symbol of {subject} is",
        "What is the chemical symbol of {subject}?",
        "{answer} is the chemical symbol of",
        "{answer} is the chemical symbol of which element?",
    ),
    "currency": Template("The currency of {subject} is the", "What is the currency of {subject}?"),
    "larger": Template("{subject} is larger than", "Which number is smaller than {subject}?"),
    "translation": Template(
        "The {relation} name of {subject} is", "What is the {relation} name of {subject}?"
    ),
}

# Relations of the generated mode (name -> tables). Chosen by measurement: SmolLM2-135M answers many
# questions of each relation correctly and many incorrectly.
QUESTION_TABLES = {
    "capital": ("capitals", "capitals_hard"),
    "symbol": ("element_symbol",),
    "us_city": ("us_cities",),
    "language": ("languages",),
    "city": ("cities",),
}


def list_tables() -> list[str]:
    """Names of the fact tables: the values of `table` in config/datasets."""
    return [*STRICT_SETS, *CONTROL_SETS]


@functools.cache
def load_table(table: str) -> tuple[Fact, ...]:
    """Rows of a fact table, in file order.

    Raises:
        UserError: there is no such table; names all tables.
    """
    if table not in list_tables():
        raise UserError(
            f"table: there is no fact table {table!r}; choose one of {', '.join(list_tables())}"
        )
    with (DATA / "facts" / f"{table}.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(_fact(row) for row in csv.DictReader(stream))


def _fact(row: dict[str, str]) -> Fact:
    lists = {
        key: tuple(row[key].split("|")) if row[key] else ()
        for key in ("aliases", "accepted", "excluded_distractors", "distractors")
    }
    return Fact(
        relation=row["relation"],
        subject=row["subject"],
        answer=row["answer"],
        role=row["role"],
        **lists,
    )


def build_statements(table: str, seed: int, limit: int | None = None) -> "pd.DataFrame":
    """Labelled statements of a fact table: whole minimal-pair blocks in shuffled order.

    Args:
        table: one of `list_tables()`.
        seed: determines which facts share a block, and the order of the blocks.
        limit: maximum number of statements; blocks are never divided.
    Returns:
        One row per statement, with the fields of `Example` as columns.
    Raises:
        UserError: unknown table, or a limit below the size of one block.
    """
    rng = random.Random(f"{table} {seed}")
    facts = [fact for fact in load_table(table) if fact.role == "evaluated"]
    blocks = (
        _number_blocks(table, facts)
        if table == "larger_than"
        else _minimal_pair_blocks(table, facts, rng)
    )
    rng.shuffle(blocks)
    rows: list[Example] = []
    for block in blocks:
        if limit is not None and len(rows) + len(block) > limit:
            break
        rows.extend(block)
    if not rows:
        raise UserError(
            f"max_examples: {limit} is less than one block of {table} ({len(blocks[0])} "
            "statements); raise it"
        )
    return example_table(rows)


def _minimal_pair_blocks(
    table: str, facts: Sequence[Fact], rng: random.Random
) -> list[list[Example]]:
    pairs = pair_facts(facts, rng, strict=table in STRICT_SETS)
    blocks = []
    for number, (first, second) in enumerate(pairs):
        group = f"{table}-{number:05d}"
        rows = []
        # Two relations of one subject have no reverse form: both reverse statements would end in
        # the same subject.
        for reverse in (False, True) if first.subject != second.subject else (False,):
            for name, subject in (("a", first), ("b", second)):
                if reverse and not template_of(subject).reverse_prompt:
                    continue
                for other, stated in (("a", first), ("b", second)):
                    identity = f"{group}-{'r' if reverse else 'f'}{name}{other}"
                    rows.append(
                        _statement(identity, group, subject, stated, (first, second), reverse)
                    )
        blocks.append(rows)
    return blocks


def pair_facts(
    facts: Sequence[Fact], rng: random.Random, *, strict: bool
) -> list[tuple[Fact, Fact]]:
    """Pairs of facts whose swapped answers are false; each fact is used at most once.

    Facts with few possible partners are paired first, and each gets the partner whose answer is the
    most similar in form. No false statement occurs in two pairs, in either direction.
    """
    free = list(facts)
    rng.shuffle(free)
    free.sort(key=lambda fact: len(fact.distractors) if fact.distractors else len(facts))
    counts = Counter(fact.answer for fact in facts)
    used: set[frozenset[str]] = set()
    pairs = []
    while free:
        first = free.pop(0)
        options = [
            index
            for index, second in enumerate(free)
            if swappable(first, second, strict=strict) and not used & _false_pairs(first, second)
        ]
        if not options:
            continue
        best = min(options, key=lambda index: _difference(first, free[index], counts, strict))
        second = free.pop(best)
        used |= _false_pairs(first, second)
        pairs.append((first, second) if rng.random() < 0.5 else (second, first))
    return pairs


def swappable(first: Fact, second: Fact, *, strict: bool) -> bool:
    """Whether each fact's answer is certainly wrong for the other subject.

    `strict` also requires that no subject looks like the wrong answer (see `look_alike`).
    """
    # Facts of two relations are paired only for one subject whose two answers are distractors.
    if first.relation != second.relation and not (
        first.subject == second.subject and first.distractors and second.distractors
    ):
        return False
    for fact, wrong in ((first, second.answer), (second, first.answer)):
        if wrong in (*fact.gold, *fact.excluded_distractors, fact.subject) or (
            fact.distractors and wrong not in fact.distractors
        ):
            return False
        if strict and look_alike(fact.subject, wrong):
            return False
    return first.subject == second.subject or not set(first.gold) & set(second.gold)


def look_alike(subject: str, answer: str) -> bool:
    """Whether subject and answer have words with the same beginning, such as France and French.

    The label of such a statement could be guessed from its text alone.
    """
    return not _word_starts(subject).isdisjoint(_word_starts(answer))


@functools.cache
def _word_starts(text: str) -> frozenset[str]:
    # Many names contain short words or one of these without being related.
    return frozenset(
        word[:3] for word in re.findall(r"\w{3,}", fold(text)) if word not in ("the", "and", "san")
    )


def fold(text: str) -> str:
    """Lower case without accents."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in plain if not unicodedata.combining(char))


def without_article(name: str) -> str:
    """`the Netherlands` -> `Netherlands`."""
    return re.sub(r"^[Tt]he ", "", name)


def _difference(
    first: Fact, second: Fact, counts: Mapping[str, int], strict: bool
) -> tuple[int, int]:
    """Dissimilarity of two answers: number of words first, then frequency, length and spelling.

    Spelling counts in strict sets only. TF-IDF features of a statement depend on the letter pairs
    that its subject and its answer share, so true and false statements of a block should share the
    same ones.
    """
    words = abs(len(first.answer.split()) - len(second.answer.split()))
    rarity = abs(round(math.log2(counts[first.answer] / counts[second.answer])))
    return words, 4 * rarity + abs(
        len(first.answer) - len(second.answer)
    ) + 2 * strict * spelling_bias(first, second)


def spelling_bias(first: Fact, second: Fact) -> int:
    """Number of shared letter pairs by which true and false statements differ."""
    subjects = _letter_pairs(first.subject), _letter_pairs(second.subject)
    answers = _letter_pairs(first.answer), _letter_pairs(second.answer)
    true = subjects[0] & answers[0], subjects[1] & answers[1]
    false = subjects[0] & answers[1], subjects[1] & answers[0]
    return len((true[0] | true[1]) ^ (false[0] | false[1])) + abs(
        len(true[0] & true[1]) - len(false[0] & false[1])
    )


@functools.cache
def _letter_pairs(text: str) -> frozenset[str]:
    plain = fold(text)
    return frozenset(plain[start : start + 2] for start in range(len(plain) - 1))


def _false_pairs(first: Fact, second: Fact) -> set[frozenset[str]]:
    return {
        frozenset((first.relation, first.subject, second.answer)),
        frozenset((second.relation, second.subject, first.answer)),
    }


def template_of(fact: Fact) -> Template:
    """The template of a fact's relation; in the translation table the relation is the language."""
    return TEMPLATES.get(fact.relation, TEMPLATES["translation"])


def prompt_of(fact: Fact) -> str:
    """The statement without its answer, e.g. `The capital of Chad is`."""
    return _sentence(template_of(fact).prompt.format(relation=fact.relation, subject=fact.subject))


def sentence_of(fact: Fact, *, reverse: bool = False) -> str:
    """The true statement of a fact; with `reverse` the answer comes first and the subject last."""
    if not reverse:
        return f"{prompt_of(fact)} {fact.answer}."
    return (
        f"{_sentence(template_of(fact).reverse_prompt.format(answer=fact.answer))} {fact.subject}."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _statement(
    identity: str, group: str, fact: Fact, stated: Fact, block: tuple[Fact, Fact], reverse: bool
) -> Example:
    """The statement with the subject of `fact` and the answer of `stated`, both of the block.

    With `reverse` it has the answer of `fact` and the subject of `stated`.
    """
    template = template_of(fact)
    rest = block[0] if stated == block[1] else block[1]
    answer, alternative = (one.subject if reverse else one.answer for one in (stated, rest))
    values = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
    prompt = _sentence((template.reverse_prompt if reverse else template.prompt).format(**values))
    question = (template.reverse_question if reverse else template.question).format(**values)
    return _example(
        identity,
        group,
        fact,
        prompt=prompt,
        question=_sentence(question),
        answer=answer,
        label=int(fact != stated),
        gold=[fact.subject] if reverse else fact.gold,
        reverse=reverse,
        other=alternative,
    )


def _example(
    identity: str,
    group: str,
    fact: Fact,
    *,
    prompt: str,
    question: str,
    answer: str,
    label: int,
    gold: list[str],
    reverse: bool = False,
    other: str = "",
) -> Example:
    start = len(prompt) + 1
    return Example(
        id=identity,
        group=group,
        relation=f"{fact.relation}_reverse" if reverse else fact.relation,
        subject=fact.answer if reverse else fact.subject,
        question=question,
        prompt=prompt,
        answer=answer,
        text=f"{prompt} {answer}.",
        answer_start=start,
        answer_end=start + len(answer),
        label=label,
        mode="given",
        gold=gold,
        other=other,
    )


def _number_blocks(table: str, facts: Sequence[Fact]) -> list[list[Example]]:
    """Blocks of "a is larger than b" and "b is larger than a".

    They are not minimal pairs: true statements begin with larger numbers, so their words reveal the
    label.
    """
    blocks = []
    for number, fact in enumerate(facts):
        swapped = fact._replace(subject=fact.answer, answer=fact.subject)
        group = f"{table}-{number:05d}"
        question = template_of(fact).question
        blocks.append(
            [
                _example(
                    f"{group}-{name}",
                    group,
                    pair,
                    prompt=prompt_of(pair),
                    answer=pair.answer,
                    label=label,
                    question=question.format(subject=pair.subject),
                    gold=[fact.answer] if label == 0 else [],
                )
                for name, pair, label in (("true", fact, 0), ("false", swapped, 1))
            ]
        )
    return blocks


def build_questions(seed: int, count: int, wordings: Sequence[str] = ()) -> "pd.DataFrame":
    """Few-shot completion prompts for the generated mode, the same number for every relation.

    A prompt consists of the relation's few-shot demonstrations, one statement per line, and the
    statement to complete. No demonstration is a fact of any evaluated set.

    Args:
        seed: determines the subjects and their order.
        count: number of questions; fewer are returned when the tables are exhausted.
        wordings: of the remarks before the questions (`facts.remarks`); every question is then
            returned twice, after a true and a false remark. Empty: no remarks.
    Returns:
        One row per question, with the fields of `Question` as columns.
    """
    rng = random.Random(f"questions {seed}")
    pools = {relation: _question_pool(relation, rng) for relation in QUESTION_TABLES}
    sizes: dict[str, int] = dict.fromkeys(pools, 0)
    if wordings:
        count = count // 2
    for _ in range(min(count, sum(map(len, pools.values())))):
        smallest = min((r for r in pools if sizes[r] < len(pools[r])), key=sizes.__getitem__)
        sizes[smallest] += 1
    rows = []
    shown = []
    for relation, pool in pools.items():
        shots = "".join(f"{prompt_of(fact)} {fact.answer}.\n" for fact in demonstrations(relation))
        for number, fact in enumerate(pool[: sizes[relation]]):
            rows.append(
                Question(
                    id=f"questions-{relation}-{number:04d}",
                    group=f"{relation}: {fact.subject}",
                    relation=relation,
                    subject=fact.subject,
                    question=question_of(fact),
                    prompt=shots + prompt_of(fact),
                    gold=fact.gold,
                    arguable=fact.excluded_distractors,
                    other=_false_answer(fact, pool, seed) if wordings else "",
                )
            )
            shown.append(shots)
    return question_table(remarks.ask_after_remarks(rows, shown, wordings) if wordings else rows)


def _false_answer(fact: Fact, pool: Sequence[Fact], seed: int) -> str:
    """A random answer that is certainly wrong for the subject."""
    never = {*fact.gold, *fact.excluded_distractors, fact.subject}
    options = fact.distractors or sorted(
        {other.answer for other in pool if not look_alike(fact.subject, other.answer)} - never
    )
    return random.Random(f"remark {seed} {fact.relation} {fact.subject}").choice(options)


def demonstration_turns(relation: str) -> list[str]:
    """Questions and answers of the demonstrations in alternation, as messages of a chat."""
    pairs = ((question_of(fact), fact.answer) for fact in demonstrations(relation))
    return [text for pair in pairs for text in pair]


def question_of(fact: Fact) -> str:
    """The question that the fact answers."""
    return template_of(fact).question.format(subject=fact.subject)


def _question_pool(relation: str, rng: random.Random) -> list[Fact]:
    facts = _facts(relation, "evaluated")
    rng.shuffle(facts)
    return facts


def demonstrations(relation: str) -> list[Fact]:
    """The few-shot demonstrations of a relation, which are never evaluated."""
    return _facts(relation, "demonstration")


def _facts(relation: str, role: str) -> list[Fact]:
    return [
        fact
        for table in QUESTION_TABLES[relation]
        for fact in load_table(table)
        if fact.role == role and fact.relation == relation
    ]


def known_pairs() -> Iterator[tuple[str, str]]:
    """Every subject of all tables with every correct answer, without leading articles."""
    for table in list_tables():
        for fact in load_table(table):
            for answer in fact.gold:
                yield without_article(fact.subject), without_article(answer)
