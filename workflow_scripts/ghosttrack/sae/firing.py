"""On what each feature fires: one pass over the rows of a store, block by block, that keeps only each feature's best."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import BLOCK_ROWS, Rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Tokens of each feature that stay in view between blocks: with 64 active features a row they need less memory than a
# block's codes. A feature that fires on more different tokens is about none of them, and only its sums may lack a little.
TOKENS_IN_VIEW = 512
# Rows on which each token is taken to have been silent, beside those seen: a token that was seen once is no evidence.
SILENT_ROWS = 2


class Strongest(NamedTuple):
    """Entries by feature; within a feature by activation, strongest first, ties by row."""

    feature: Ints  # (entries,)
    row: Ints  # (entries,) of the store
    activation: npt.NDArray[np.float32]  # (entries,) in the scale of the codes


class TokenSums(NamedTuple):
    """Entries by feature; within a feature by `score`, highest first, ties by token."""

    feature: Ints  # (entries,)
    token: Ints  # (entries,)
    total: Floats  # (entries,) activation, summed over the kept rows of this token
    score: Floats  # (entries,) total / (kept rows of this token + SILENT_ROWS)


class Firing(NamedTuple):
    """What one pass finds."""

    rows: int  # kept rows
    fired: Ints  # (d_sae,) rows on which a feature is active
    total: Floats  # (d_sae,) sum of its activations
    rows_of: Strongest
    tokens_of: TokenSums
    occurrences: Ints  # (largest token + 1,) kept rows of each token


@torch.no_grad()
def collect(sae: Sae, store: Rows, tokens: npt.NDArray[np.int32], count: int) -> Firing:
    """Counts, and the `count` strongest rows and most characteristic tokens of each feature, on the kept rows.

    Memory is that of a block of codes and of each feature's best, however many rows there are.

    Args:
        sae: the autoencoder.
        store: activations.
        tokens: (rows,) the token that each row was computed from.
        count: rows and tokens to name for each feature; fewer where it fires on fewer.
    """
    kept = np.flatnonzero(~store.excluded)
    occurrences = np.bincount(tokens[kept])
    fired, total = np.zeros(sae.d_sae, dtype=np.int64), np.zeros(sae.d_sae)
    top = Strongest(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    keys, sums = np.empty(0, np.int64), np.empty(0)
    for start in range(0, store.rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, store.rows)
        rows = kept[np.searchsorted(kept, start) : np.searchsorted(kept, stop)]
        x = torch.from_numpy(store.read(start, stop)[rows - start].astype(np.float32))
        found = _active(sae, x, rows)
        fired += np.bincount(found.feature, minlength=sae.d_sae)
        total += np.bincount(found.feature, found.activation, sae.d_sae)
        top = _best(top, found, count)
        keys, sums = _added(
            keys,
            sums,
            found.feature * len(occurrences) + tokens[found.row],
            found.activation,
            occurrences,
        )
    return Firing(
        len(kept), fired, total, top, _ranked(keys, sums, occurrences, count), occurrences
    )


def highest(group: Ints, score: npt.NDArray[np.floating], tie: Ints, count: int) -> Ints:
    """Places of the `count` highest scores of each group: by group, then score, highest first, then `tie`, lowest first."""
    order = np.lexsort((tie, -score, group))
    ordered = group[order]
    return order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < count]


def _best(known: Strongest, new: Strongest, count: int) -> Strongest:
    """The best entries of both."""
    feature = np.concatenate([known.feature, new.feature])
    row = np.concatenate([known.row, new.row])
    activation = np.concatenate([known.activation, new.activation])
    best = highest(feature, activation, row, count)
    return Strongest(feature[best], row[best], activation[best])


def _active(sae: Sae, x: torch.Tensor, rows: Ints) -> Strongest:
    """The active entries of a block x (rows, d_model), in row order."""
    code = sae.encode(x)  # (rows, d_sae)
    place, feature = torch.nonzero(code, as_tuple=True)
    return Strongest(feature.numpy(), rows[place.numpy()], code[place, feature].numpy())


def _added(
    keys: Ints, sums: Floats, new: Ints, activation: npt.NDArray[np.float32], occurrences: Ints
) -> tuple[Ints, Floats]:
    """Sums by key = feature * tokens + token, with a block's entries added; each feature's best stay in view."""
    keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
    sums = np.bincount(place, np.concatenate([sums, activation]), len(keys)).astype(np.float64)
    feature, token = np.divmod(keys, len(occurrences))
    if len(keys) and np.bincount(feature).max() > TOKENS_IN_VIEW:
        best = np.sort(
            highest(feature, sums / (occurrences[token] + SILENT_ROWS), token, TOKENS_IN_VIEW)
        )
        keys, sums = keys[best], sums[best]
    return keys, sums


def _ranked(keys: Ints, sums: Floats, occurrences: Ints, count: int) -> TokenSums:
    feature, token = np.divmod(keys, max(len(occurrences), 1))
    score = sums / (occurrences[token] + SILENT_ROWS)
    best = highest(feature, score, token, count)
    return TokenSums(feature[best], token[best], sums[best], score[best])
