"""Sparse kernels of the CPU back end: everything after the encoder product touches active entries only.

Of a code of shape (rows, d_sae) only about k entries a row are active. The three products below cost
rows * k * d_model each instead of rows * d_sae * d_model, and the code itself is never dense. Tables that
the cache cannot hold and that are read many times over are cut into slices of their columns by the caller.
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
# Booleans of a byte each that are looked at as one number.
_WORD = 8
# A slice of fewer columns would waste parts of the cache lines and prefetches.
_FEWEST_COLUMNS = 64
# Reads of each row from which on slicing, which copies tables and sums once, pays (d_sae 4096 and 24,576, batch 512 to 4096).
_WORTH_SLICING = 32


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
    """Ascending positions in `flat` (entries,) of the values above `bar`."""
    # numpy's scan is twice as fast as torch's, and few are above: eight at a time, most are passed over at once.
    above = flat.numpy() > bar
    whole = len(above) // _WORD * _WORD
    words = above[:whole].view(np.uint64)
    word = np.flatnonzero(words != 0)
    place = np.flatnonzero(words.take(word).view(np.bool_))  # among the entries of these words
    of = place // _WORD
    found = (word.take(of) - of) * _WORD + place
    if whole < len(above):
        found = np.concatenate([found, whole + np.flatnonzero(above[whole:])])
    return torch.from_numpy(found)


def code_from_flat(position: Tensor, value: Tensor, rows: int, d_sae: int) -> Code:
    """Code from ascending positions in the flattened (rows, d_sae) matrix and their values."""
    # numpy divides these numbers twice as fast as torch.
    row = position.numpy() // d_sae
    row_start = np.searchsorted(row, np.arange(rows + 1))
    every = torch.from_numpy(row)
    return Code(value, position - every * d_sae, every, torch.from_numpy(row_start), d_sae)


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
    order, row, start = (
        torch.from_numpy(each).long() for each in (found.data, found.indices, found.indptr)
    )
    entries = start.diff()
    column = torch.repeat_interleave(entries, output_size=order.numel())
    return Transposed(order, code.value.index_select(0, order), row, column, start, entries)


class PatternProducts:
    """<weight[column], dense[row]> for each entry, feature-major, summed up over slices of the columns of both.

    Feature by feature a row of `weight` is read once; row by row each entry would fetch one.
    """

    def __init__(self, transposed: Transposed, rows: int) -> None:
        shape = (transposed.entries.numel(), rows)
        self._values = torch.zeros_like(transposed.value)  # (entries,)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Sparse CSR tensor support"
            )  # beta notice, once a process
            self._sum = torch.sparse_csr_tensor(
                transposed.start, transposed.row, self._values, shape, check_invariants=False
            )

    def add(self, weight: Tensor, dense: Tensor) -> None:
        """Add the products of some columns: (d_sae, columns), (rows, columns)."""
        if self._values.numel():
            torch.sparse.sampled_addmm(self._sum, weight, dense.t(), out=self._sum)

    def values(self) -> Tensor:
        """The sums so far, (entries,)."""
        found: Tensor = self._sum.values()
        return found


def transposed_product(transposed: Transposed, value: Tensor, dense: Tensor) -> Tensor:
    """S^T @ dense for the matrix S with this pattern and feature-major values: (rows, d) -> (d_sae, d)."""
    return _weighted_row_sums(transposed.row, transposed.start, value, dense)


def feature_sums(transposed: Transposed, value: Tensor) -> Tensor:
    """Sum of the feature-major values of each feature: (entries,) -> (d_sae,)."""
    return torch.zeros(transposed.entries.numel(), dtype=value.dtype).index_add_(
        0, transposed.column, value
    )


def column_slices(table: Tensor, reads: int) -> list[slice]:
    """The columns of a table (rows, columns) of which `reads` rows are read, in slices that the cache holds; one slice of all
    where a row is not read often enough.
    """
    rows, width = table.shape
    columns = width
    if reads >= _WORTH_SLICING * rows:
        columns = max(CACHE // (rows * table.element_size()), _FEWEST_COLUMNS)
    return [slice(start, start + columns) for start in range(0, width, columns)]


def _weighted_row_sums(index: Tensor, start: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Sum of weight * table[index] over each bag [start[i], start[i+1]): faster than a sparse-dense product."""
    return functional.embedding_bag(index, table, start[:-1], mode="sum", per_sample_weights=weight)
