"""P(True): what a model says when it is asked whether a text is true (Kadavath et al. 2022, arXiv:2207.05221).

The question stands after four solved examples, as many true as false, of facts that are never evaluated. No label is read.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations import packed_texts
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.facts import contexts
from ghosttrack.facts.statements import TEMPLATES, Fact, sentence_of
from ghosttrack.inputs import chat, models
from ghosttrack.runtime.progress import Progress

ASK = "True or false?"
TRUE, FALSE = " True", " False"
# The same question about nothing: what is left is the model's liking for one of the words (Zhao et al. 2021, arXiv:2102.09690).
NOTHING = "N/A."
# For texts without a relation, or of one that has no solved statements: (question, answer, statement, true).
GENERAL = (
    ("What color is snow?", "white", "Snow is white.", True),
    ("Is fire hot or cold?", "cold", "Fire is cold.", False),
    ("What do cows eat?", "stones", "Cows eat stones.", False),
    ("What do birds have?", "wings", "Birds have wings.", True),
)

Floats = npt.NDArray[np.float64]


class Asked(NamedTuple):
    """A text up to the token at which TRUE and FALSE part, and the tokens of either there."""

    ids: npt.NDArray[np.int64]
    true: int
    false: int


def measure(
    model: Any, tokenizer: Any, examples: pd.DataFrame, *, limit: int, batch: int, together: int
) -> Floats:
    """Log-odds of true against false for every text, less those of no text at all, (examples,).

    NaN for a text that, with the solved examples, is longer than the model takes.

    Args:
        examples: columns relation, mode, text, question, answer; a generated answer is shown with its question. Those
            that were asked in a chat template (column prompt_ids) are asked about in it, the solved examples as earlier
            messages.
        limit: tokens that the model takes; batch: texts per forward pass, which changes nothing but rounding noise.
        together: tokens of a sequence up to which texts share one, from `Limits`.
    """
    shown = shown_texts(examples)
    ask = (
        functools.partial(_ask_in_chat, lead=chat.answer_lead(tokenizer))
        if chat.is_asked(examples)
        else _ask
    )
    keys = [
        (str(relation), mode == "generated")
        for relation, mode in zip(examples["relation"], examples["mode"], strict=True)
    ]
    odds = np.full(len(examples), np.nan)
    progress = Progress("asking whether it is true", len(examples), "texts")
    reader = packed_texts.Reader(model, together)
    for key in dict.fromkeys(keys):
        rows = [row for row, own in enumerate(keys) if own == key]
        asked = [
            ask(tokenizer, _solved(*key), text) for text in [NOTHING, *(shown[row] for row in rows)]
        ]
        fitting = [place for place, one in enumerate(asked) if len(one.ids) <= limit]
        found = np.full(len(asked), np.nan)
        found[fitting] = _log_odds(reader, [asked[place] for place in fitting], batch)
        odds[rows] = found[1:] - found[0]
        progress.advance(len(rows))
    return odds


def shown_texts(examples: pd.DataFrame) -> list[str]:
    """What is asked about: a given text as it is, a generated answer behind its question."""
    columns = zip(
        examples["mode"], examples["text"], examples["question"], examples["answer"], strict=True
    )
    return [
        f"{question} {str(answer).strip()}." if mode == "generated" else str(text)
        for mode, text, question, answer in columns
    ]


def solved(relation: str, with_question: bool) -> str:
    """Four solved examples, one a line: two true ones, and between them two with an answer of the others."""
    return _lines(_solved(relation, with_question))


def _lines(solved_texts: Sequence[tuple[str, bool]]) -> str:
    return "".join(f"{text} {ASK}{TRUE if true else FALSE}\n" for text, true in solved_texts)


def _solved(relation: str, with_question: bool) -> list[tuple[str, bool]]:
    """The text of each solved example and whether it is true."""
    base, reverse = relation.removesuffix(contexts.REVERSE), relation.endswith(contexts.REVERSE)
    if not (contexts.DEMONSTRATIONS.get(base) and contexts.context_of(relation)):
        return [
            (f"{question} {answer}." if with_question else statement, true)
            for question, answer, statement, true in GENERAL
        ]
    facts = [
        Fact(base, subject, answer, (), (), (), (), "demonstration")
        for subject, answer in contexts.DEMONSTRATIONS[base]
    ]
    first, second, third, fourth = facts[:4]
    part = "subject" if reverse else "answer"  # what stands at the end of the sentence
    chosen = (
        (first, True),
        (second._replace(**{part: getattr(first, part)}), False),
        (third._replace(**{part: getattr(fourth, part)}), False),
        (fourth, True),
    )
    return [(_sentence(fact, reverse, with_question), true) for fact, true in chosen]


def _sentence(fact: Fact, reverse: bool, with_question: bool) -> str:
    if not with_question:
        return sentence_of(fact, reverse=reverse)
    return f"{TEMPLATES[fact.relation].question.format(subject=fact.subject)} {fact.answer}."


def _ask(tokenizer: Any, solved_texts: Sequence[tuple[str, bool]], text: str) -> Asked:
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    shown = f"{_lines(solved_texts)}{text}"
    true, false = (
        tokenizer(f"{shown} {ASK}{word}", **options)["input_ids"] for word in (TRUE, FALSE)
    )
    return _up_to_the_words([models.separator(tokenizer)], true, false)


def _ask_in_chat(
    tokenizer: Any, solved_texts: Sequence[tuple[str, bool]], text: str, lead: str
) -> Asked:
    """The solved examples as earlier messages, answered with one word; the question as the last message of the user.

    Args:
        lead: blanks before an answer.
    """
    earlier = [
        turn
        for own, true in solved_texts
        for turn in (f"{own} {ASK}", (TRUE if true else FALSE).strip())
    ]
    prompt = chat.render(
        tokenizer, [*earlier, f"{text} {ASK}"], f"the question whether this is true: {text[:80]!r}"
    )
    true, false = chat.continuations(tokenizer, [lead + word.strip() for word in (TRUE, FALSE)])
    return _up_to_the_words(prompt.ids, true.ids, false.ids)


def _up_to_the_words(before: Sequence[int], true: Sequence[int], false: Sequence[int]) -> Asked:
    """The ids before the first token at which the two continuations differ, and that token of either."""
    place = next(
        place for place, (one, other) in enumerate(zip(true, false, strict=False)) if one != other
    )
    return Asked(np.array([*before, *true[:place]], dtype=np.int64), true[place], false[place])


def _log_odds(reader: packed_texts.Reader, asked: Sequence[Asked], batch: int) -> Floats:
    """log P(true) - log P(false) behind each text, (asked,); what they all begin with is computed once."""
    if not asked:
        return np.empty(0)
    ids = [one.ids for one in asked]
    shared = min(_common_length(ids), min(map(len, ids)) - 1)
    texts = [
        Encoded(
            own[shared:],
            answer=(every := np.arange(len(own) - shared)),
            read=every,
            before=own[:shared],
            lead=shared,
        )
        for own in ids
    ]
    found = np.empty(len(asked))
    with torch.inference_mode():
        for pack in reader.packs(texts, range(len(texts)), batch):
            last = np.repeat([places[-1] for places in pack.places], 2)
            words = np.array(
                [
                    word
                    for number in pack.numbers
                    for word in (asked[number].true, asked[number].false)
                ]
            )
            closely = np.zeros(len(words), dtype=bool)
            logprob = reader.opinions(reader.final(pack), last, words, closely).logprob.astype(
                np.float64
            )
            found[pack.numbers] = logprob[::2] - logprob[1::2]
    return found


def _common_length(texts: Sequence[npt.NDArray[np.int64]]) -> int:
    """Tokens that all texts begin with."""
    shortest = min(map(len, texts))
    same = np.all([text[:shortest] == texts[0][:shortest] for text in texts], axis=0)
    return int(np.argmin(same)) if not same.all() else shortest
