"""A text parted at its answer's tokens, so that the parts joined are the text as it stands."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.inputs import chat


class Parts(NamedTuple):
    """before + the pieces + after = the text; a token that lies within a character of an earlier one has an empty piece."""

    before: str
    pieces: list[str]
    after: str


def part(text: str, offsets: Sequence[tuple[int, int]]) -> Parts:
    """Part a text at consecutive tokens, given the character range of each."""
    start = end = min(offsets[0][0], len(text))
    pieces = []
    for _, stop in offsets:
        stop = max(end, stop)
        pieces.append(text[end:stop])
        end = stop
    return Parts(text[:start], pieces, text[end:])


def offsets_of(texts: Sequence[str], tokenizer: Any) -> list[list[tuple[int, int]]]:
    """Character range of every token of every text, as extraction saw them."""
    coded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
        split_special_tokens=True,
    )
    return [[(int(first), int(last)) for first, last in found] for found in coded["offset_mapping"]]


def offsets_of_examples(examples: pd.DataFrame, tokenizer: Any) -> list[list[tuple[int, int]]]:
    """As `offsets_of`; of answers in a chat template, of every token behind the prompt.

    Args:
        examples: columns text, and prompt and prompt_ids if they were asked in a chat template.
    """
    if chat.is_asked(examples):
        return [each.offsets for each in chat.of_examples(examples, tokenizer)]
    return offsets_of([str(text) for text in examples["text"]], tokenizer)


def require_positions(
    positions: Sequence[int], offsets: Sequence[tuple[int, int]], name: str
) -> None:
    """Check that a text has the tokens that the tables speak of; position 0 is the separator."""
    if not len(positions) or min(positions) < 1 or max(positions) > len(offsets):
        raise UserError(
            f"{name}: its answer is said to be at tokens {list(positions)} of {len(offsets)}: tokens.parquet and "
            "examples.parquet are not from one run; delete the data set's folder in examples/ and run again"
        )
