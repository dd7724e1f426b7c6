"""Sparse kernels of the CPU back end: all products after the encoder's touch active entries only.

Only about k entries per row of a code (rows, d_sae) are active. Each of the three products below
costs rows * k * d_model instead of rows * d_sae * d_model, and the code is never dense. The caller
slices the columns of tables that are read often and do not fit into the cache.
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
# Booleans (one byte each) that are tested at once as one number.
_WORD = 8
# A slice of fewer columns would waste parts of cache lines and prefetches.
_MIN_COLUMNS = 64
# Slicing copies tables and sums once. It pays off from this number of reads per row on
# (d_sae 4096 and 24,576, batch 512 to 4096).
_MIN_READS = 32


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
    start: Tensor  # (d_sae + 1,) int64, index of each feature's first entry
    entries: Tensor  # (d_sae,) int64, entries of each feature


def kth_largest(values: Tensor, k: int) -> float:
    """The k-th largest of values (n,), which are on the CPU; the smallest if there are fewer."""
    # numpy's partial sort is eight times as fast as torch's.
    index = max(values.numel() - k, 0)
    return float(np.partition(values.numpy(), index)[index])


def positions_above(flat: Tensor, threshold: float) -> Tensor:
    """Ascending positions in `flat` (entries,) of the values above the threshold."""
    # numpy's scan is twice as fast as torch's. Few values are above, so the comparison results are
    # tested eight at a time.
    above = flat.numpy() > threshold
    whole = len(above) // _WORD * _WORD
    words = above[:whole].view(np.uint64)
    word = np.flatnonzero(words != 0)
    offset = np.flatnonzero(words.take(word).view(np.bool_))  # among the bytes of these words
    index = offset // _WORD
    positions = (word.take(index) - index) * _WORD + offset
    if whole < len(above):
        positions = np.concatenate([positions, whole + np.flatnonzero(above[whole:])])
    return torch.from_numpy(positions)


def code_from_flat(position: Tensor, value: Tensor, rows: int, d_sae: int) -> Code:
    """Code from ascending positions in the flattened (rows, d_sae) matrix and their values."""
    # numpy divides these numbers twice as fast as torch.
    row = position.numpy() // d_sae
    row_start = np.searchsorted(row, np.arange(rows + 1))
    row_of = torch.from_numpy(row)
    return Code(value, position - row_of * d_sae, row_of, torch.from_numpy(row_start), d_sae)


def split_rows(code: Code, prefix_sizes: Sequence[int]) -> Code:
    """Split every row at the prefix sizes: (rows * prefixes, d_sae) with the same entries."""
    count = len(prefix_sizes)
    if count == 1:
        return code
    part = torch.bucketize(code.column, torch.tensor(prefix_sizes), right=True)  # (entries,)
    row = code.row * count + part
    row_start = torch.searchsorted(row, torch.arange(code.rows * count + 1))
    return Code(code.value, code.column, row, row_start, code.d_sae)


def decode(code: Code, weight: Tensor) -> Tensor:
    """code @ weight: (rows, d_sae) x (d_sae, d_model) -> (rows, d_model)."""
    return _weighted_row_sums(code.column, code.row_start, code.value, weight)


def transpose(code: Code) -> Transposed:
    """Sort the entries by feature, rows ascending within each."""
    # scipy's counting sort is two to four times as fast as torch's sort.
    features, row_start = (
        index.numpy().astype(np.int32) for index in (code.column, code.row_start)
    )
    numbered = np.arange(len(features), dtype=np.int32)
    csc = csr_array((numbered, features, row_start), shape=(code.rows, code.d_sae)).tocsc()
    order, row, start = (
        torch.from_numpy(array).long() for array in (csc.data, csc.indices, csc.indptr)
    )
    entries = start.diff()
    column = torch.repeat_interleave(entries, output_size=order.numel())
    return Transposed(order, code.value.index_select(0, order), row, column, start, entries)


class PatternProducts:
    """Feature-major <weight[column], dense[row]> of each entry, summed over slices of the columns.

    In feature-major order each row of `weight` is read once. In row-major order every entry would
    read a row of it.
    """

    def __init__(self, transposed: Transposed, rows: int) -> None:
        shape = (transposed.entries.numel(), rows)
        self._values = torch.zeros_like(transposed.value)  # (entries,)
        with warnings.catch_warnings():
            # torch says once per process that the format is in beta.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self._sum = torch.sparse_csr_tensor(
                transposed.start, transposed.row, self._values, shape, check_invariants=False
            )

    def add(self, weight: Tensor, dense: Tensor) -> None:
        """Add the products over some columns: (d_sae, columns), (rows, columns)."""
        if self._values.numel():
            torch.sparse.sampled_addmm(self._sum, weight, dense.t(), out=self._sum)

    def values(self) -> Tensor:
        """The sums so far, (entries,)."""
        values: Tensor = self._sum.values()
        return values


def transposed_product(transposed: Transposed, value: Tensor, dense: Tensor) -> Tensor:
    """S^T @ dense for the matrix S of this pattern with feature-major values.

    (rows, d) -> (d_sae, d).
    """
    return _weighted_row_sums(transposed.row, transposed.start, value, dense)


def feature_sums(transposed: Transposed, value: Tensor) -> Tensor:
    """Sum of the feature-major values of each feature: (entries,) -> (d_sae,)."""
    return torch.zeros(transposed.entries.numel(), dtype=value.dtype).index_add_(
        0, transposed.column, value
    )


def column_slices(table: Tensor, reads: int) -> list[slice]:
    """Slices of the columns of a table (rows, columns) that fit into the cache.

    One slice of all columns if the `reads` rows that are read are too few per row of the table.
    """
    rows, width = table.shape
    columns = width
    if reads >= _MIN_READS * rows:
        columns = max(CACHE // (rows * table.element_size()), _MIN_COLUMNS)
    return [slice(start, start + columns) for start in range(0, width, columns)]


def _weighted_row_sums(index: Tensor, start: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Sum of weight * table[index] over each bag start[i] .. start[i+1] - 1.

    Faster than a product of a sparse and a dense matrix.
    """
    return functional.embedding_bag(index, table, start[:-1], mode="sum", per_sample_weights=weight)
