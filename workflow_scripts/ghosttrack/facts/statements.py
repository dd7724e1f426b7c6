"""Statements whose text does not give their label away, and questions, from the shipped fact tables.

Two facts (A, a) and (B, b) of one relation make a swap block: "A a" and "B b" are true, "A b" and
"B a" are false. Every subject and every answer stands once in a true and once in a false statement of
the block, so no split by blocks lets words, lengths or single subjects tell true from false. The block
is the group of the examples.
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
# Their text tells true from false: an evaluation must catch them.
CONTROL_SETS = ("element_symbol", "translation", "currencies_surface", "larger_than")

COLUMNS = (
    "id",
    "group",
    "relation",
    "subject",
    "question",
    "prompt",
    "answer",
    "text",
    "answer_start",
    "answer_end",
    "label",
    "mode",
    "gold",
)
QUESTION_COLUMNS = ("id", "group", "relation", "subject", "question", "prompt", "gold")


class Fact(NamedTuple):
    """One row of a fact table."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]  # other names of the answer
    accepted: tuple[str, ...]  # other right answers
    avoid: tuple[str, ...]  # arguably right: never used as a false answer
    near: tuple[
        str, ...
    ]  # wrong answers close to the truth; if given, only these are used as false ones
    role: str  # "evaluated", or "solved": a worked example of the few-shot prompts, in no evaluated set

    @property
    def gold(self) -> list[str]:
        """Every answer that counts as right, the usual one first."""
        return [self.answer, *self.aliases, *self.accepted]


class Template(NamedTuple):
    """How a relation reads: `{subject}` or, turned round, `{answer}` stands in the prompt; the rest completes it."""

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

# Relations of the generated mode (name -> tables). Chosen by measurement: with SmolLM2-135M and these
# prompts each has plenty of right and of wrong answers.
QUESTION_TABLES = {
    "capital": ("capitals", "capitals_hard"),
    "symbol": ("element_symbol",),
    "us_city": ("us_cities",),
    "language": ("languages",),
    "city": ("cities",),
}


def list_tables() -> list[str]:
    """Names of the fact tables: the choices of `table` in config/datasets."""
    return [*STRICT_SETS, *CONTROL_SETS]


@functools.cache
def load_table(table: str) -> tuple[Fact, ...]:
    """Rows of a fact table, in file order; an unknown name raises a UserError with the choices."""
    if table not in list_tables():
        raise UserError(
            f"table: {table!r} is no fact table; choose one of {', '.join(list_tables())}"
        )
    with (DATA / "facts" / f"{table}.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(_fact(row) for row in csv.DictReader(stream))


def _fact(row: dict[str, str]) -> Fact:
    several = {
        key: tuple(row[key].split("|")) if row[key] else ()
        for key in ("aliases", "accepted", "avoid", "near")
    }
    return Fact(
        relation=row["relation"],
        subject=row["subject"],
        answer=row["answer"],
        role=row["role"],
        **several,
    )


def build_statements(table: str, seed: int, limit: int | None = None) -> "pd.DataFrame":
    """Labelled statements of a fact table: the rows of examples.parquet, whole swap blocks in shuffled order.

    Args:
        table: one of `list_tables()`.
        seed: decides which facts share a block, and the order.
        limit: at most so many statements; whole blocks are kept.
    Raises:
        UserError: unknown table, or a limit below the size of one block.
    """
    import pandas as pd

    rng = random.Random(f"{table} {seed}")
    facts = [fact for fact in load_table(table) if fact.role == "evaluated"]
    blocks = (
        _number_pairs(table, facts) if table == "larger_than" else _swap_blocks(table, facts, rng)
    )
    rng.shuffle(blocks)
    rows: list[dict[str, object]] = []
    for block in blocks:
        if limit is not None and len(rows) + len(block) > limit:
            break
        rows.extend(block)
    if not rows:
        raise UserError(
            f"max_examples: {limit} is less than one block of {table} ({len(blocks[0])} statements)"
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"answer_start": "int64", "answer_end": "int64", "label": "int64"})


