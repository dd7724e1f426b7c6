"""Coactivation of the features of two layers, and of both ends of a link, on held-out tokens."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ghosttrack.sae import Sae
from ghosttrack.sae.rows import BLOCK_ROWS, Rows
from ghosttrack.tracks.neighbours import Links

# Held-out rows to read: with 64 active features a row, 32,768 rows resolve pairs that share a fifth
# of their tokens.
MAX_ROWS = 32_768
# A feature that fires on fewer rows shares some of them with others by chance.
MIN_FIRINGS = 10
# A pair is kept if each feature is among the PARTNERS best of the other. All pairs above the gate
# would be four times as many as links, connect common features to everything, and dissolve the
# communities.
PARTNERS = 3
# Lower features per block of joint counts: 1024 x 16384 float32 are 64 MiB.
_BLOCK = 1024


class CoactivePairs(NamedTuple):
    """Pairs of features of two layers that fire together, all (pairs,), without repeats.

    `similarity` is the cosine of the two binary firing patterns.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    similarity: NDArray[np.float64]


class LinkFirings(NamedTuple):
    """How often the ends of a layer pair's links fire on held-out tokens.

    A link fires on a token if both its ends do.
    """

    tokens: int
    links: int  # pairs of features above the gate
    permuted_links: int  # the same for permuted decoders
    links_per_token: float  # links that fire, per token
    permuted_links_per_token: float
    next_fires: float  # fraction of the firings of a link's lower end at which the upper end fires
    next_fires_shuffled_links: float  # the same with the upper ends shuffled among the links


class CoactivationResult(NamedTuple):
    """Coactive pairs above a gate that shuffled rows set, and the firings of the links."""

    pairs: CoactivePairs
    gate: float
    firings: LinkFirings


def firing(sae: Sae, store: Rows, at_most: int = MAX_ROWS) -> sparse.csr_array:
    """Whether a feature fires on a row, sparse (rows, d_sae) of ones; excluded rows are empty.

    A larger store is sampled in evenly spaced blocks of about `at_most` rows, the same in every
    layer.
    """
    starts = np.arange(0, store.rows, BLOCK_ROWS)
    count = max(1, round(at_most / BLOCK_ROWS))
    if count < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, count).round().astype(np.int64)]
    parts = []
    for start in starts.tolist():
        stop = min(start + BLOCK_ROWS, store.rows)
        with torch.inference_mode():
            active = (
                sae.encode(torch.from_numpy(store.read(start, stop).astype(np.float32))).numpy() > 0
            )
        active[store.excluded[start:stop]] = False
        parts.append(sparse.csr_array(active, dtype=np.float32))
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def compare_firing(
    lower: sparse.csr_array,
    upper: sparse.csr_array,
    links: Links,
    permuted: Links,
    quantile: float,
    generator: np.random.Generator,
) -> CoactivationResult:
    """Find pairs of features of two layers that fire together, and count the firings of the links.

    The gate is the `quantile` of the best-match similarities (each feature against the whole other
    layer, both directions) with the upper layer's rows shuffled. A pair is above the gate and
    mutual, see `mutual`. Features with fewer than MIN_FIRINGS firings are left out.

    Args:
        lower, upper: (rows, d_sae) from `firing`, for the same rows.
        links, permuted: between the two decoders, and between permuted ones.
    """
    shuffled = upper[generator.permutation(upper.shape[0])]
    gate = float(np.quantile(_best(lower, shuffled), quantile))
    ends = [
        (table, np.repeat(np.arange(len(table.start) - 1), np.diff(table.start)))
        for table in (links, permuted)
    ]
    (_, source), (_, permuted_source) = ends
    shuffled_targets = generator.permutation(links.target)
    together = np.zeros(3)  # tokens, summed over links, permuted links, shuffled links
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for start, counts, similarity in _joint(lower, upper):
        row, column = np.nonzero(similarity > gate)
        pairs.append((row + start, column, similarity[row, column].astype(np.float64)))
        for position, (first, second) in enumerate(
            ((source, links.target), (permuted_source, permuted.target), (source, shuffled_targets))
        ):
            in_block = (first >= start) & (first < start + len(counts))
            together[position] += counts[first[in_block] - start, second[in_block]].sum(
                dtype=np.float64
            )
    fired = float(_firings(lower)[source].sum())
    tokens = int((np.diff(lower.indptr) > 0).sum())
    per_token = together / max(tokens, 1)
    return CoactivationResult(
        mutual(CoactivePairs(*(np.concatenate(column) for column in zip(*pairs, strict=True)))),
        gate,
        LinkFirings(
            tokens,
            len(source),
            len(permuted_source),
            float(per_token[0]),
            float(per_token[1]),
            float(together[0] / max(fired, 1.0)),
            float(together[2] / max(fired, 1.0)),
        ),
    )


def mutual(pairs: CoactivePairs, partners: int = PARTNERS) -> CoactivePairs:
    """Pairs among the `partners` best of both features; ties go to the lower partner."""
    kept = np.ones(len(pairs.similarity), dtype=bool)
    for feature, other in ((pairs.lower, pairs.upper), (pairs.upper, pairs.lower)):
        order = np.lexsort((other, -pairs.similarity, feature))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(feature[order], feature[order])
        kept &= rank < partners
    return CoactivePairs(pairs.lower[kept], pairs.upper[kept], pairs.similarity[kept])


def _firings(active: sparse.csr_array) -> NDArray[np.float64]:
    return np.asarray(active.sum(axis=0), dtype=np.float64).reshape(-1)


def _joint(
    lower: sparse.csr_array, upper: sparse.csr_array
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield blocks of lower features, as (start, counts, similarity).

    `counts` (block, d_upper) are the rows on which both features fire, `similarity` is the cosine
    of their firing patterns.
    """
    transposed = sparse.csr_array(lower.T)
    norms = [
        np.where(count < MIN_FIRINGS, np.inf, np.sqrt(count))
        for count in (_firings(lower), _firings(upper))
    ]
    for start in range(0, transposed.shape[0], _BLOCK):
        counts = (transposed[start : start + _BLOCK] @ upper).toarray()
        scale = norms[0][start : start + _BLOCK, None] * norms[1]
        yield start, counts, (counts / scale).astype(np.float32)


def _best(lower: sparse.csr_array, upper: sparse.csr_array) -> NDArray[np.float32]:
    """Best match of every feature of either layer with enough firings, pooled; 0 without any."""
    forward, backward = [np.zeros(1, np.float32)], np.zeros(upper.shape[1], np.float32)
    for _, _, similarity in _joint(lower, upper):
        forward.append(similarity.max(axis=1))
        backward = np.maximum(backward, similarity.max(axis=0))
    best = np.concatenate([*forward, backward])
    return best[best > 0] if (best > 0).any() else best[:1]
