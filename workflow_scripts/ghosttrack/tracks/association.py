"""One-to-one links of the largest total weight, exact, for thousands of small problems in one pass."""

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
    """Chosen edges, and how many of the edges were left to the solver."""

    kept: Flags  # (edges,)
    hard: int


def assign(left: Ints, right: Ints, weight: NDArray[np.floating]) -> Assignment:
    """Choose the set of edges of largest total weight in which no node appears twice.

    The edges of any number of problems come together; problems share no nodes. Staying unmatched
    has weight 0, so births and deaths compete with every link inside the optimum. Nearly all edges
    are settled by a rule that never loses the optimum (`_peel`); what it cannot settle goes to
    scipy's assignment, one connected component at a time. Ties go to the earlier edge.

    Args:
        left: (edges,) node on the earlier side, any non-negative numbers.
        right: (edges,) node on the later side, numbered apart from `left`.
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
    """The order of every step above. One sort of whole numbers: bits of positive floats are ordered as the floats are."""
    down = np.iinfo(np.int32).max - weight.view(np.int32).astype(np.int64)
    found: Ints = np.sort((down << 32) | np.arange(len(weight))) & np.int64(2**32 - 1)
    return found


def _compact(nodes: Ints) -> Ints:
    """The nodes numbered without gaps, in their order; by counting, which takes memory for the largest number."""
    there = np.zeros(nodes.max() + 1, dtype=bool)
    there[nodes] = True
    number: Ints = np.cumsum(there) - 1
    return number[nodes]


def _peel(left: Ints, right: Ints, weight: Floats) -> Flags:
    """Edges that some optimum contains: heaviest at both ends, and at least the sum of both runners-up.

    An optimum without such an edge uses at most one other edge at either end; together these weigh
    no more, so exchanging them loses nothing. Edges come heaviest first; chosen ones share no node.
    """
    best_left, second_left = _two_best(left, weight)
    best_right, second_right = _two_best(right, weight)
    settled: Flags = best_left & best_right & (weight >= second_left[left] + second_right[right])
    return settled


def _two_best(node: Ints, weight: Floats) -> tuple[Flags, Floats]:
    """Whether an edge is its node's heaviest; weight of every node's second heaviest edge, 0 without one."""
    edges = np.arange(len(node))
    first = np.zeros(node.max() + 1, dtype=np.int64)
    first[node[::-1]] = edges[::-1]  # the last assignment stays: the heaviest edge
    best = first[node] == edges
    second = np.zeros(len(first))
    second[node[~best][::-1]] = weight[~best][::-1]
    return best, second


def _solve(left: Ints, right: Ints, weight: Floats) -> Flags:
    """The optimum of what is left, by scipy, component by component."""
    left, right = _compact(left), _compact(right)
    n_left, n_nodes = left.max() + 1, left.max() + right.max() + 2
    graph = coo_array(
        (np.ones(len(left), np.int8), (left, right + n_left)), shape=(n_nodes, n_nodes)
    )
    count, component = connected_components(graph, directed=False)
    heights, height_at = _places(component[:n_left], count)
    widths, width_at = _places(component[n_left:], count)
    # All dense matrices, one after another in one flat buffer.
    starts = np.concatenate([[0], np.cumsum(heights * widths)])
    home = component[left]
    cell = starts[home] + height_at[left] * widths[home] + width_at[right]
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


def _places(component: NDArray[np.int32], count: int) -> tuple[Ints, Ints]:
    """Nodes of each component, and each node's place inside its component."""
    sizes = np.bincount(component, minlength=count).astype(np.int64)
    order = np.argsort(component, kind="stable")
    place = np.empty(len(component), dtype=np.int64)
    place[order] = np.arange(len(component)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return sizes, place
