"""Rows on their way from the model's device to the stores.

On a GPU, rows are rounded and encoded there. Pinned copies to the host run on a stream of their
own, so the device computes the next forward pass meanwhile, and only the thread that writes a block
waits for its copy. Nothing here waits for the device in the thread that runs the model.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations import int8s
from ghosttrack.activations.layout import CHUNK_ROWS, HALF_MAX
from ghosttrack.activations.shards import Half
from ghosttrack.activations.store import Block, Storage, to_block

# A block of the next rows of a store, or the end of its copy from the device.
Ready = Callable[[], Block]


class Stage(Protocol):
    """Turns the rows of one layer, in order, into blocks for its store.

    ahead: batches that may wait for their writers while the model computes the next one.
    """

    @property
    def ahead(self) -> int: ...  # noqa: D102

    def take(self, rows: torch.Tensor, *, exact: bool) -> list[Ready]:
        """Blocks that are complete with these rows, (n, d_model).

        The rows may change after the call. With `exact`, the blocks also hold them as they are.
        """

    def rest(self) -> list[Ready]:
        """Blocks of the rows that are left, at the end."""


def stage(device: torch.device, storage: Storage, scale: int) -> Stage:
    """The stage of a layer whose rows are computed on `device`."""
    return HostStage(scale) if device.type == "cpu" else DeviceStage(storage, scale)


class HostStage:
    """Rows in the memory of the host: each call gives one block."""

    ahead = 1  # the model and the writers share the cores, so more would only take memory

    def __init__(self, scale: int) -> None:
        self._scale = scale

    def take(self, rows: torch.Tensor, *, exact: bool) -> list[Ready]:
        """See `Stage`."""
        block = to_block(rows, exact=exact, scale=self._scale)
        return [lambda: block]

    def rest(self) -> list[Ready]:
        """See `Stage`."""
        return []


class _Rows(NamedTuple):
    """Rows on the device, with what the writer needs to know of them."""

    values: torch.Tensor  # (n, d_model) float16
    norms: torch.Tensor  # (n,) float32
    beyond: torch.Tensor  # (n,) number of clipped values
    top: torch.Tensor  # (n,) float32, largest absolute value
    exact: torch.Tensor  # (n, d_model) float32, or (n, 0) if they are not wanted

    def part(self, start: int, stop: int) -> "_Rows":
        """The rows start .. stop - 1."""
        return _Rows(*(tensor[start:stop] for tensor in self))


class DeviceStage:
    """Rows in the memory of a GPU. In mode int8s, blocks are whole chunks, encoded on the device.

    A chunk that is not full at the end is encoded by the writer. The arithmetic of the CPU is
    repeated operation by operation (see int8s.encode_tensor), so that the same float16 rows give
    the same bytes.
    """

    ahead = 3  # a device shall not wait while a complete shard file is flushed to disk

    def __init__(self, storage: Storage, scale: int) -> None:
        self._storage, self._scale = storage, scale
        self._waiting: list[_Rows] = []  # fewer rows than a chunk

    def take(self, rows: torch.Tensor, *, exact: bool) -> list[Ready]:
        """See `Stage`."""
        rows = rows.float()
        size = rows.abs()
        taken = _Rows(
            (rows / self._scale).clamp_(-HALF_MAX, HALF_MAX).half(),
            torch.linalg.vector_norm(rows, dim=1),
            (size > HALF_MAX * self._scale).sum(dim=1),
            size.amax(dim=1),
            rows.clone() if exact else rows.new_empty((len(rows), 0)),
        )
        if self._storage == "fp16":
            return [self._sent(taken)]
        self._waiting.append(taken)
        count = sum(len(one.norms) for one in self._waiting)
        if count < CHUNK_ROWS:
            return []
        ready, chunks = _joined(self._waiting), count // CHUNK_ROWS
        end = chunks * CHUNK_ROWS
        self._waiting = [ready.part(end, count)] if count > end else []
        return [
            self._sent(ready.part(start, start + CHUNK_ROWS), encode=True)
            for start in range(0, end, CHUNK_ROWS)
        ]

    def rest(self) -> list[Ready]:
        """See `Stage`."""
        waiting, self._waiting = self._waiting, []
        return [self._sent(_joined(waiting))] if waiting else []

    def _sent(self, rows: _Rows, *, encode: bool = False) -> Ready:
        if not encode:
            whole = _Copy(rows)
            return lambda: self._block(*whole.wait())
        encoded = int8s.encode_tensor(rows.values)
        chunk = _Copy([*encoded, *rows[1:]])

        def block() -> Block:
            levels, row_scale, mean, deviation, outlier, *others = chunk.wait()
            numbers = np.flatnonzero(outlier)
            outliers = chunk.rows_of(rows.values, numbers)
            coded = int8s.Coded(levels, row_scale, mean, deviation, numbers, outliers)
            return self._block(coded, *others)

        return block

    def _block(self, values: Any, norms: Any, beyond: Any, top: Any, exact: Any) -> Block:
        numbers = np.flatnonzero(beyond)
        clipped = np.stack([numbers, beyond[numbers], top[numbers]], axis=1, dtype=np.float64)
        return Block(values, norms, exact if exact.shape[1] else None, clipped, self._scale)


def _joined(parts: Sequence[_Rows]) -> _Rows:
    """All rows of several parts; without the exact ones, unless all parts have them."""
    if len({part.exact.shape[1] for part in parts}) > 1:
        parts = [part._replace(exact=part.exact[:, :0]) for part in parts]
    return _Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class _Copy:
    """Copies of tensors on their way to pinned memory of the host."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        sources = list(tensors)
        self._stream = _copy_stream(sources[0].device)
        self._end: torch.cuda.Event | None = None
        if self._stream is None:
            self._host = sources
            return
        self._stream.wait_stream(torch.cuda.current_stream(sources[0].device))
        with torch.cuda.stream(self._stream):
            self._host = [
                torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(
                    source, non_blocking=True
                )
                for source in sources
            ]
            self._end = self._stream.record_event()
        for source in sources:
            source.record_stream(self._stream)  # its memory is not reused before the copy's end

    def wait(self) -> list[npt.NDArray[Any]]:
        """The arrays, as soon as they are complete; call this in the thread that writes them."""
        if self._end is not None:
            self._end.synchronize()
        return [tensor.numpy() for tensor in self._host]

    def rows_of(self, values: torch.Tensor, numbers: npt.NDArray[np.int64]) -> Half:
        """Some rows of a tensor that was complete when this copy began."""
        if self._stream is None:
            return np.asarray(values[torch.from_numpy(numbers)].numpy())
        with torch.cuda.stream(self._stream):
            return np.asarray(values[torch.from_numpy(numbers).to(values.device)].cpu().numpy())


# torch does not annotate it.
_new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream of all copies from a GPU; None for the host."""
    return None if device.type == "cpu" else _new_stream(device)
