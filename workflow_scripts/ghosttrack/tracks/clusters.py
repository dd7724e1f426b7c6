"""Semantic clusters: features of all layers that link to each other or fire on the same tokens, by community detection."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from ghosttrack.errors import UserError

# Columns of clusters.parquet.
COLUMNS = ("layer", "feature", "cluster", "weight", "inside")

RESOLUTION_NODES = 10_000


class Edges(NamedTuple):
    """Pairs of features of two analysed layers (positions), with the strength of what joins them: all (edges,)."""

    lower: int
    upper: int
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float64]


def graph(sizes: Sequence[int], edges: Sequence[Edges]) -> sparse.csr_array:
    """All features of all layers as nodes, in order of layer; weights of edges named twice add up. Symmetric.

    Args:
        sizes: features of each layer.
    """
    offset = np.concatenate([[0], np.cumsum(sizes)])
    empty = np.zeros(0, np.int64)
    row = np.concatenate([empty, *(each.source + offset[each.lower] for each in edges)])
    column = np.concatenate([empty, *(each.target + offset[each.upper] for each in edges)])
    weight = np.concatenate([np.zeros(0), *(each.weight for each in edges)])
    nodes = int(offset[-1])
    half = sparse.csr_array((weight, (row, column)), shape=(nodes, nodes))
    return sparse.csr_array(half + half.T)


def communities(adjacency: sparse.csr_array, resolution: float) -> NDArray[np.int64]:
    """Community of every node, numbered from the largest; a node without edges is alone.

    Louvain's method (Blondel et al. 2008, arXiv:0803.0476) on Newman's modularity with a resolution
    (Reichardt & Bornholdt 2006, arXiv:cond-mat/0603718). Nodes are visited in their own order: nothing is random.

    Args:
        resolution: for each RESOLUTION_NODES nodes, because at a fixed one communities grow with the graph.
    """
    from sknetwork.clustering import Louvain

    joined = np.flatnonzero(np.diff(adjacency.indptr))
    labels = np.full(adjacency.shape[0], -1, dtype=np.int64)
    if len(joined):
        among = sparse.csr_matrix(adjacency[joined][:, joined])
        scaled = resolution * adjacency.shape[0] / RESOLUTION_NODES
        labels[joined] = Louvain(
            resolution=scaled, modularity="newman", shuffle_nodes=False
        ).fit_predict(among)
    alone = labels < 0
    labels[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    # Largest first; of equal size the one with the lowest node.
    _, first, inverse, size = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return rank[inverse]


def assign(
    layers: Sequence[int], sizes: Sequence[int], adjacency: sparse.csr_array, resolution: float
) -> pd.DataFrame:
    """The cluster of every feature, in the columns COLUMNS, ordered by layer and feature.

    `weight` is the sum of a feature's edges, `inside` the share of it that stays within its cluster
    (1 = nothing leads out; 0 for a feature without edges).
    """
    cluster = communities(adjacency, resolution)
    pairs = adjacency.tocoo()
    total = np.asarray(adjacency.sum(axis=1)).reshape(-1)
    same = cluster[pairs.row] == cluster[pairs.col]
    inside = np.bincount(pairs.row[same], pairs.data[same], minlength=len(cluster))
    return pd.DataFrame(
        {
            "layer": np.repeat(np.asarray(layers, np.int32), sizes),
            "feature": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            "cluster": cluster.astype(np.int32),
            "weight": total.astype(np.float32),
            "inside": (inside / np.where(total > 0, total, 1.0)).astype(np.float32),
        }
    )


def lookup(table: pd.DataFrame, layers: Sequence[int]) -> list[NDArray[np.int32]]:
    """Cluster of every feature, one array (d_sae,) a layer, in the order of `layers`: how tracks get theirs.

    Raises:
        UserError: a layer is missing, or its features are not complete.
    """
    found = []
    for layer in layers:
        part = table[table["layer"] == layer]
        if not len(part) or not np.array_equal(part["feature"].to_numpy(), np.arange(len(part))):
            raise UserError(
                f"clusters.parquet holds {len(part)} features of layer {layer}, not every one in order: "
                "delete it and run again, rule cluster_features remakes it"
            )
        found.append(part["cluster"].to_numpy(np.int32))
    return found
