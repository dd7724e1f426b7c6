"""Exact maximum-weight bipartite matching for thousands of small problems at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Assignment(NamedTuple):
    """The chosen edges, and how many edges the solver had to decide."""

    kept: Flags  # (edges,)
    hard: int  # edges that the exact greedy rule left to scipy's solver


def assign(left: Ints, right: Ints, weight: NDArray[np.floating]) -> Assignment:
    """Choose the edges of largest total weight such that no node has two of them.

    The edges of many independent problems come in one call; problems share no nodes. An unmatched
    node has weight 0, so births and deaths of tracks are part of the optimum. A greedy rule that
    never loses the optimum settles nearly all edges (`_peel`). scipy's assignment solver settles
    the rest, one connected component at a time. Ties go to the earlier edge.

    Args:
        left: (edges,) node on the earlier side, non-negative.
        right: (edges,) node on the later side, numbered independently of `left`.
        weight: (edges,) above 0; rounded to float32.
    """
    kept = np.zeros(len(weight), dtype=bool)
    if not len(weight):
        return Assignment(kept, 0)
    weight = weight.astype(np.float32)
    order = _heaviest_first(weight)
    lefts, rights = _compact(left)[order], _compact(right)[order]
    weights = weight[order].astype(np.float64)
    alive = np.arange(len(order))
    while len(alive):
        settled = _peel(lefts[alive], rights[alive], weights[alive])
        if not settled.any():
            break
        chosen = alive[settled]
        kept[order[chosen]] = True
        taken_left, taken_right = np.zeros(lefts.max() + 1, bool), np.zeros(rights.max() + 1, bool)
        taken_left[lefts[chosen]] = taken_right[rights[chosen]] = True
        alive = alive[~taken_left[lefts[alive]] & ~taken_right[rights[alive]]]
    if len(alive):
        kept[order[alive[_solve(lefts[alive], rights[alive], weights[alive])]]] = True
    return Assignment(kept, len(alive))


def _heaviest_first(weight: NDArray[np.float32]) -> Ints:
    """Indices of the edges by descending weight, ties by index.

    One integer sort does it: positive floats have the same order as their bit patterns.
    """
    down = np.iinfo(np.int32).max - weight.view(np.int32).astype(np.int64)
    order: Ints = np.sort((down << 32) | np.arange(len(weight))) & np.int64(2**32 - 1)
    return order


def _compact(nodes: Ints) -> Ints:
    """Renumber the nodes without gaps, in the same order. Memory grows with the largest number."""
    used = np.zeros(nodes.max() + 1, dtype=bool)
    used[nodes] = True
    number: Ints = np.cumsum(used) - 1
    return number[nodes]


def _peel(left: Ints, right: Ints, weight: Floats) -> Flags:
    """Edges that some optimum contains.

    Such an edge is the heaviest of both its nodes and weighs at least as much as the second
    heaviest edges of its two nodes together. An optimum without it uses at most one other edge at
    each of its nodes. Replacing these by the edge loses nothing. Edges come heaviest first; the
    edges returned share no node.
    """
    best_left, second_left = _two_best(left, weight)
    best_right, second_right = _two_best(right, weight)
    settled: Flags = best_left & best_right & (weight >= second_left[left] + second_right[right])
    return settled


def _two_best(node: Ints, weight: Floats) -> tuple[Flags, Floats]:
    """Whether an edge is its node's heaviest, and the weight of each node's second heaviest edge.

    The second value is 0 for a node with one edge.
    """
    edges = np.arange(len(node))
    first = np.zeros(node.max() + 1, dtype=np.int64)
    first[node[::-1]] = edges[::-1]  # the heaviest edge is written last and stays
    best = first[node] == edges
    second = np.zeros(len(first))
    second[node[~best][::-1]] = weight[~best][::-1]
    return best, second


def _solve(left: Ints, right: Ints, weight: Floats) -> Flags:
    """Solve the remaining edges with scipy, component by component."""
    left, right = _compact(left), _compact(right)
    n_left, n_nodes = left.max() + 1, left.max() + right.max() + 2
    graph = coo_array(
        (np.ones(len(left), np.int8), (left, right + n_left)), shape=(n_nodes, n_nodes)
    )
    count, component = connected_components(graph, directed=False)
    heights, row_of = _index_in_component(component[:n_left], count)
    widths, column_of = _index_in_component(component[n_left:], count)
    # The dense matrices of all components, one after another in a flat buffer.
    starts = np.concatenate([[0], np.cumsum(heights * widths)])
    block = component[left]
    cell = starts[block] + row_of[left] * widths[block] + column_of[right]
    dense, edge_in = np.zeros(starts[-1]), np.full(starts[-1], -1)
    dense[cell], edge_in[cell] = weight, np.arange(len(weight))
    kept = np.zeros(len(weight), dtype=bool)
    for start, height, width in zip(
        starts.tolist(), heights.tolist(), widths.tolist(), strict=False
    ):
        matrix = dense[start : start + height * width].reshape(height, width)
        row, column = linear_sum_assignment(matrix, maximize=True)
        edges = edge_in[start + row * width + column]
        kept[edges[edges >= 0]] = True
    return kept


def _index_in_component(component: NDArray[np.int32], count: int) -> tuple[Ints, Ints]:
    """Number of nodes of each component, and the index of each node within its component."""
    sizes = np.bincount(component, minlength=count).astype(np.int64)
    order = np.argsort(component, kind="stable")
    index = np.empty(len(component), dtype=np.int64)
    index[order] = np.arange(len(component)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return sizes, index
