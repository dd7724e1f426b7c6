"""Forward passes of texts that begin alike: what they share is computed once, and kept as keys and values."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.errors import UserError

Tokens = npt.NDArray[np.int64]


class Started(NamedTuple):
    """What a model keeps of the beginnings of some texts, all of one length, and its prediction after each.

    cache: keys and values of all blocks, one row a beginning; length: tokens of a beginning; final: final hidden
    state at its last token, (beginnings, d_model).
    """

    cache: Any
    length: int
    final: torch.Tensor


def start(model: Any, beginnings: Sequence[Tokens], before: Started | None = None) -> Started:
    """Run beginnings of equal length, after what `before` holds in its only row, if anything.

    Raises:
        UserError: a model that keeps no keys and values, such as a recurrent one.
    """
    ids = torch.from_numpy(np.stack(beginnings)).to(model.device)
    cache = _rows(before, len(beginnings)) if before else None
    result = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache = getattr(result, "past_key_values", None)
    if cache is None or not hasattr(cache, "batch_select_indices"):
        raise UserError(
            f"{type(model).__name__} keeps no keys and values of what it has read, so texts cannot share a beginning: "
            "this architecture is not supported; choose another model"
        )
    return Started(cache, ids.shape[1] + (before.length if before else 0), result.last_hidden_state[:, -1])


def forward(
    model: Any, texts: Sequence[Tokens], after: Started | None, rows: Sequence[int] | None = None
) -> torch.Tensor:
    """Final hidden states of the texts' own tokens, (texts, tokens, d_model), padded on the right, where no token can see it.

    Args:
        after: the beginnings that the texts go on from; None: each text stands alone.
        rows: which beginning each text goes on from; None: all from the first one.
    """
    longest = max(map(len, texts))
    # The first token pads: any token that exists would do.
    ids = torch.full((len(texts), longest), int(texts[0][0]))
    mask = torch.zeros(len(texts), (after.length if after else 0) + longest, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        mask[row, : mask.shape[1] - longest + len(text)] = 1
    cache = _rows(after, len(texts), rows) if after else None
    result = model.base_model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), past_key_values=cache, use_cache=after is not None,
    )  # fmt: skip
    final: torch.Tensor = result.last_hidden_state
    return final


def _rows(started: Started, count: int, rows: Sequence[int] | None = None) -> Any:
    """A cache of its own for `count` texts: the pass that uses it appends to it."""
    cache = copy.copy(started.cache)
    cache.layers = [copy.copy(layer) for layer in started.cache.layers]
    cache.batch_select_indices(torch.tensor(rows if rows is not None else [0] * count, device=started.final.device))
    return cache


def common_length(texts: Sequence[Tokens]) -> int:
    """Tokens at the head of every text that are the same in all."""
    least = min(map(len, texts))
    table = np.stack([text[:least] for text in texts])
    differing = np.flatnonzero((table != table[0]).any(axis=0))
    return int(differing[0]) if len(differing) else least
