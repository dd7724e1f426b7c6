"""Examples as token sequences: which tokens of a text carry its answer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.inputs import models


class Encoded(NamedTuple):
    """One example: `ids` (tokens,) int64, led by the separator; `answer` (rows,) positions of the answer's tokens."""

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]


def encode(examples: pd.DataFrame, tokenizer: Any, limit: int, dataset: str) -> list[Encoded]:
    """Tokenise the texts and find the tokens of their answers.

    A token belongs to the answer if it shares a character with text[answer_start:answer_end], or
    if it is nothing but the space right before it (tokenizers split " 42" into space and digits).

    Args:
        examples: with columns id, text, answer_start, answer_end.
        tokenizer: fast tokenizer with character offsets.
        limit: tokens that the model takes, separator included.
        dataset: named in errors.
    Raises:
        UserError: with the example's id, where the answer is empty or outside the text, or the text too long.
    """
    prefix = models.separator(tokenizer)
    texts = examples["text"].tolist()
    coded = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False, split_special_tokens=True
    )
    result = []
    for name, text, start, end, ids, offsets in zip(
        examples["id"], texts, examples["answer_start"], examples["answer_end"],
        coded["input_ids"], coded["offset_mapping"], strict=True,
    ):  # fmt: skip
        if len(ids) + 1 > limit:
            raise UserError(
                f"data set {dataset}, id {name}: the text has {len(ids) + 1} tokens, the model takes {limit}; "
                "shorten or remove this text, or choose a model with a longer context"
            )
        places = answer_tokens(text, int(start), int(end), offsets)
        if not places.size:
            raise UserError(
                f"data set {dataset}, id {name}: characters {start}..{end} of its text of {len(text)} hold no answer; "
                "expected the answer's text there: fix the answer or remove this row"
            )
        result.append(Encoded(np.array([prefix, *ids], dtype=np.int64), places + 1))
    return result


def answer_tokens(text: str, start: int, end: int, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Indices of the tokens that make up text[start:end], given every token's character range.

    Empty when the range is empty, blank or outside the text.
    """
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        return np.empty(0, dtype=np.int64)
    places = [
        place
        for place, (first, last) in enumerate(offsets)
        if (first < end and last > start) or (last == start and first < last and not text[first:last].strip(" "))
    ]
    return np.array(places, dtype=np.int64)
