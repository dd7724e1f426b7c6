"""Which features of two layers fire on the same held-out tokens, and how often both ends of a link do."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ghosttrack.sae import Sae
from ghosttrack.sae.rows import BLOCK_ROWS, Rows
from ghosttrack.tracks.neighbours import Links

# Held-out rows that are looked at: 32,768 x 64 active features tell pairs apart that share a fifth of their tokens.
AT_MOST_ROWS = 32_768
# A feature that fires on fewer rows shares some of them with another by chance.
LEAST_FIRINGS = 10
# Of each feature's partners these many best ones stay, if it is among theirs too: all pairs above the gate, four times as
# many as links, tie common features to everything, and communities dissolve.
PARTNERS = 3
# Features of the lower layer whose joint counts are held at once: 1024 x 16384 float32 are 64 MiB.
_BLOCK = 1024


class Pairs(NamedTuple):
    """Features of two layers that fire together, each pair once: all (pairs,); similarity is the cosine of their firings."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    similarity: NDArray[np.float64]


class LinkFirings(NamedTuple):
    """How the links of a layer pair fare on text. "Together": both ends of a link fire on a token."""

    tokens: int
    links: int  # pairs of features above the gate
    permuted_links: int  # the same of permuted decoders
    links_per_token: float  # links whose ends fire together
    permuted_links_per_token: float
    next_fires: (
        float  # of the firings of a link's lower end, the share at which the upper end fires
    )
    next_fires_relinked: float  # the same with the upper ends dealt out anew among the links


class Compared(NamedTuple):
    """Two layers on the same text: what fires together, above a gate that shuffled rows set, and the links."""

    pairs: Pairs
    gate: float
    firings: LinkFirings


def firing(sae: Sae, store: Rows, at_most: int = AT_MOST_ROWS) -> sparse.csr_array:
    """Whether a feature fires on a row, (rows, d_sae) of ones; excluded rows are empty.

    Of a larger store, blocks that are evenly spread and hold about `at_most` rows, the same for every layer.
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
) -> Compared:
    """Pairs of features of two layers whose firings are more alike than chance and that are each other's best, and how the links fare.

    The gate is the `quantile` of the best matches (each feature against all of the other layer, both directions)
    when the upper layer's rows are shuffled. Features that hardly ever fire are left out.

    Args:
        lower, upper: (rows, d_sae) from `firing`, the same rows.
        links, permuted: between the two decoders, and between permuted ones.
    """
    shuffled = upper[generator.permutation(upper.shape[0])]
    gate = float(np.quantile(_best(lower, shuffled), quantile))
    ends = [
        (each, np.repeat(np.arange(len(each.start) - 1), np.diff(each.start)))
        for each in (links, permuted)
    ]
    (_, source), (_, permuted_source) = ends
    relinked = generator.permutation(links.target)
    together = np.zeros(3)  # tokens, summed over links, permuted links, links dealt out anew
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for start, counts, similarity in _joint(lower, upper):
        row, column = np.nonzero(similarity > gate)
        found.append((row + start, column, similarity[row, column].astype(np.float64)))
        for place, (first, second) in enumerate(
            ((source, links.target), (permuted_source, permuted.target), (source, relinked))
        ):
            here = (first >= start) & (first < start + len(counts))
            together[place] += counts[first[here] - start, second[here]].sum(dtype=np.float64)
    fired = float(_firings(lower)[source].sum())
    tokens = int((np.diff(lower.indptr) > 0).sum())
    per_token = together / max(tokens, 1)
    return Compared(
        mutual(Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))),
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


def mutual(pairs: Pairs, partners: int = PARTNERS) -> Pairs:
    """Those pairs that are among the `partners` best of both their features; ties: the lower partner."""
    kept = np.ones(len(pairs.similarity), dtype=bool)
    for feature, other in ((pairs.lower, pairs.upper), (pairs.upper, pairs.lower)):
        order = np.lexsort((other, -pairs.similarity, feature))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(feature[order], feature[order])
        kept &= rank < partners
    return Pairs(pairs.lower[kept], pairs.upper[kept], pairs.similarity[kept])


def _firings(active: sparse.csr_array) -> NDArray[np.float64]:
    return np.asarray(active.sum(axis=0), dtype=np.float64).reshape(-1)


def _joint(
    lower: sparse.csr_array, upper: sparse.csr_array
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Blocks of lower features: the first, rows on which both fire (block, d_upper), and the cosine of the firings."""
    transposed = sparse.csr_array(lower.T)
    norms = [
        np.where(count < LEAST_FIRINGS, np.inf, np.sqrt(count))
        for count in (_firings(lower), _firings(upper))
    ]
    for start in range(0, transposed.shape[0], _BLOCK):
        counts = (transposed[start : start + _BLOCK] @ upper).toarray()
        scale = norms[0][start : start + _BLOCK, None] * norms[1]
        yield start, counts, (counts / scale).astype(np.float32)


def _best(lower: sparse.csr_array, upper: sparse.csr_array) -> NDArray[np.float32]:
    """Best match of every feature of either layer that fires often enough, pooled; 0 if none does."""
    forward, backward = [np.zeros(1, np.float32)], np.zeros(upper.shape[1], np.float32)
    for _, _, similarity in _joint(lower, upper):
        forward.append(similarity.max(axis=1))
        backward = np.maximum(backward, similarity.max(axis=0))
    best = np.concatenate([*forward, backward])
    return best[best > 0] if (best > 0).any() else best[:1]
