"""Examples as token sequences: where their answers are, and which activations are stored."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.facts.contexts import context_of
from ghosttrack.inputs import chat, models

# Shortest prefix, in tokens, that is computed once for all texts of a relation; less saves no time.
SHARED_TOKENS = 16
Positions = Literal["answer", "last", "all"]


class Encoded(NamedTuple):
    """One example as tokens, int64.

    ids: (tokens,); the first is not scored: the separator, or the last token of the shared prefix.
    answer: (answer tokens,) positions in `ids`.
    read: (rows,) positions in `ids` whose activations are stored: those of the answer, the last of
        them, or those of the whole text.
    prefix: (tokens,) the rest of the prefix that all texts of the relation share, from the
        separator on; empty if the shared prefix is short.
    lead: number of tokens in `prefix` and `ids` that precede the text: the separator and the
        few-shot demonstrations.
    """

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    read: npt.NDArray[np.int64]
    prefix: npt.NDArray[np.int64]
    lead: int

    @property
    def scored(self) -> npt.NDArray[np.int64]:
        """Positions in `ids` of the tokens with statistics: those read, and those of the answer."""
        return self.read if len(self.read) > len(self.answer) else self.answer

    @property
    def shift(self) -> int:
        """Offset from a position in `ids` to the position in the text, whose first token is 1."""
        return len(self.prefix) - self.lead + 1


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
    """Tokenise texts after the few-shot demonstrations of their relation, and locate the answers.

    A token belongs to the answer if it shares a character with text[answer_start:answer_end], or if
    it is only the space right before the answer (tokenizers split " 42" into space and digits).

    Args:
        examples: columns id, text, relation, mode, answer_start, answer_end. Answers in a chat
            template also have prompt and prompt_ids: the model reads these ids, then the text after
            the prompt.
        tokenizer: fast tokenizer with character offsets.
        limit: longest input of the model in tokens, separator and demonstrations included.
        dataset: named in errors.
        contexts: replaces the demonstrations, (examples,); "" for none.
        positions: the tokens of a text whose activations are stored.
        share: whether to move the prefix that all texts of a relation share to `Encoded.prefix`.
    Raises:
        UserError: with the example's id, if its answer is empty or outside the text, or its text
            too long.
    """
    coded = (
        _in_chat(examples, tokenizer)
        if chat.is_asked(examples)
        else _in_plain(examples, tokenizer, contexts)
    )
    result = []
    for name, text, start, end, (head, tokens, offsets) in zip(
        examples["id"],
        examples["text"],
        examples["answer_start"],
        examples["answer_end"],
        coded,
        strict=True,
    ):
        ids = np.array([*head, *tokens], dtype=np.int64)
        if len(ids) > limit:
            prompt = f" after a prompt of {len(head) - 1}" if len(head) > 1 else ""
            raise UserError(
                f"data set {dataset}, id {name}: the text has {len(tokens) + 1} tokens{prompt}, the "
                f"model takes {limit}; shorten or remove this text, or choose a model with a "
                "longer context"
            )
        places = answer_tokens(text, int(start), int(end), offsets)
        if not places.size:
            raise UserError(
                f"data set {dataset}, id {name}: characters {start}..{end} of its "
                f"{len(text)}-character text hold no answer; fix the answer or remove this row"
            )
        lead = len(ids) - len(tokens)
        answer = places + lead
        read = {"answer": answer, "last": answer[-1:], "all": np.arange(lead, len(ids))}[positions]
        result.append(Encoded(ids, answer, read, np.empty(0, dtype=np.int64), lead))
    return _share(result, examples["relation"].tolist()) if share else result


class _Coded(NamedTuple):
    """Token ids before a text, token ids of the text, and their character ranges in the text."""

    head: list[int]
    tokens: list[int]
    offsets: list[tuple[int, int]]


def _in_plain(
    examples: pd.DataFrame, tokenizer: Any, contexts: Sequence[str] | None
) -> list[_Coded]:
    """Each text after the separator and its context."""
    separator = models.separator(tokenizer)
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    coded = tokenizer(examples["text"].tolist(), return_offsets_mapping=True, **options)
    contexts = contexts_of(examples) if contexts is None else contexts
    shown = {
        text: tokenizer(text, **options)["input_ids"] if text else [] for text in set(contexts)
    }
    return [
        _Coded([separator, *shown[context]], tokens, offsets)
        for context, tokens, offsets in zip(
            contexts, coded["input_ids"], coded["offset_mapping"], strict=True
        )
    ]


def _in_chat(examples: pd.DataFrame, tokenizer: Any) -> list[_Coded]:
    """Each answer after the token ids of its rendered prompt."""
    return [
        _Coded([int(token) for token in head], answer.ids, answer.offsets)
        for head, answer in zip(
            examples["prompt_ids"], chat.of_examples(examples, tokenizer), strict=True
        )
    ]


def contexts_of(examples: pd.DataFrame) -> list[str]:
    """Few-shot demonstrations of each text, (examples,).

    Only given statements without remarks can have them. A remark may hold some of its own.
    """
    # Texts without the column, joined with texts that have it, have NaN there.
    after_remark = examples["wording"].fillna("") != "" if "wording" in examples else False
    plain = (examples["mode"] == "given") & ~pd.Series(after_remark, index=examples.index)
    return [
        context_of(str(relation)) if without else ""
        for relation, without in zip(examples["relation"], plain, strict=True)
    ]


def _share(encoded: list[Encoded], relations: Sequence[str]) -> list[Encoded]:
    """Move the prefix that all texts of a relation share to `prefix`, except its last token."""
    groups: dict[str, list[int]] = {}
    for number, relation in enumerate(relations):
        groups.setdefault(relation, []).append(number)
    shared = list(encoded)
    for rows in groups.values():
        prompt = min(min(int(encoded[row].answer[0]), int(encoded[row].read[0])) for row in rows)
        length = min(common_length([encoded[row].ids for row in rows]), prompt) - 1
        if length < SHARED_TOKENS:
            continue
        prefix = encoded[rows[0]].ids[:length]
        for row in rows:
            one = encoded[row]
            shared[row] = Encoded(
                one.ids[length:], one.answer - length, one.read - length, prefix, one.lead
            )
    return shared


def common_length(texts: Sequence[npt.NDArray[np.int64]]) -> int:
    """Length in tokens of the prefix that all texts share."""
    shortest = min(map(len, texts))
    table = np.stack([text[:shortest] for text in texts])
    differing = np.flatnonzero((table != table[0]).any(axis=0))
    return int(differing[0]) if len(differing) else shortest


def answer_tokens(
    text: str, start: int, end: int, offsets: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Indices of the tokens that make up text[start:end], from the character range of every token.

    Empty if the range is empty, blank or outside the text.
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
