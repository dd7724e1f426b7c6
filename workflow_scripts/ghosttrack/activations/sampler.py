"""Shuffled batches of activations in an order that a seed decides and one integer resumes.

Chunks are permuted, taken in windows, and the rows of a window are permuted: reads stay whole
chunks (single random rows through zarr are 200 times slower), and a window of rows from all over
the corpus is mixed before any is used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError

# 64 chunks are 262,144 rows, 300 to 540 MB in float16: the buffer of the mode that is not resident.
WINDOW_CHUNKS = 64


class _Window(NamedTuple):
    """One window of one epoch: its chunks in the order read, and its kept rows in the order served."""

    key: tuple[int, int]  # epoch, number
    rows: (
        torch.Tensor
    )  # int64 row numbers in the store, or in `data` where that is the window's own
    data: torch.Tensor  # (rows, d_model) float16


def fit(stores: Sequence[ActivationStore], megabytes: int) -> bool:
    """Whether all rows of the layers, (rows, d_model) float16 each, fit into `megabytes` MiB."""
    return sum(store.rows * store.d_model * 2 for store in stores) <= megabytes * 2**20


class ChunkSampler:
    """Shuffled batches of kept (not excluded) rows; order is a pure function of (seed, epoch); position one integer.

    Args:
        store: the activations of one layer.
        batch: rows per batch; the incomplete last batch of an epoch is dropped.
        seed: decides the order, together with the epoch.
        resident: keep the whole layer in memory (rows x d_model x 2 bytes); otherwise a window of 64
            chunks at a time. The order is the same.
        window_chunks: chunks that are mixed before any of their rows is used; decides the order too.
    Raises:
        UserError: the store keeps fewer rows than one batch.
    """

    batches_per_epoch: int

    def __init__(
        self,
        store: ActivationStore,
        batch: int,
        seed: int,
        resident: bool = True,
        window_chunks: int = WINDOW_CHUNKS,
    ) -> None:
        self._store, self._batch, self._seed, self._window_chunks = (
            store,
            batch,
            seed,
            window_chunks,
        )
        self._chunks = len(store.chunk_bounds) - 1
        kept = np.add.reduceat(
            ~store.excluded, store.chunk_bounds[:-1], dtype=np.int64
        )  # (chunks,)
        self._kept = kept
        self.rows = int(kept.sum())
        self.batches_per_epoch = self.rows // batch
        if self.batches_per_epoch == 0:
            raise UserError(
                f"layer {store.layer} keeps {self.rows} rows, fewer than one batch of {batch}: "
                "raise corpus.tokens or lower sae.batch"
            )
        self._data = torch.from_numpy(store.read()) if resident else None
        self._window: _Window | None = None
        self._plan: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def batch_at(self, step: int) -> torch.Tensor:
        """Batch number `step`, counted over all epochs, (batch, d_model) float32.

        Steps in ascending order read every chunk once an epoch; any other order is correct but slower.
        """
        epoch, number = divmod(step, self.batches_per_epoch)
        _, bounds = self._epoch_plan(epoch)
        half = torch.empty(self._batch, self._store.d_model, dtype=torch.float16)
        at, stop = number * self._batch, (number + 1) * self._batch
        done = 0
        while at < stop:
            index = int(np.searchsorted(bounds, at, side="right")) - 1
            end = min(stop, int(bounds[index + 1]))
            window = self._open_window(epoch, index)
            rows = window.rows[at - bounds[index] : end - bounds[index]]
            torch.index_select(window.data, 0, rows, out=half[done : done + len(rows)])
            done += len(rows)
            at = end
        return half.float()

    def _epoch_plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Chunks in the order of the epoch, (chunks,), and where each window starts among its kept rows."""
        if self._plan is None or self._plan[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._chunks)
            per_window = np.add.reduceat(
                self._kept[order], np.arange(0, self._chunks, self._window_chunks)
            )
            self._plan = (epoch, order, np.concatenate([[0], np.cumsum(per_window)]))
        return self._plan[1], self._plan[2]

    def _open_window(self, epoch: int, index: int) -> _Window:
        if self._window is not None and self._window.key == (epoch, index):
            return self._window
        self._window = None  # frees its buffer before the next one is read
        order, _ = self._epoch_plan(epoch)
        first = index * self._window_chunks
        chunks = order[first : first + self._window_chunks].tolist()
        bounds = self._store.chunk_bounds
        rows = np.concatenate([np.arange(bounds[chunk], bounds[chunk + 1]) for chunk in chunks])
        kept = ~self._store.excluded[rows]
        # The third number keeps a window's permutation apart from its epoch's.
        shuffle = np.random.default_rng([self._seed, epoch, index + 1]).permutation(int(kept.sum()))
        if self._data is not None:
            self._window = _Window(
                (epoch, index), torch.from_numpy(rows[kept][shuffle]), self._data
            )
        else:
            data = torch.from_numpy(np.concatenate([self._store.chunk(chunk) for chunk in chunks]))
            self._window = _Window(
                (epoch, index), torch.from_numpy(np.flatnonzero(kept)[shuffle]), data
            )
        return self._window
