"""Examples as token sequences: which tokens of a text carry its answer, and at which ones the model is read."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.facts.contexts import context_of
from ghosttrack.inputs import chat, models

# A beginning that all texts of a relation share is computed once if it is longer than this; shorter ones save nothing.
SHARED_TOKENS = 16
Positions = Literal["answer", "last", "all"]


class Encoded(NamedTuple):
    """One example as tokens, int64.

    ids: (tokens,), led by a token that nothing is said about: the separator, or the last one of a shared beginning.
    answer: (tokens of the answer,) their positions in `ids`.
    read: (rows,) positions in `ids` whose activations are wanted: `answer`, its last one, or all that are the text's own.
    before: (tokens,) the rest of what all texts of its relation begin with, led by the separator; empty if that is short.
    lead: tokens of `before` and `ids` that are not the text's own: the separator and solved statements.
    """

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    read: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    lead: int

    @property
    def scored(self) -> npt.NDArray[np.int64]:
        """Positions in `ids` of the tokens that the model's opinion is wanted of: those read, and the answer's."""
        return self.read if len(self.read) > len(self.answer) else self.answer

    @property
    def shift(self) -> int:
        """What to add to a position in `ids` for the position in the text, whose first token is 1."""
        return len(self.before) - self.lead + 1


def encode(
    examples: pd.DataFrame,
    tokenizer: Any,
    limit: int,
    dataset: str,
    contexts: Sequence[str] | None = None,
    positions: Positions = "answer",
    *,
    share: bool = True,
) -> list[Encoded]:
    """Tokenise the texts, behind the solved statements of their relation if it has any, and find the tokens of their answers.

    A token belongs to the answer if it shares a character with text[answer_start:answer_end], or
    if it is nothing but the space right before it (tokenizers split " 42" into space and digits).

    Args:
        examples: with columns id, text, relation, mode, answer_start, answer_end; those that were asked in a chat
            template also prompt and prompt_ids: the model reads these ids, and behind them what follows the prompt.
        tokenizer: fast tokenizer with character offsets.
        limit: tokens that the model takes, separator and solved statements included.
        dataset: named in errors.
        contexts: what stands before each text instead, (examples,); "": nothing.
        positions: which tokens of a text are read.
        share: whether what all texts of a relation begin with is computed once, and does not count to any of them.
    Raises:
        UserError: with the example's id, where the answer is empty or outside the text, or the text too long.
    """
    coded = (
        _in_chat(examples, tokenizer)
        if chat.is_asked(examples)
        else _in_plain(examples, tokenizer, contexts)
    )
    result = []
    for name, text, start, end, (head, own, offsets) in zip(
        examples["id"],
        examples["text"],
        examples["answer_start"],
        examples["answer_end"],
        coded,
        strict=True,
    ):
        ids = np.array([*head, *own], dtype=np.int64)
        if len(ids) > limit:
            behind = f" behind {len(head) - 1} of what stands before it" if len(head) > 1 else ""
            raise UserError(
                f"data set {dataset}, id {name}: the text has {len(own) + 1} tokens{behind}, the model takes {limit}; "
                "shorten or remove this text, or choose a model with a longer context"
            )
        places = answer_tokens(text, int(start), int(end), offsets)
        if not places.size:
            raise UserError(
                f"data set {dataset}, id {name}: characters {start}..{end} of its text of {len(text)} hold no answer; "
                "expected the answer's text there: fix the answer or remove this row"
            )
        lead = len(ids) - len(own)
        answer = places + lead
        read = {"answer": answer, "last": answer[-1:], "all": np.arange(lead, len(ids))}[positions]
        result.append(Encoded(ids, answer, read, np.empty(0, dtype=np.int64), lead))
    return _share(result, examples["relation"].tolist()) if share else result


class _Coded(NamedTuple):
    """Token ids before a text's own, its own, and their character ranges in the text."""

    head: list[int]
    own: list[int]
    offsets: list[tuple[int, int]]


def _in_plain(
    examples: pd.DataFrame, tokenizer: Any, contexts: Sequence[str] | None
) -> list[_Coded]:
    """Each text behind the separator and its context."""
    separator = models.separator(tokenizer)
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    coded = tokenizer(examples["text"].tolist(), return_offsets_mapping=True, **options)
    contexts = contexts_of(examples) if contexts is None else contexts
    shown = {
        text: tokenizer(text, **options)["input_ids"] if text else [] for text in set(contexts)
    }
    return [
        _Coded([separator, *shown[context]], own, offsets)
        for context, own, offsets in zip(
            contexts, coded["input_ids"], coded["offset_mapping"], strict=True
        )
    ]


def _in_chat(examples: pd.DataFrame, tokenizer: Any) -> list[_Coded]:
    """What stands behind each rendered prompt, behind the prompt's own ids."""
    return [
        _Coded([int(token) for token in head], found.ids, found.offsets)
        for head, found in zip(
            examples["prompt_ids"], chat.of_examples(examples, tokenizer), strict=True
        )
    ]


def contexts_of(examples: pd.DataFrame) -> list[str]:
    """What stands before each text, (examples,): given statements of a shipped relation have solved ones, others nothing."""
    return [
        context_of(str(relation)) if mode == "given" else ""
        for relation, mode in zip(examples["relation"], examples["mode"], strict=True)
    ]


def _share(encoded: list[Encoded], relations: Sequence[str]) -> list[Encoded]:
    """Move what all texts of a relation begin with to `before`, but for its last token: solved statements, and what prompts share."""
    groups: dict[str, list[int]] = {}
    for number, relation in enumerate(relations):
        groups.setdefault(relation, []).append(number)
    shared = list(encoded)
    for rows in groups.values():
        prompt = min(min(int(encoded[row].answer[0]), int(encoded[row].read[0])) for row in rows)
        length = min(_common_length([encoded[row].ids for row in rows]), prompt) - 1
        if length < SHARED_TOKENS:
            continue
        before = encoded[rows[0]].ids[:length]
        for row in rows:
            one = encoded[row]
            shared[row] = Encoded(
                one.ids[length:], one.answer - length, one.read - length, before, one.lead
            )
    return shared


def _common_length(texts: Sequence[npt.NDArray[np.int64]]) -> int:
    """Tokens at the head of every text that are the same in all."""
    least = min(map(len, texts))
    table = np.stack([text[:least] for text in texts])
    differing = np.flatnonzero((table != table[0]).any(axis=0))
    return int(differing[0]) if len(differing) else least


def answer_tokens(
    text: str, start: int, end: int, offsets: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Indices of the tokens that make up text[start:end], given every token's character range.

    Empty when the range is empty, blank or outside the text.
    """
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        return np.empty(0, dtype=np.int64)
    places = [
        place
        for place, (first, last) in enumerate(offsets)
        if (first < end and last > start)
        or (last == start and first < last and not text[first:last].strip(" "))
    ]
    return np.array(places, dtype=np.int64)
