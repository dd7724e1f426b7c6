"""Examples as token sequences: where their answers are, and which activations are stored.

A text may have a context of its own, which the model reads before it. A context that does not fit
is refused, or shortened if the example says so (column long_contexts): tokens are dropped from its
start, WINDOW_STEP at a time, so that most texts of a context keep the same part of it.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.facts.contexts import context_of
from ghosttrack.facts.spans import Span, token_probabilities
from ghosttrack.inputs import chat, models

# Shortest prefix, in tokens, that is computed once for all texts of a relation; less saves no time.
SHARED_TOKENS = 16
# Number of tokens that are dropped together from the start of a long context.
WINDOW_STEP = 256
Positions = Literal["answer", "last", "all"]

log = logging.getLogger("ghosttrack")


class Encoded(NamedTuple):
    """One example as tokens, int64.

    ids: (tokens,); the first is not scored: the separator, or the last token of the shared prefix.
    answer: (answer tokens,) positions in `ids`.
    read: (rows,) positions in `ids` whose activations are stored: those of the answer, the last of
        them, or those of the whole text.
    prefix: (tokens,) the rest of the prefix that all texts of the relation share, from the
        separator on; empty if the shared prefix is short.
    lead: number of tokens in `prefix` and `ids` that precede the text: the separator, and the
        few-shot demonstrations or the context.
    dropped: number of tokens dropped from the start of the context.
    ranges: (rows, 2) first character in the text of each token in `read`, and the one after its
        last.
    """

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    read: npt.NDArray[np.int64]
    prefix: npt.NDArray[np.int64]
    lead: int
    dropped: int = 0
    ranges: npt.NDArray[np.int64] = np.empty((0, 2), dtype=np.int64)

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
            the prompt. With the column context, the model reads it before the text.
        tokenizer: fast tokenizer with character offsets.
        limit: longest input of the model in tokens, separator and demonstrations included.
        dataset: named in errors.
        contexts: replaces demonstrations and contexts, (examples,); "" for none.
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
    own = own_contexts(examples) if contexts is None else [""] * len(examples)
    windowed = [
        bool(context) and rule == "window"
        for context, rule in zip(
            own, examples.get("long_contexts", pd.Series("", index=examples.index)), strict=True
        )
    ]
    result = []
    for name, text, start, end, (head, tokens, offsets), context, may_drop in zip(
        examples["id"],
        examples["text"],
        examples["answer_start"],
        examples["answer_end"],
        coded,
        own,
        windowed,
        strict=True,
    ):
        excess = len(head) + len(tokens) - limit
        dropped = 0
        if may_drop and 0 < excess < len(head):
            dropped = min(-(-excess // WINDOW_STEP) * WINDOW_STEP, len(head) - 1)
            head = [head[0], *head[1 + dropped :]]
        ids = np.array([*head, *tokens], dtype=np.int64)
        if len(ids) > limit:
            raise UserError(
                f"data set {dataset}, id {name}: "
                f"{_too_long(len(head), len(tokens), limit, bool(context), may_drop)}"
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
        ranges = np.array(offsets, dtype=np.int64).reshape(-1, 2)[read - lead]
        none = np.empty(0, dtype=np.int64)
        result.append(Encoded(ids, answer, read, none, lead, dropped, ranges))
    _log_dropped(result, examples["id"].tolist(), dataset)
    keys = [
        (relation, context, one.dropped)
        for relation, context, one in zip(examples["relation"], own, result, strict=True)
    ]
    return _share(result, keys) if share else result


def span_columns(examples: pd.DataFrame, encoded: Sequence[Encoded]) -> dict[str, list[Any]]:
    """Columns of tokens.parquet for examples with spans, (rows,).

    Args:
        examples: columns answer, answer_start and spans.
        encoded: the same examples as tokens.
    Returns:
        start, end: first character of the token in its answer, and the one after its last;
        negative before the answer. span: largest probability of the spans that the token overlaps,
        NaN for a token outside the answer.
    """
    columns: dict[str, list[Any]] = {"start": [], "end": [], "span": []}
    for answer, begin, spans, one in zip(
        examples["answer"], examples["answer_start"], examples["spans"], encoded, strict=True
    ):
        ranges = [(int(first), int(last)) for first, last in one.ranges - int(begin)]
        marked = [Span(**span) for span in spans]
        inside = np.isin(one.read, one.answer)
        columns["start"] += [first for first, _ in ranges]
        columns["end"] += [last for _, last in ranges]
        columns["span"] += [
            value if within else float("nan")
            for value, within in zip(
                token_probabilities(str(answer), marked, ranges), inside, strict=True
            )
        ]
    return columns


def _too_long(head: int, tokens: int, limit: int, context: bool, may_drop: bool) -> str:
    """The error message for a text of `tokens` tokens after `head` others."""
    if not context:
        prompt = f" after a prompt of {head - 1}" if head > 1 else ""
        return (
            f"the text has {tokens + 1} tokens{prompt}, the model takes {limit}; shorten or remove "
            "this text, or choose a model with a longer context"
        )
    if may_drop:
        return (
            f"the text has {tokens} tokens without its context, the model takes {limit} with the "
            "first token; only contexts are shortened (long_contexts: window). Shorten or remove "
            "this text, or choose a model with a longer context"
        )
    return (
        f"the text has {tokens} tokens after a context of {head - 1} tokens, the model takes "
        f"{limit} with the first token; set long_contexts: window in the data set's file to drop "
        "the start of long contexts, shorten the context, or choose a model with a longer context"
    )


def _log_dropped(encoded: Sequence[Encoded], ids: Sequence[str], dataset: str) -> None:
    """Log how many contexts are shortened."""
    cut = [number for number, one in enumerate(encoded) if one.dropped]
    if cut:
        most = max(cut, key=lambda number: encoded[number].dropped)
        log.warning(
            "data set %s: %d of %d texts are read after a shortened context (long_contexts: "
            "window): up to %d tokens are dropped from its start (id %s)",
            dataset,
            len(cut),
            len(encoded),
            encoded[most].dropped,
            ids[most],
        )


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


def own_contexts(examples: pd.DataFrame) -> list[str]:
    """The context of each text with a line end, (examples,); "" where there is none."""
    if "context" not in examples:
        return [""] * len(examples)
    return [f"{text}\n" if text else "" for text in examples["context"].fillna("")]


def contexts_of(examples: pd.DataFrame) -> list[str]:
    """What the model reads before each text, (examples,): its context, or demonstrations, or "".

    Only given statements without remarks can have few-shot demonstrations. A remark may hold some
    of its own.
    """
    # Texts without the column, joined with texts that have it, have NaN there.
    after_remark = examples["wording"].fillna("") != "" if "wording" in examples else False
    plain = (examples["mode"] == "given") & ~pd.Series(after_remark, index=examples.index)
    return [
        context or (context_of(str(relation)) if without else "")
        for context, relation, without in zip(
            own_contexts(examples), examples["relation"], plain, strict=True
        )
    ]


def _share(encoded: list[Encoded], keys: Sequence[tuple[str, str, int]]) -> list[Encoded]:
    """Move the prefix that all texts of a key share to `prefix`, except its last token.

    keys: (texts,) relation, context, and number of dropped tokens.
    """
    groups: dict[tuple[str, str, int], list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    shared = list(encoded)
    for (_, context, _), rows in groups.items():
        prompt = min(min(int(encoded[row].answer[0]), int(encoded[row].read[0])) for row in rows)
        length = min(common_length([encoded[row].ids for row in rows]), prompt) - 1
        if length < (1 if context else SHARED_TOKENS):
            continue
        prefix = encoded[rows[0]].ids[:length]
        for row in rows:
            one = encoded[row]
            shared[row] = one._replace(
                ids=one.ids[length:],
                answer=one.answer - length,
                read=one.read - length,
                prefix=prefix,
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
