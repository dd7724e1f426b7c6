"""P(True): the model's probability that a text is true (Kadavath et al. 2022, arXiv:2207.05221).

The prompt has four few-shot demonstrations, two true and two false, of facts that are never
evaluated. No label is read.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations import packed_texts
from ghosttrack.activations.example_tokens import Encoded, common_length
from ghosttrack.errors import UserError
from ghosttrack.facts import contexts
from ghosttrack.facts.examples import as_read
from ghosttrack.facts.statements import TEMPLATES, Fact, sentence_of
from ghosttrack.inputs import chat, models
from ghosttrack.runtime.progress import Progress

ASK = "True or false?"
TRUE, FALSE = " True", " False"
# Content-free input, whose log-odds are the model's bias (Zhao et al. 2021, arXiv:2102.09690).
NOTHING = "N/A."
# Demonstrations for texts of relations that have none: (question, answer, statement, true).
GENERAL = (
    ("What color is snow?", "white", "Snow is white.", True),
    ("Is fire hot or cold?", "cold", "Fire is cold.", False),
    ("What do cows eat?", "stones", "Cows eat stones.", False),
    ("What do birds have?", "wings", "Birds have wings.", True),
)

Floats = npt.NDArray[np.float64]


class TrueFalsePrompt(NamedTuple):
    """Token ids up to the first token in which TRUE and FALSE differ, and that token of each."""

    ids: npt.NDArray[np.int64]
    true: int
    false: int


def measure(
    model: Any, tokenizer: Any, examples: pd.DataFrame, *, limit: int, batch: int, packed: int
) -> Floats:
    """Log-odds of true against false for every text, minus those of NOTHING, (examples,).

    NaN for a text whose prompt is longer than the model takes.

    Args:
        examples: columns relation, mode, text, question, answer; a generated answer is shown with
            its question, and a text with its context, if there is such a column. With prompt_ids,
            the prompts use the chat template, with the demonstrations as earlier messages.
        limit: longest input of the model in tokens.
        batch: texts per forward pass; changes only memory and rounding noise.
        packed: longest packed sequence in tokens, from `Limits`.
    """
    shown = shown_texts(examples)
    make_prompt = (
        functools.partial(_chat_prompt, lead=chat.answer_lead(tokenizer))
        if chat.is_asked(examples)
        else _plain_prompt
    )
    keys = [
        (str(relation), mode == "generated")
        for relation, mode in zip(examples["relation"], examples["mode"], strict=True)
    ]
    odds = np.full(len(examples), np.nan)
    progress = Progress("asking whether it is true", len(examples), "texts")
    reader = packed_texts.PackedReader(model, packed)
    for key in dict.fromkeys(keys):
        rows = [row for row, other in enumerate(keys) if other == key]
        prompts = [
            make_prompt(tokenizer, _demonstrations(*key), text)
            for text in [NOTHING, *(shown[row] for row in rows)]
        ]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt.ids) <= limit]
        raw = np.full(len(prompts), np.nan)
        raw[fitting] = _log_odds(reader, [prompts[index] for index in fitting], batch)
        odds[rows] = raw[1:] - raw[0]
        progress.advance(len(rows))
    return odds


def shown_texts(examples: pd.DataFrame) -> list[str]:
    """The text in each prompt: a given text as it is, a generated answer after its question.

    A text with a context stands on the line after it.
    """
    columns = zip(
        examples["mode"], examples["text"], examples["question"], examples["answer"], strict=True
    )
    shown = [
        f"{question} {str(answer).strip()}." if mode == "generated" else str(text)
        for mode, text, question, answer in columns
    ]
    return as_read(examples.assign(text=shown))


def demonstrations(relation: str, with_question: bool) -> str:
    """Four demonstrations, one per line: true, false, false, true."""
    return _lines(_demonstrations(relation, with_question))


def _lines(texts: Sequence[tuple[str, bool]]) -> str:
    return "".join(f"{text} {ASK}{TRUE if true else FALSE}\n" for text, true in texts)


def _demonstrations(relation: str, with_question: bool) -> list[tuple[str, bool]]:
    """The text of each demonstration and whether it is true."""
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
    part = "subject" if reverse else "answer"  # the last word of the sentence
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


def _plain_prompt(tokenizer: Any, shots: Sequence[tuple[str, bool]], text: str) -> TrueFalsePrompt:
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    shown = f"{_lines(shots)}{text}"
    true, false = (
        tokenizer(f"{shown} {ASK}{word}", **options)["input_ids"] for word in (TRUE, FALSE)
    )
    return _up_to_difference([models.separator(tokenizer)], true, false)


def _chat_prompt(
    tokenizer: Any, shots: Sequence[tuple[str, bool]], text: str, lead: str
) -> TrueFalsePrompt:
    """The demonstrations as earlier messages with one-word answers; the question comes last.

    Args:
        lead: blanks before an answer.
    """
    earlier = [
        turn
        for shot, true in shots
        for turn in (f"{shot} {ASK}", (TRUE if true else FALSE).strip())
    ]
    prompt = chat.render(
        tokenizer, [*earlier, f"{text} {ASK}"], f"the question whether this is true: {text[:80]!r}"
    )
    true, false = chat.continuations(tokenizer, [lead + word.strip() for word in (TRUE, FALSE)])
    return _up_to_difference(prompt.ids, true.ids, false.ids)


def _up_to_difference(
    prompt: Sequence[int], true: Sequence[int], false: Sequence[int]
) -> TrueFalsePrompt:
    """Append the tokens that both continuations share to a prompt.

    Raises:
        UserError: no token differs.
    """
    at = next(
        (at for at, both in enumerate(zip(true, false, strict=False)) if len({*both}) > 1), -1
    )
    if at < 0:
        raise UserError(
            f"detection.p_true: the tokenizer does not tell {TRUE.strip()!r} from "
            f"{FALSE.strip()!r}, expected tokens that differ; set detection.p_true to none"
        )
    return TrueFalsePrompt(np.array([*prompt, *true[:at]], dtype=np.int64), true[at], false[at])


def _log_odds(
    reader: packed_texts.PackedReader, prompts: Sequence[TrueFalsePrompt], batch: int
) -> Floats:
    """log P(true) - log P(false) after each prompt, (prompts,)."""
    if not prompts:
        return np.empty(0)
    ids = [prompt.ids for prompt in prompts]
    shared = min(common_length(ids), min(map(len, ids)) - 1)
    texts = [
        Encoded(
            one[shared:],
            answer=(positions := np.arange(len(one) - shared)),
            read=positions,
            prefix=one[:shared],
            lead=shared,
        )
        for one in ids
    ]
    odds = np.empty(len(prompts))
    with torch.inference_mode():
        for pack in reader.packs(texts, range(len(texts)), batch):
            last = np.repeat([places[-1] for places in pack.places], 2)
            words = np.array(
                [
                    word
                    for number in pack.numbers
                    for word in (prompts[number].true, prompts[number].false)
                ]
            )
            logprob = reader.token_statistics(
                reader.final(pack), last, words, np.zeros(len(words), dtype=bool)
            ).logprob.astype(np.float64)
            odds[pack.numbers] = logprob[::2] - logprob[1::2]
    return odds
