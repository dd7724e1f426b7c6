"""Optimal links: the exact fast matching against scipy on dense matrices, and hand-worked cases."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ghosttrack.tracks.association import assign


def edges_of(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges of dense problems (problems, k, k): left node, right node, weight, and matrix index."""
    problem, row, column = np.nonzero(dense > 0)
    k = dense.shape[1]
    return (
        problem * k + row,
        problem * k + column,
        dense[problem, row, column],
        np.stack([problem, row, column]),
    )


def optimum(dense: np.ndarray) -> float:
    total = 0.0
    for matrix in np.maximum(dense, 0):
        row, column = linear_sum_assignment(matrix, maximize=True)
        total += matrix[row, column].sum()
    return float(total)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.6])
def test_total_weight_and_links_equal_the_dense_optimum(share: float) -> None:
    generator = np.random.default_rng(int(share * 100))
    dense = np.where(generator.random((60, 20, 20)) < share, generator.random((60, 20, 20)), 0)
    left, right, weight, index = edges_of(dense)
    kept = assign(left, right, weight).kept
    assert len(set(left[kept])) == len(set(right[kept])) == kept.sum()
    assert weight[kept].sum() == pytest.approx(optimum(dense), rel=1e-12)
    chosen = np.zeros(dense.shape, bool)
    chosen[tuple(index[:, kept])] = True
    for matrix, ours in zip(dense, chosen, strict=True):
        row, column = linear_sum_assignment(matrix, maximize=True)
        theirs = np.zeros(matrix.shape, bool)
        theirs[row, column] = matrix[row, column] > 0
        assert np.array_equal(ours, theirs)  # weights are distinct, so the optimum is unique


def test_many_ties_still_give_the_optimum() -> None:
    dense = np.random.default_rng(1).integers(0, 3, (80, 8, 8)).astype(float)
    left, right, weight, _ = edges_of(dense)
    kept = assign(left, right, weight).kept
    assert len(set(left[kept])) == len(set(right[kept])) == kept.sum()
    assert weight[kept].sum() == pytest.approx(optimum(dense))


def test_weights_of_all_magnitudes_give_the_optimum() -> None:
    generator = np.random.default_rng(2)
    weights = (10 ** generator.uniform(-6, 6, (60, 12, 12))).astype(np.float32).astype(np.float64)
    dense = np.where(generator.random(weights.shape) < 0.3, weights, 0)
    left, right, weight, _ = edges_of(dense)
    shuffled = generator.permutation(len(weight))
    kept = shuffled[assign(left[shuffled], right[shuffled], weight[shuffled]).kept]
    assert len(set(left[kept])) == len(set(right[kept])) == len(kept)
    assert weight[kept].sum() == pytest.approx(optimum(dense), rel=1e-12)
    for matrix in dense:  # each problem separately: the total hides errors of small sums
        rows, columns = np.nonzero(matrix)
        chosen = assign(rows, columns, matrix[rows, columns]).kept
        assert matrix[rows, columns][chosen].sum() == pytest.approx(
            optimum(matrix[None]), rel=1e-12
        )


def test_two_links_replace_the_heaviest_if_they_weigh_more_together() -> None:
    # a-x .5, a-y .6, b-y .4: greedy takes a-y alone, the optimum is a-x and b-y.
    assignment = assign(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.5, 0.6, 0.4]))
    assert assignment.kept.tolist() == [True, False, True]
    assert assignment.hard == 3


def test_the_heaviest_link_stays_if_it_weighs_more_than_the_two_others() -> None:
    assignment = assign(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.3, 0.8, 0.4]))
    assert assignment.kept.tolist() == [False, True, False]
    assert assignment.hard == 0


def test_no_edges_give_no_links() -> None:
    none = np.zeros(0, np.int64)
    assignment = assign(none, none, none.astype(float))
    assert (len(assignment.kept), assignment.hard) == (0, 0)


def test_equal_weights_go_to_the_earlier_edge() -> None:
    assignment = assign(np.array([0, 1]), np.array([5, 5]), np.array([0.5, 0.5]))
    assert assignment.kept.tolist() == [True, False]
