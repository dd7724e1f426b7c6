"""Rows and tokens on which each feature fires, from one pass over a store in blocks of rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import BLOCK_ROWS, Rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Tokens per feature that are kept between blocks. With 64 active features per row they need less
# memory than the codes of a block. A feature that fires on more different tokens is specific to
# none of them, and its sums may be slightly too small.
MAX_TOKENS = 512
# Pseudo-count: silent rows that are added to the rows of each token, because a token that
# occurs once is no evidence.
SILENT_ROWS = 2


class Strongest(NamedTuple):
    """Entries by feature; per feature by activation, strongest first, ties by row."""

    feature: Ints  # (entries,)
    row: Ints  # (entries,) of the store
    activation: npt.NDArray[np.float32]  # (entries,) in the scale of the codes


class TokenSums(NamedTuple):
    """Entries by feature; per feature by `score`, highest first, ties by token."""

    feature: Ints  # (entries,)
    token: Ints  # (entries,)
    total: Floats  # (entries,) sum of activations over the included rows of the token
    score: Floats  # (entries,) total / (included rows of the token + SILENT_ROWS)


class Firing(NamedTuple):
    """Statistics from one pass."""

    rows: int  # included rows
    fired: Ints  # (d_sae,) rows on which each feature is active
    total: Floats  # (d_sae,) sum of each feature's activations
    top_rows: Strongest
    top_tokens: TokenSums
    occurrences: Ints  # (largest token + 1,) included rows of each token


@torch.no_grad()
def collect(sae: Sae, store: Rows, tokens: npt.NDArray[np.int32], count: int) -> Firing:
    """Counts, strongest rows and most characteristic tokens of each feature, on the included rows.

    Memory does not depend on the number of rows: it holds the codes of a block and the best entries
    of each feature.

    Args:
        sae: the autoencoder.
        store: activations.
        tokens: (rows,) the token of each row.
        count: rows and tokens per feature; fewer if it fires on fewer.
    """
    included = np.flatnonzero(~store.excluded)
    occurrences = np.bincount(tokens[included])
    fired, total = np.zeros(sae.d_sae, dtype=np.int64), np.zeros(sae.d_sae)
    top = Strongest(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    keys, sums = np.empty(0, np.int64), np.empty(0)
    for start in range(0, store.rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, store.rows)
        rows = included[np.searchsorted(included, start) : np.searchsorted(included, stop)]
        x = torch.from_numpy(store.read(start, stop)[rows - start].astype(np.float32))
        active = _active(sae, x, rows)
        fired += np.bincount(active.feature, minlength=sae.d_sae)
        total += np.bincount(active.feature, active.activation, sae.d_sae)
        top = _best(top, active, count)
        keys, sums = _added(
            keys,
            sums,
            active.feature * len(occurrences) + tokens[active.row],
            active.activation,
            occurrences,
        )
    return Firing(
        len(included), fired, total, top, _ranked(keys, sums, occurrences, count), occurrences
    )


def highest(group: Ints, score: npt.NDArray[np.floating], tie: Ints, count: int) -> Ints:
    """Indices of the `count` highest scores of each group.

    Sorted by group, then by score, highest first, then by `tie`, lowest first.
    """
    order = np.lexsort((tie, -score, group))
    ordered = group[order]
    return order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < count]


def _best(known: Strongest, new: Strongest, count: int) -> Strongest:
    """The best entries of both, per feature."""
    feature = np.concatenate([known.feature, new.feature])
    row = np.concatenate([known.row, new.row])
    activation = np.concatenate([known.activation, new.activation])
    best = highest(feature, activation, row, count)
    return Strongest(feature[best], row[best], activation[best])


def _active(sae: Sae, x: torch.Tensor, rows: Ints) -> Strongest:
    """The active entries of a block x (rows, d_model), in row order."""
    code = sae.encode(x)  # (rows, d_sae)
    row, feature = torch.nonzero(code, as_tuple=True)
    return Strongest(feature.numpy(), rows[row.numpy()], code[row, feature].numpy())


def _added(
    keys: Ints, sums: Floats, new: Ints, activation: npt.NDArray[np.float32], occurrences: Ints
) -> tuple[Ints, Floats]:
    """Add a block's entries to the sums by key = feature * tokens + token.

    Only the best `MAX_TOKENS` tokens of each feature are kept.
    """
    keys, index = np.unique(np.concatenate([keys, new]), return_inverse=True)
    sums = np.bincount(index, np.concatenate([sums, activation]), len(keys)).astype(np.float64)
    feature, token = np.divmod(keys, len(occurrences))
    if len(keys) and np.bincount(feature).max() > MAX_TOKENS:
        best = np.sort(
            highest(feature, sums / (occurrences[token] + SILENT_ROWS), token, MAX_TOKENS)
        )
        keys, sums = keys[best], sums[best]
    return keys, sums


def _ranked(keys: Ints, sums: Floats, occurrences: Ints, count: int) -> TokenSums:
    feature, token = np.divmod(keys, max(len(occurrences), 1))
    score = sums / (occurrences[token] + SILENT_ROWS)
    best = highest(feature, score, token, count)
    return TokenSums(feature[best], token[best], sums[best], score[best])
