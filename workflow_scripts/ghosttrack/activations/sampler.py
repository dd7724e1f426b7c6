"""Shuffled batches of activations; the seed determines the order, and one integer resumes it.

Chunks are permuted and grouped into windows, then the rows of a window are permuted. So all reads
are whole chunks (random single rows through zarr are 200 times slower), and each window mixes rows
from all over the corpus.

Rows stay as they are stored (float16, or int8 levels) until they are on the device that trains.
Rows of a batch are gathered and decoded there. A thread prepares the next window meanwhile: it
permutes its rows and, unless the layer is resident, reads its chunks. The order of the rows and all
bits of a batch are the same on every device and in every mode.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghosttrack.activations import int8s
from ghosttrack.activations.device_rows import copier, empty
from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.read_ahead import ReadAhead
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError

# 64 chunks are 262,144 rows: 200 to 540 MB. Two windows are in memory if the layer is not resident.
WINDOW_CHUNKS = 64
# Rows that a CPU decodes at once, so that they stay in the cache of a core.
_BLOCK_ROWS = 256
# Part of a GPU's free memory that resident rows may take. The rest is for the weights, their
# gradients and moments, and the pre-activations of a batch.
GPU_SHARE = 0.5

_Ints = npt.NDArray[np.int64]


class _Order(NamedTuple):
    """Included rows of one window in the order served, on the CPU."""

    rows: _Ints  # (served,), indices into the window's data
    # (served,), index of a row's chunk in the window, and the codings of these chunks as one:
    # row scales (served,) and positions of outliers in the order served, mean and deviation
    # (chunks, d_model). None: the data is float16.
    slot: npt.NDArray[np.int32] | None
    coding: int8s.Coding | None


class _Scales(NamedTuple):
    """What the int8 levels of a window mean; on the device, but for `outlier_at`."""

    row_scale: Tensor  # (served, 1) float32
    slot: Tensor  # (served,) int32, index of a row's chunk in the next two
    deviation: Tensor  # (chunks, d_model) float32
    mean: Tensor  # (chunks, d_model) float32
    outlier_at: _Ints  # (outliers,), ascending positions of outliers in the order
    outliers: Tensor  # (outliers, d_model) float16


class Window(NamedTuple):
    """One window of one epoch on the device, with its included rows in the order served."""

    key: tuple[int, int]  # epoch, index
    rows: Tensor  # (served,) int64, indices into `data`
    data: Tensor  # (rows, d_model) as stored: the whole layer, or the chunks of the window
    scales: _Scales | None  # None: `data` is float16


class Span(NamedTuple):
    """Consecutive rows of a window, which are a batch or a part of one."""

    window: Window
    start: int
    stop: int


class _Plan(NamedTuple):
    """Order of one epoch."""

    chunks: _Ints  # (chunks,), in the order of the epoch
    bounds: _Ints  # (windows + 1,), bounds of the windows in the included rows

    def window_of(self, row: int) -> int:
        """The window that serves an included row."""
        return int(np.searchsorted(self.bounds, row, side="right")) - 1


class _Ahead(NamedTuple):
    """A window that a thread prepares."""

    key: tuple[int, int]
    data: Tensor
    thread: ReadAhead[tuple[_Order, Any]]


def fit(
    stores: Sequence[ActivationStore],
    megabytes: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> bool:
    """Whether all rows of the layers fit into the memory that may hold them.

    On a CPU these are `megabytes` MiB, for rows decoded to float16. On a GPU it is half of its free
    memory, for rows as they are stored, unless `megabytes` is 0.
    """
    if device.type != "cuda":
        return sum(store.rows * store.d_model * 2 for store in stores) <= megabytes * 2**20
    stored = sum(store.rows * store.d_model * store.stored_dtype.itemsize for store in stores)
    return megabytes > 0 and stored <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]


class ChunkSampler:
    """Shuffled batches of included (not excluded) rows; the order depends on seed and epoch alone.

    Args:
        store: the activations of one layer.
        batch: rows per batch; the incomplete last batch of an epoch is dropped.
        seed: determines the order, together with the epoch.
        resident: keep the whole layer in the device's memory instead of two windows. The order is
            the same.
        window_chunks: chunks per window; changes the order.
        device: where the rows are kept and decoded, and where batches are.
        epochs: how many are read; nothing is read ahead beyond them. None: any number.
        read_ahead: prepare the next window in a thread. Without it, only one window is in memory.
        keep_stored: keep the rows of a resident layer as they are stored, and decode batches. False:
            decode all rows once, to float16. None: False on a CPU, where decoding takes longer than
            reading, True on a GPU, where memory is scarce.
    Raises:
        UserError: the store has fewer included rows than one batch; if `resident`, a chunk is
            damaged.
    """

    batches_per_epoch: int

    def __init__(
        self,
        store: ActivationStore,
        batch: int,
        seed: int,
        resident: bool = True,
        window_chunks: int = WINDOW_CHUNKS,
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
        epochs: int | None = None,
        read_ahead: bool = True,
        keep_stored: bool | None = None,
    ) -> None:
        self._store, self._batch, self._seed = store, batch, seed
        self._window_chunks, self._device, self._epochs = window_chunks, device, epochs
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
        self._copier = copier(store, device)
        self._coded = store.storage != "fp16"
        self._read_ahead = read_ahead
        self._resident: Tensor | None = None
        self._buffers: list[Tensor] = []  # of the windows, if the layer is not resident
        if resident:
            kept = device.type != "cpu" if keep_stored is None else keep_stored
            if self._coded and not kept:
                self._resident, self._coded = self._decoded().to(device), False
            else:
                self._resident = empty(store, store.rows, device)
                self._copier.wait(
                    self._copier.copy(range(self._chunks), self._resident, self._copier.free())
                )
        self._window: Window | None = None
        self._ahead: _Ahead | None = None
        self._plans: dict[int, _Plan] = {}

    def batch_at(self, step: int) -> Tensor:
        """Batch number `step`, counted over all epochs: a new (batch, d_model) float32 tensor.

        Ascending steps read every chunk once per epoch; any other order is correct but slower.

        Raises:
            UserError: a chunk of a window is damaged.
        """
        x = torch.empty((self._batch, self._store.d_model), device=self._device)
        done = 0
        for span in self.spans(step):
            rows = span.stop - span.start
            _decode(span, x[done : done + rows])
            done += rows
        return x if self._store.scale == 1 else x.mul_(self._store.scale)

    def spans(self, step: int) -> Iterator[Span]:
        """The rows of batch number `step` on the device, as stored; see `batch_at`.

        Use a span before the next one is taken, because its window may be overwritten then.
        """
        epoch, number = divmod(step, self.batches_per_epoch)
        plan = self._plan(epoch)
        at, stop = number * self._batch, (number + 1) * self._batch
        while at < stop:
            index = plan.window_of(at)
            first, end = int(plan.bounds[index]), min(stop, int(plan.bounds[index + 1]))
            yield Span(self._open_window((epoch, index)), at - first, end - first)
            at = end

    def _plan(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._chunks)
            per_window = np.add.reduceat(
                self._included[order], np.arange(0, self._chunks, self._window_chunks)
            )
            plan = _Plan(order, np.concatenate([[0], np.cumsum(per_window)]))
            # The next window may be the first of the next epoch, so two plans are kept.
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: plan}
        return self._plans[epoch]

    def _open_window(self, key: tuple[int, int]) -> Window:
        if self._window is not None and self._window.key == key:
            return self._window
        self._window = None  # its memory is free from here on
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.key != key:
            if ahead is not None:
                ahead.thread.cancel()
            ahead = self._prepare(key)
        order, copied = ahead.thread.result()
        self._copier.wait(copied)
        self._window = _on_device(key, order, ahead.data, self._device)
        following = self._following(key) if self._read_ahead else None
        if following is not None:
            self._ahead = self._prepare(following)
        return self._window

    def _following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """The window that ascending steps need after this one; None after the last epoch."""
        epoch, index = key
        row = int(self._plan(epoch).bounds[index + 1])
        if row < self.batches_per_epoch * self._batch:
            return epoch, self._plan(epoch).window_of(row)
        if self._epochs is not None and epoch + 1 >= self._epochs:
            return None
        return epoch + 1, self._plan(epoch + 1).window_of(0)

    def _prepare(self, key: tuple[int, int]) -> _Ahead:
        """Start a thread that permutes a window and reads it."""
        epoch, index = key
        first = index * self._window_chunks
        chunks = self._plan(epoch).chunks[first : first + self._window_chunks].tolist()
        data, free = self._buffer(), self._copier.free()

        def work(stop: threading.Event) -> tuple[_Order, Any]:
            order = self._order(key, chunks)
            if self._resident is not None:
                return order, free
            return order, self._copier.copy(chunks, data, free, stop)

        return _Ahead(key, data, ReadAhead(work))

    def _buffer(self) -> Tensor:
        """Memory for a window's data, which no window uses."""
        if self._resident is not None:
            return self._resident
        for buffer in self._buffers:
            if self._window is None or self._window.data is not buffer:
                return buffer
        largest = np.sort(np.diff(self._store.chunk_bounds))[-self._window_chunks :].sum()
        self._buffers.append(empty(self._store, int(largest), self._device))
        return self._buffers[-1]

    def _order(self, key: tuple[int, int], chunks: list[int]) -> _Order:
        """Rows of a window in the order served; a pure function of the key."""
        epoch, index = key
        store, bounds = self._store, self._store.chunk_bounds
        excluded = [store.excluded[bounds[chunk] : bounds[chunk + 1]] for chunk in chunks]
        included = np.flatnonzero(~np.concatenate(excluded))
        # The third number separates the permutation of a window from that of its epoch.
        served = np.random.default_rng([self._seed, epoch, index + 1]).permutation(included)
        sizes = np.diff(bounds)[chunks]
        starts = np.cumsum(sizes) - sizes
        slot = np.repeat(np.arange(len(chunks), dtype=np.int32), sizes)[served]
        indices = served if self._resident is None else served + (bounds[chunks] - starts)[slot]
        if not self._coded:
            return _Order(indices, None, None)
        codings = [coding for chunk in chunks if (coding := store.coding(chunk)) is not None]
        # Most outliers are excluded as massive. Those that are not replace their decoded rows.
        outliers = np.concatenate([coding.outliers for coding in codings])
        outlier_rows = np.concatenate(
            [start + coding.outlier_rows for start, coding in zip(starts, codings, strict=True)]
        )
        is_outlier = np.zeros(sizes.sum(), dtype=np.bool_)
        is_outlier[outlier_rows] = True
        positions = np.flatnonzero(is_outlier[served])
        outlier_of = np.searchsorted(outlier_rows, served[positions])
        coding = int8s.Coding(
            np.concatenate([coding.row_scale for coding in codings])[served],
            np.stack([coding.mean for coding in codings]),
            np.stack([coding.deviation for coding in codings]),
            positions,
            outliers[outlier_of],
        )
        return _Order(indices, slot, coding)

    def _decoded(self) -> Tensor:
        """All rows of an int8s layer, (rows, d_model) float16, on the CPU."""
        store = self._store
        data = np.empty((store.rows, store.d_model), dtype=np.float16)
        levels = np.empty((CHUNK_ROWS, store.d_model), dtype=store.stored_dtype)
        for chunk, (start, stop) in enumerate(pairwise(store.chunk_bounds.tolist())):
            store.read_stored(chunk, levels[: stop - start])
            if (coding := store.coding(chunk)) is not None:
                data[start:stop] = int8s.decode(int8s.Coded(levels[: stop - start], *coding))
        return torch.from_numpy(data)


