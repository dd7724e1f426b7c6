"""CounterFact as minimal-pair blocks (Meng et al. 2022; true and false statements of Buerger et al.).

The published false statement of a subject is rarely the true statement of another, so the text
alone predicts the label. Here only the true facts are used. Two facts of a relation, (A, a) and
(B, b), make the statements "A a", "B b" (true) and "A b", "B a" (false): each subject and each
answer is as often in a true statement as in a false one. The true and the false statements of a
block also share the same letter pairs between subject and answer, which a classifier of n-grams
could use. A swapped answer must be false. That is certain only if a subject has one true answer,
and all answers are of one kind. Relations without this property are dropped, and so are two whose
subjects' names give the answer away (makers of products, positions of players). The log lists all
relations. The text alone has an AUROC of .503 on the kept relations (95 % interval .498 to .508).
"""

import logging
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.facts.examples import Example
from ghosttrack.facts.statements import Fact, spelling_bias, swappable
from ghosttrack.inputs.cells import Row, all_columns, require_columns, shown, text_of

log = logging.getLogger("ghosttrack")

# Fewest facts of a relation.
LEAST_FACTS = 20
SEVERAL = "a subject may have several true answers"
NAMES = "the text alone predicts the label: names of subjects with one answer resemble each other"
LEVELS = "answers are places of several levels, one inside the other, or of several kinds"
FEW = f"fewer than {LEAST_FACTS} facts"
UNPAIRED = "no two facts can be swapped"
UNKNOWN = "it is not among the relations that were examined"
# Relations with one true answer per subject, and answers of one kind, as patterns of the templates.
KEPT = tuple(
    re.compile(pattern)
    for pattern in (
        r"The (mother tongue|native language) of \{\} is$|\{\} is a native speaker of$",
        r"The (original )?language of \{\} (is|was)$|\{\} (is|was) written in$",
        r"\{\} (debuted|premiered|premieres|is to debut|was released|was originally aired) on$",
        r"\{\} (is located in the|is a part of the|belongs to the) continent( of)?$",
        r"\{\} (is located in|was created in) the country of$",
        r"\{\} (follows the religion of|is follower of|is affiliated with the religion)$",
        r"The official religion of \{\} is$",
        r"\{\} was born in$",
        r"\{\} (died (at|in|in the city of)|passed away (at|in)|expired at|succumbed at)$",
        r"\{\} lost their life at$|\{\}'s life ended in$",
        r"The headquarters? of \{\} is (in|located in)$|\{\}'s headquarters are in$",
        r"\{\} is headquartered in$",
        r"The capital (city )?of \{\} is$|\{\}'s capital (city )?is$",
        r"\{\} (professionally plays the sport|is a professional)$",
    )
)
# Relations that were examined and are dropped.
DROPPED = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r".*((created|developed|produced) by|a product of)$", NAMES),
        (r"\{\} plays (as|in the position of)$", NAMES),
        (r".*twin city", SEVERAL),
        (
            r".*(speaks|spoke|writes in|understand|official language|law in|language spoken)",
            SEVERAL,
        ),
        (r"The language used by", SEVERAL),
        (r".*(work|employ|occupation|profession|field|area|domain|expertise|specializes)", SEVERAL),
        (
            r".*(citizen|perform|genre|instrument|plays the$|position|title|member|organization)",
            SEVERAL,
        ),
        (
            r".*(affiliated with|part of the$|named|called after|label|record|represented|owned)",
            SEVERAL,
        ),
        (r"\{\} plays$|\{\} is a$", SEVERAL),
        (r".*(located in$|is in$|found in$|within|location|from$|originat|native to)", LEVELS),
        (r".*(created in$|formulated|formed|started|founded|developed in|based in)", LEVELS),
    )
)


class Relation(NamedTuple):
    """A relation of the source: its facts, the statements made of them, and why it is dropped."""

    template: str
    facts: int
    statements: int
    dropped: str  # "" if it is kept