def _swap_blocks(
    table: str, facts: Sequence[Fact], rng: random.Random
) -> list[list[dict[str, object]]]:
    pairs = pair_facts(facts, rng, strict=table in STRICT_SETS)
    blocks = []
    for number, (first, second) in enumerate(pairs):
        group = f"{table}-{number:05d}"
        rows = []
        # A block of two relations of one subject cannot be turned round: both ways end in the same answer.
        for reverse in (False, True) if first.subject != second.subject else (False,):
            for name, subject in (("a", first), ("b", second)):
                if reverse and not template_of(subject).reverse_prompt:
                    continue
                for other, answer in (("a", first), ("b", second)):
                    suffix = f"{'r' if reverse else 'f'}{name}{other}"
                    rows.append(_example(f"{group}-{suffix}", group, subject, answer, reverse))
        blocks.append(rows)
    return blocks


def pair_facts(
    facts: Sequence[Fact], rng: random.Random, *, strict: bool
) -> list[tuple[Fact, Fact]]:
    """Pairs whose swapped answers are false, each fact at most once, answers of equal shape where possible.

    Facts with few possible partners choose first. No two pairs share a proposition, in either direction.
    """
    free = list(facts)
    rng.shuffle(free)
    free.sort(key=lambda fact: len(fact.near) if fact.near else len(facts))
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
    """Whether each fact's answer is certainly wrong for the other; `strict` also asks for no shared words."""
    # Two relations meet only in one subject, and only where the table says that the answers compete.
    if first.relation != second.relation and not (
        first.subject == second.subject and first.near and second.near
    ):
        return False
    for fact, wrong in ((first, second.answer), (second, first.answer)):
        if wrong in (*fact.gold, *fact.avoid, fact.subject) or (
            fact.near and wrong not in fact.near
        ):
            return False
        if strict and look_alike(fact.subject, wrong):
            return False
    return first.subject == second.subject or not set(first.gold) & set(second.gold)


def look_alike(subject: str, answer: str) -> bool:
    """Whether a word of the answer starts as a word of the subject does (France, French): readable off the text."""
    return not _word_starts(subject).isdisjoint(_word_starts(answer))


@functools.cache
def _word_starts(text: str) -> frozenset[str]:
    # Short words and these start many names without making them alike.
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
    """How unlike two answers are in words, then in rarity, length and spelling.

    Spelling matters in strict sets only: TF-IDF sees letters that subject and answer share, through its norm
    and its counts, so the true and the false statements of a block should share the same ones.
    """
    words = abs(len(first.answer.split()) - len(second.answer.split()))
    rarity = abs(round(math.log2(counts[first.answer] / counts[second.answer])))
    return words, 4 * rarity + abs(
        len(first.answer) - len(second.answer)
    ) + 2 * strict * _spelling_bias(first, second)


def _spelling_bias(first: Fact, second: Fact) -> int:
    """Letter pairs common to subject and answer in the true statements but not in the false ones, or the reverse."""
    one, other = _letter_pairs(first.subject), _letter_pairs(second.subject)
    its, others = _letter_pairs(first.answer), _letter_pairs(second.answer)
    true, false = (one & its, other & others), (one & others, other & its)
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
    """The wording of a fact; in the translation table the relation is the language."""
    return TEMPLATES.get(fact.relation, TEMPLATES["translation"])


def prompt_of(fact: Fact) -> str:
    """The statement up to its answer, e.g. `The capital of Chad is`."""
    return _sentence(template_of(fact).prompt.format(relation=fact.relation, subject=fact.subject))


