"""Splitting of a text at the tokens of its answer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.inputs import chat


class Parts(NamedTuple):
    """A text is before + pieces + after.

    A piece is empty if its token lies within a character of an earlier token.
    """

    before: str
    pieces: list[str]
    after: str


def part(text: str, offsets: Sequence[tuple[int, int]]) -> Parts:
    """Split a text at consecutive tokens with the given character ranges."""
    start = end = min(offsets[0][0], len(text))
    pieces = []
    for _, stop in offsets:
        stop = max(end, stop)
        pieces.append(text[end:stop])
        end = stop
    return Parts(text[:start], pieces, text[end:])


def offsets_of(texts: Sequence[str], tokenizer: Any) -> list[list[tuple[int, int]]]:
    """Character range of every token of every text, tokenised as for extraction."""
    coded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
        split_special_tokens=True,
    )
    return [
        [(int(first), int(last)) for first, last in offsets] for offsets in coded["offset_mapping"]
    ]


def offsets_of_examples(examples: pd.DataFrame, tokenizer: Any) -> list[list[tuple[int, int]]]:
    """As `offsets_of`; for answers in a chat template, of every token after the prompt.

    Args:
        examples: column text; prompt and prompt_ids too if a chat template was used.
    """
    if chat.is_asked(examples):
        return [example.offsets for example in chat.of_examples(examples, tokenizer)]
    return offsets_of([str(text) for text in examples["text"]], tokenizer)


def require_positions(
    positions: Sequence[int], offsets: Sequence[tuple[int, int]], name: str
) -> None:
    """Check that a text has tokens at `positions`; position 0 is the separator.

    Raises:
        UserError: a position is outside the text; `name` says which text.
    """
    if not len(positions) or min(positions) < 1 or max(positions) > len(offsets):
        raise UserError(
            f"{name}: tokens.parquet has the answer at tokens {list(positions)}, but the text "
            f"has {len(offsets)} tokens: "
            "tokens.parquet and examples.parquet are not from one run; delete the data set's "
            "folder in examples/ and run again"
        )
