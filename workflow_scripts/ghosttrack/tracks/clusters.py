"""Semantic clusters: communities of features of all layers that are linked or fire together."""

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


class FeatureEdges(NamedTuple):
    """Edges between the features of two analysed layers, all arrays (edges,)."""

    lower: int  # position of the layer
    upper: int
    source: NDArray[np.int64]  # feature of the lower layer
    target: NDArray[np.int64]
    weight: NDArray[np.float64]


def graph(sizes: Sequence[int], edges: Sequence[FeatureEdges]) -> sparse.csr_array:
    """Symmetric adjacency of all features of all layers, ordered by layer.

    Weights of repeated edges add up.

    Args:
        sizes: features of each layer.
    """
    offset = np.concatenate([[0], np.cumsum(sizes)])
    empty = np.zeros(0, np.int64)
    row = np.concatenate([empty, *(part.source + offset[part.lower] for part in edges)])
    column = np.concatenate([empty, *(part.target + offset[part.upper] for part in edges)])
    weight = np.concatenate([np.zeros(0), *(part.weight for part in edges)])
    nodes = int(offset[-1])
    half = sparse.csr_array((weight, (row, column)), shape=(nodes, nodes))
    return sparse.csr_array(half + half.T)


def communities(adjacency: sparse.csr_array, resolution: float) -> NDArray[np.int64]:
    """Community of every node, numbered by descending size; isolated nodes are alone.

    Louvain's method (Blondel et al. 2008, arXiv:0803.0476) on Newman's modularity with a resolution
    (Reichardt & Bornholdt 2006, arXiv:cond-mat/0603718). Nodes are visited in order, so the result
    is deterministic.

    Args:
        resolution: per RESOLUTION_NODES nodes; at a constant resolution communities grow with the
            graph.
    """
    from sknetwork.clustering import Louvain

    connected = np.flatnonzero(np.diff(adjacency.indptr))
    labels = np.full(adjacency.shape[0], -1, dtype=np.int64)
    if len(connected):
        subgraph = sparse.csr_matrix(adjacency[connected][:, connected])
        scaled = resolution * adjacency.shape[0] / RESOLUTION_NODES
        labels[connected] = Louvain(
            resolution=scaled, modularity="newman", shuffle_nodes=False
        ).fit_predict(subgraph)
    isolated = labels < 0
    labels[isolated] = labels.max(initial=-1) + 1 + np.arange(isolated.sum())
    # By descending size, then by the lowest node.
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

    `weight` is the sum of a feature's edge weights. `inside` is the fraction of it within the
    feature's cluster; it is 0 for a feature without edges.
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
    """Cluster of every feature, one array (d_sae,) per layer, in the order of `layers`.

    Raises:
        UserError: the features of a layer are not complete.
    """
    clusters = []
    for layer in layers:
        part = table[table["layer"] == layer]
        if not len(part) or not np.array_equal(part["feature"].to_numpy(), np.arange(len(part))):
            raise UserError(
                f"clusters.parquet: its {len(part)} features of layer {layer} are not complete or not "
                "in order: delete it and run again, rule cluster_features writes it again"
            )
        clusters.append(part["cluster"].to_numpy(np.int32))
    return clusters