def examples(rows: Sequence[Row], name: str, seed: int) -> tuple[list[Example], list[Relation]]:
    """Minimal-pair blocks of all kept relations, and a row about every relation.

    Args:
        rows: columns relation (with `{}` for the subject), subject, target and true_target.
        name: the file, for errors.
        seed: selects the pairs.
    Raises:
        UserError: a column is missing, or a relation has no `{}`.
    """
    columns = ("relation", "subject", "target", "true_target")
    require_columns(all_columns(rows), [("", column) for column in columns], name)
    known: dict[str, dict[str, str]] = {}
    true: dict[str, set[str]] = defaultdict(set)
    for number, row in enumerate(rows, start=1):
        template, subject, answer = (
            text_of(row, column, number, name, numbers=True)
            for column in ("relation", "subject", "true_target")
        )
        if template.count("{}") != 1:
            raise UserError(
                f"row {number} of {name}, column 'relation': expected one {{}} for the subject, "
                f"found {shown(template)}"
            )
        known.setdefault(template, {}).setdefault(subject, answer)
        true[subject].add(answer)
    found: list[Example] = []
    relations = []
    for template, facts in known.items():
        dropped = why_dropped(template, len(facts))
        blocks = [] if dropped else _blocks(template, facts, true, seed)
        relations.append(
            Relation(template, len(facts), len(blocks), dropped or ("" if blocks else UNPAIRED))
        )
        found += blocks
    _log_relations(relations)
    return found, relations


def why_dropped(template: str, facts: int) -> str:
    """Why a relation is dropped, or ""."""
    if any(pattern.match(template) for pattern in KEPT):
        return FEW if facts < LEAST_FACTS else ""
    return next((reason for pattern, reason in DROPPED if pattern.match(template)), UNKNOWN)


def _blocks(
    template: str, facts: dict[str, str], true: dict[str, set[str]], seed: int
) -> list[Example]:
    """Four statements for every pair of facts of a relation."""
    rng = random.Random(f"{template} {seed}")
    rows: list[Example] = []
    listed = [
        # No other answer that the source calls true for the subject may be its false answer.
        Fact(template, subject, answer, (), tuple(sorted(true[subject])), (), (), "evaluated")
        for subject, answer in facts.items()
    ]
    for number, (first, second) in enumerate(_pairs(listed, rng)):
        group = f"{template}-{number:05d}"
        for subject in (first, second):
            for stated in (first, second):
                prompt = template.format(subject.subject)
                other = second if stated is first else first
                rows.append(
                    Example(
                        id=f"{group}-{'a' if subject is first else 'b'}{'a' if stated is first else 'b'}",
                        group=group,
                        relation=template,
                        subject=subject.subject,
                        question="",
                        prompt=prompt,
                        answer=stated.answer,
                        text=f"{prompt} {stated.answer}.",
                        answer_start=len(prompt) + 1,
                        answer_end=len(prompt) + 1 + len(stated.answer),
                        label=int(stated is not subject),
                        mode="given",
                        gold=[subject.answer],
                        other=other.answer,
                    )
                )
    return rows


def _pairs(facts: Sequence[Fact], rng: random.Random) -> Iterator[tuple[Fact, Fact]]:
    """Pairs of facts whose swapped answers are false and sound alike; each fact is in at most one.

    Of several partners, the one whose answer is as frequent and as long is preferred.
    """
    free = list(facts)
    rng.shuffle(free)
    counts = Counter(fact.answer for fact in facts)

    def difference(first: Fact, second: Fact) -> int:
        rarity = abs(round(math.log2(counts[first.answer] / counts[second.answer])))
        words = abs(len(first.answer.split()) - len(second.answer.split()))
        return 16 * words + 4 * rarity + abs(len(first.answer) - len(second.answer))

    while free:
        first = free.pop()
        options = [
            index
            for index, second in enumerate(free)
            if swappable(first, second, strict=True) and not spelling_bias(first, second)
        ]
        if options:
            best = min(options, key=lambda index: difference(first, free[index]))
            second = free.pop(best)
            yield (first, second) if rng.random() < 0.5 else (second, first)


def _log_relations(relations: Iterable[Relation]) -> None:
    """Log the relations, the kept ones first."""
    ordered = sorted(relations, key=lambda one: (one.dropped != "", -one.facts))
    kept = [one for one in ordered if not one.dropped]
    log.info(
        "%d relations kept with %d statements, %d dropped",
        len(kept),
        sum(one.statements for one in kept),
        len(ordered) - len(kept),
    )
    for one in ordered:
        log.info(
            "%s: %d facts, %s",
            one.template,
            one.facts,
            f"dropped: {one.dropped}" if one.dropped else f"{one.statements} statements",
        )
