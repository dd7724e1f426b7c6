"""Shuffled batches of activations; the seed determines the order, and one integer resumes it.

Chunks are permuted and grouped into windows, then the rows of a window are permuted. So all reads
are whole chunks (random single rows through zarr are 200 times slower), and each window mixes rows
from all over the corpus.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError

# 64 chunks are 262,144 rows, 300 to 540 MB in float16: the buffer if the layer is not resident.
WINDOW_CHUNKS = 64


class _Window(NamedTuple):
    """One window of one epoch, with its included rows in the order served."""

    key: tuple[int, int]  # epoch, index
    rows: torch.Tensor  # int64, indices into `data`: the whole layer, or the chunks of the window
    data: torch.Tensor  # (rows, d_model) float16


def fit(stores: Sequence[ActivationStore], megabytes: int) -> bool:
    """Whether all rows of the layers, (rows, d_model) float16 each, fit into `megabytes` MiB."""
    return sum(store.rows * store.d_model * 2 for store in stores) <= megabytes * 2**20


class ChunkSampler:
    """Shuffled batches of included (not excluded) rows; the order depends on seed and epoch alone.

    Args:
        store: the activations of one layer.
        batch: rows per batch; the incomplete last batch of an epoch is dropped.
        seed: determines the order, together with the epoch.
        resident: keep the whole layer in memory (rows x d_model x 2 bytes) instead of one window at
            a time. The order is the same.
        window_chunks: chunks per window; changes the order.
    Raises:
        UserError: the store has fewer included rows than one batch.
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
        # Included rows of each chunk, (chunks,).
        self._included = np.add.reduceat(~store.excluded, store.chunk_bounds[:-1], dtype=np.int64)
        self.rows = int(self._included.sum())
        self.batches_per_epoch = self.rows // batch
        if self.batches_per_epoch == 0:
            raise UserError(
                f"layer {store.layer} has {self.rows} included rows, fewer than one batch of "
                f"{batch}: raise corpus.tokens or lower sae.batch"
            )
        # Rows stay in float16, in units of the store's scale, until they are served.
        self._data = self._read(range(self._chunks)) if resident else None
        self._window: _Window | None = None
        self._plan: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def batch_at(self, step: int) -> torch.Tensor:
        """Batch number `step`, counted over all epochs, (batch, d_model) float32.

        Ascending steps read every chunk once per epoch; any other order is correct but slower.
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
        return half.float() if self._store.scale == 1 else half.float().mul_(self._store.scale)

    def _read(self, chunks: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([self._store.half(chunk) for chunk in chunks]))

    def _epoch_plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Chunks in the order of the epoch, (chunks,), and window bounds in its included rows."""
        if self._plan is None or self._plan[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._chunks)
            per_window = np.add.reduceat(
                self._included[order], np.arange(0, self._chunks, self._window_chunks)
            )
            self._plan = (epoch, order, np.concatenate([[0], np.cumsum(per_window)]))
        return self._plan[1], self._plan[2]

    def _open_window(self, epoch: int, index: int) -> _Window:
        if self._window is not None and self._window.key == (epoch, index):
            return self._window
        self._window = None  # frees its memory before the next one is read
        order, _ = self._epoch_plan(epoch)
        first = index * self._window_chunks
        chunks = order[first : first + self._window_chunks].tolist()
        bounds = self._store.chunk_bounds
        rows = np.concatenate([np.arange(bounds[chunk], bounds[chunk + 1]) for chunk in chunks])
        included = ~self._store.excluded[rows]
        # The third number separates the permutation of a window from that of its epoch.
        shuffle = np.random.default_rng([self._seed, epoch, index + 1]).permutation(
            int(included.sum())
        )
        if self._data is not None:
            self._window = _Window(
                (epoch, index), torch.from_numpy(rows[included][shuffle]), self._data
            )
        else:
            data = self._read(chunks)
            self._window = _Window(
                (epoch, index), torch.from_numpy(np.flatnonzero(included)[shuffle]), data
            )
        return self._window