def _on_device(key: tuple[int, int], order: _Order, data: Tensor, device: torch.device) -> Window:
    rows = torch.from_numpy(order.rows).to(device)
    if order.coding is None or order.slot is None:
        return Window(key, rows, data, None)
    row_scale, mean, deviation, outlier_at, outliers = order.coding
    scales = _Scales(
        torch.from_numpy(row_scale).to(device).unsqueeze(1),
        torch.from_numpy(order.slot).to(device),
        torch.from_numpy(deviation).to(device),
        torch.from_numpy(mean).to(device),
        outlier_at,
        torch.from_numpy(outliers).to(device),
    )
    return Window(key, rows, data, scales)


def _decode(span: Span, target: Tensor) -> None:
    """Gather the rows of a span and decode them into `target` (rows, d_model) float32.

    The bits are those of `int8s.decode`, whose float16 values are then cast to float32.
    """
    (_, rows, data, scales), start, stop = span
    step = _BLOCK_ROWS if data.device.type == "cpu" else stop - start
    for at in range(start, stop, step):
        part = slice(at, min(at + step, stop))
        x = target[at - start : part.stop - start]
        stored = data.index_select(0, rows[part])
        if scales is None:
            x.copy_(stored)
            continue
        deviation, mean = (
            table.index_select(0, scales.slot[part]) for table in (scales.deviation, scales.mean)
        )
        int8s.restore(x.copy_(stored), scales.row_scale[part], deviation, mean)
        x.copy_(x.half())
    if scales is not None and len(scales.outlier_at):
        low, high = np.searchsorted(scales.outlier_at, [start, stop]).tolist()
        at_rows = torch.from_numpy(scales.outlier_at[low:high] - start).to(target.device)
        target[at_rows] = scales.outliers[low:high].float()
