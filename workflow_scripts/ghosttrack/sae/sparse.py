"""Sparse kernels of the CPU back end: everything after the encoder product touches active entries only.

Of a code of shape (rows, d_sae) only about k entries a row are active. The three products below cost
rows * k * d_model each instead of rows * d_sae * d_model, and the code itself is never dense.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

# Bytes of a table that stay in the second-level cache of a core (1 to 2 MB in servers).
CACHE = 2**20
# A slice of fewer columns would waste parts of the cache lines and prefetches.
_FEWEST_COLUMNS = 64
# Reads of each row from which on slicing, which copies the table and the sums once, pays.
_WORTH_SLICING = 16


class Code(NamedTuple):
    """Active entries of a (rows, d_sae) matrix in row-major order (canonical CSR)."""

    value: Tensor  # (entries,)
    column: Tensor  # (entries,) int64, the feature
    row: Tensor  # (entries,) int64
    row_start: Tensor  # (rows + 1,) int64
    d_sae: int

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return self.row_start.numel() - 1


class Transposed(NamedTuple):
    """A code in feature-major order, rows ascending within each feature."""

    order: Tensor  # (entries,) int64 into the row-major entries
    value: Tensor  # (entries,)
    row: Tensor  # (entries,) int64
    column: Tensor  # (entries,) int64, the feature
    start: Tensor  # (d_sae + 1,) int64, where each feature begins
    entries: Tensor  # (d_sae,) int64, how many each feature has


def positions_above(flat: Tensor, bar: float) -> Tensor:
    """Ascending positions in `flat` (entries,) of the values above `bar`. (numpy's scan is twice as fast as torch's.)"""
    return torch.from_numpy(np.flatnonzero(flat.numpy() > bar))


def code_from_flat(position: Tensor, value: Tensor, rows: int, d_sae: int) -> Code:
    """Code from ascending positions in the flattened (rows, d_sae) matrix and their values."""
    row = position // d_sae
    row_start = torch.searchsorted(position, torch.arange(rows + 1) * d_sae)
    return Code(value, position - row * d_sae, row, row_start, d_sae)


def split_rows(code: Code, ends: Sequence[int]) -> Code:
    """Every row cut into the parts of its features that end at `ends`: (rows * parts, d_sae), the same entries."""
    if len(ends) == 1:
        return code
    last = torch.tensor(ends)
    part = torch.bucketize(code.column, last, right=True)  # (entries,)
    row = code.row * len(ends) + part
    start = torch.searchsorted(row, torch.arange(code.rows * len(ends) + 1))
    return Code(code.value, code.column, row, start, code.d_sae)


def decode(code: Code, weight: Tensor) -> Tensor:
    """code @ weight: (rows, d_sae) x (d_sae, d_model) -> (rows, d_model)."""
    return _weighted_row_sums(code.column, code.row_start, code.value, weight)


def transpose(code: Code) -> Transposed:
    """Sort the entries by feature, rows ascending within each."""
    # scipy counts the entries of each feature and puts them in place, where torch sorts: two to four times as fast.
    features, row_start = (each.numpy().astype(np.int32) for each in (code.column, code.row_start))
    numbered = np.arange(len(features), dtype=np.int32)
    found = csr_array((numbered, features, row_start), shape=(code.rows, code.d_sae)).tocsc()
    order, row, start = (torch.from_numpy(each).long() for each in (found.data, found.indices, found.indptr))
    entries = start.diff()
    column = torch.repeat_interleave(entries, output_size=order.numel())
    return Transposed(order, code.value.index_select(0, order), row, column, start, entries)


def products_on_pattern(transposed: Transposed, dense: Tensor, weight: Tensor) -> Tensor:
    """<weight[column], dense[row]> for each entry, feature-major: (rows, d), (d_sae, d) -> (entries,).

    Feature by feature a row of `weight` is read once; row by row each entry would fetch one.
    """
    if transposed.value.numel() == 0:
        return torch.zeros_like(transposed.value)
    shape, columns = (len(weight), len(dense)), _columns_at_once(dense, transposed.value.numel())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # beta notice, once a process
        found = torch.sparse_csr_tensor(
            transposed.start, transposed.row, torch.zeros_like(transposed.value), shape, check_invariants=False
        )
    for left, right in zip(torch.split(weight, columns, dim=1), torch.split(dense, columns, dim=1), strict=True):
        found = torch.sparse.sampled_addmm(found, left.contiguous(), right.contiguous().t())
    products: Tensor = found.values()
    return products


def transposed_product(transposed: Transposed, value: Tensor, dense: Tensor) -> Tensor:
    """S^T @ dense for the matrix S with this pattern and feature-major values: (rows, d) -> (d_sae, d)."""
    return _weighted_row_sums(transposed.row, transposed.start, value, dense)


def feature_sums(transposed: Transposed, value: Tensor) -> Tensor:
    """Sum of the feature-major values of each feature: (entries,) -> (d_sae,)."""
    return torch.zeros(transposed.entries.numel(), dtype=value.dtype).index_add_(0, transposed.column, value)


def _weighted_row_sums(index: Tensor, start: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Sum of weight * table[index] over each bag [start[i], start[i+1]): faster than a sparse-dense product.

    Where a table that the cache cannot hold is read many times over, some columns at a time: each element is the same sum.
    """
    columns = _columns_at_once(table, index.numel())
    if columns == table.shape[1]:
        return functional.embedding_bag(index, table, start[:-1], mode="sum", per_sample_weights=weight)
    sums = table.new_empty(start.numel() - 1, table.shape[1])
    for part, out in zip(torch.split(table, columns, dim=1), torch.split(sums, columns, dim=1), strict=True):
        out.copy_(functional.embedding_bag(index, part.contiguous(), start[:-1], mode="sum", per_sample_weights=weight))
    return sums


def _columns_at_once(table: Tensor, reads: int) -> int:
    """How many columns of a table (rows, columns) to take at a time, for so many reads of a row of it: all that the cache holds,
    or all if it is not read often enough.
    """
    rows, width = table.shape
    if reads < _WORTH_SLICING * rows:
        return width
    return min(max(CACHE // (rows * table.element_size()), _FEWEST_COLUMNS), width)