def sentence_of(fact: Fact, *, reverse: bool = False) -> str:
    """The true statement of a fact; turned round, its answer comes first and its subject last."""
    if not reverse:
        return f"{prompt_of(fact)} {fact.answer}."
    return (
        f"{_sentence(template_of(fact).reverse_prompt.format(answer=fact.answer))} {fact.subject}."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _example(
    identity: str, group: str, fact: Fact, other: Fact, reverse: bool
) -> dict[str, object]:
    """The statement that joins `fact`'s subject with `other`'s answer or, turned round, `fact`'s answer with `other`'s subject."""
    template = template_of(fact)
    answer = other.subject if reverse else other.answer
    given = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
    prompt = _sentence((template.reverse_prompt if reverse else template.prompt).format(**given))
    question = (template.reverse_question if reverse else template.question).format(**given)
    return _row(
        identity,
        group,
        fact,
        prompt=prompt,
        question=_sentence(question),
        answer=answer,
        label=int(fact != other),
        gold=[fact.subject] if reverse else fact.gold,
        reverse=reverse,
    )


def _row(
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
) -> dict[str, object]:
    start = len(prompt) + 1
    return {
        "id": identity,
        "group": group,
        "relation": f"{fact.relation}_reverse" if reverse else fact.relation,
        "subject": fact.answer if reverse else fact.subject,
        "question": question,
        "prompt": prompt,
        "answer": answer,
        "text": f"{prompt} {answer}.",
        "answer_start": start,
        "answer_end": start + len(answer),
        "label": label,
        "mode": "given",
        "gold": gold,
    }


def _number_pairs(table: str, facts: Sequence[Fact]) -> list[list[dict[str, object]]]:
    # Not a swap block: large numbers come first in true statements, and the words say so.
    blocks = []
    for number, fact in enumerate(facts):
        turned = fact._replace(subject=fact.answer, answer=fact.subject)
        group = f"{table}-{number:05d}"
        question = template_of(fact).question
        blocks.append(
            [
                _row(
                    f"{group}-{name}",
                    group,
                    each,
                    prompt=prompt_of(each),
                    answer=each.answer,
                    label=label,
                    question=question.format(subject=each.subject),
                    gold=[fact.answer] if label == 0 else [],
                )
                for name, each, label in (("true", fact, 0), ("false", turned, 1))
            ]
        )
    return blocks


def build_questions(seed: int, count: int) -> "pd.DataFrame":
    """Few-shot completion prompts for the generated mode: the rows of questions.parquet, relations evenly spread.

    A prompt is the relation's solved examples, one statement a line, then the statement to complete.
    No solved example is a fact of any evaluated set.

    Args:
        seed: chooses and orders the subjects.
        count: questions wanted; fewer come when the tables are exhausted.
    """
    import pandas as pd

    rng = random.Random(f"questions {seed}")
    pools = {relation: _question_pool(relation, rng) for relation in QUESTION_TABLES}
    taken: dict[str, int] = dict.fromkeys(pools, 0)
    for _ in range(min(count, sum(map(len, pools.values())))):
        emptiest = min(
            (r for r in pools if taken[r] < len(pools[r])), key=lambda relation: taken[relation]
        )
        taken[emptiest] += 1
    rows = []
    for relation, pool in pools.items():
        shots = "".join(f"{prompt_of(fact)} {fact.answer}.\n" for fact in solved_examples(relation))
        for number, fact in enumerate(pool[: taken[relation]]):
            rows.append(
                {
                    "id": f"questions-{relation}-{number:04d}",
                    "group": f"{relation}: {fact.subject}",
                    "relation": relation,
                    "subject": fact.subject,
                    "question": question_of(fact),
                    "prompt": shots + prompt_of(fact),
                    "gold": fact.gold,
                }
            )
    return pd.DataFrame(rows, columns=list(QUESTION_COLUMNS))


def solved_questions(relation: str) -> list[str]:
    """Question and answer of the relation's solved examples in turn: the earlier messages of a chat."""
    pairs = ((question_of(fact), fact.answer) for fact in solved_examples(relation))
    return [text for pair in pairs for text in pair]


def question_of(fact: Fact) -> str:
    """The question whose answer is the fact's."""
    return template_of(fact).question.format(subject=fact.subject)


def _question_pool(relation: str, rng: random.Random) -> list[Fact]:
    facts = [
        fact
        for table in QUESTION_TABLES[relation]
        for fact in load_table(table)
        if fact.role == "evaluated" and fact.relation == relation
    ]
    rng.shuffle(facts)
    return facts


def solved_examples(relation: str) -> list[Fact]:
    """The worked examples of a relation, which are never evaluated."""
    tables = QUESTION_TABLES[relation]
    return [
        fact
        for table in tables
        for fact in load_table(table)
        if fact.role == "solved" and fact.relation == relation
    ]


def known_pairs() -> Iterator[tuple[str, str]]:
    """Every name of a subject with every name of a right answer, over all tables, articles removed."""
    for table in list_tables():
        for fact in load_table(table):
            for answer in fact.gold:
                yield without_article(fact.subject), without_article(answer)
