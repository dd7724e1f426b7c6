"""Copies of stored chunks, as they are stored, in the memory of the device that trains."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, cuda

from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore


class ChunkCopier(Protocol):
    """Copies chunks into a buffer on a device, possibly behind the work of the device."""

    def free(self) -> Any:
        """Mark the work so far; only behind it may a buffer that it reads be overwritten."""

    def copy(
        self, chunks: Sequence[int], target: Tensor, free: Any, stop: threading.Event | None = None
    ) -> Any:
        """Copy chunks one after the other into `target` (rows, d_model), in any thread.

        Args:
            chunks: numbers of the chunks.
            target: of the store's dtype, on the device.
            free: a mark of `free`, from which on `target` may be overwritten.
            stop: when it is set, the copy ends early and `target` is incomplete.
        Returns:
            A mark for `wait`.
        Raises:
            UserError: a chunk is damaged.
        """

    def wait(self, copied: Any) -> None:
        """Let later work of the device wait for the copies before this mark."""


def copier(store: ActivationStore, device: torch.device) -> ChunkCopier:
    """The copier for a device."""
    return PinnedCopier(store, device) if device.type == "cuda" else HostCopier(store)


def empty(store: ActivationStore, rows: int, device: torch.device) -> Tensor:
    """An uninitialised buffer for stored rows, (rows, d_model)."""
    return torch.empty((rows, store.d_model), dtype=_dtype(store), device=device)


class HostCopier:
    """Reads chunks straight into host memory, which is where a CPU trains."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store

    def free(self) -> None:
        """Nothing runs behind the caller."""

    def copy(
        self,
        chunks: Sequence[int],
        target: Tensor,
        free: None = None,  # noqa: ARG002 (see `free`)
        stop: threading.Event | None = None,
    ) -> None:
        """Copy chunks one after the other into `target`; see `ChunkCopier`."""
        values, at = target.numpy(), 0
        for number in chunks:
            if stop is not None and stop.is_set():
                return
            rows = self._store.rows_of(number)
            self._store.read_stored(number, values[at : at + rows])
            at += rows

    def wait(self, copied: None = None) -> None:
        """Nothing runs behind the caller."""


class PinnedCopier:
    """Reads chunks into two pinned buffers by turns; a stream of the GPU copies them from there.

    The read of one chunk and the copy of the one before run at the same time, and both beside a
    training step. NOT RUN on a GPU: tests run it with a stand-in for streams and events.
    """

    def __init__(self, store: ActivationStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._stream = cuda.Stream(device)  # type: ignore[no-untyped-call]
        pinned = device.type == "cuda"
        self._pinned = [
            torch.empty((CHUNK_ROWS, store.d_model), dtype=_dtype(store), pin_memory=pinned)
            for _ in range(2)
        ]
        self._sent: list[cuda.Event | None] = [None, None]

    def free(self) -> cuda.Event:
        """Mark the work so far; see `ChunkCopier`."""
        return self._mark(cuda.current_stream(self._device))

    def copy(
        self,
        chunks: Sequence[int],
        target: Tensor,
        free: cuda.Event,
        stop: threading.Event | None = None,
    ) -> cuda.Event:
        """Copy chunks one after the other into `target`; see `ChunkCopier`."""
        with cuda.stream(self._stream):
            self._stream.wait_event(free)
            at = 0
            for turn, number in enumerate(chunks):
                if stop is not None and stop.is_set():
                    break
                rows, buffer = self._store.rows_of(number), self._pinned[turn % 2]
                if (sent := self._sent[turn % 2]) is not None:
                    sent.synchronize()
                self._store.read_stored(number, buffer[:rows].numpy())
                _send(buffer[:rows], target[at : at + rows])
                self._sent[turn % 2] = self._mark(self._stream)
                at += rows
            return self._mark(self._stream)

    def wait(self, copied: cuda.Event) -> None:
        """Let later work wait for the copies; see `ChunkCopier`."""
        cuda.current_stream(self._device).wait_event(copied)

    @staticmethod
    def _mark(stream: cuda.Stream) -> cuda.Event:
        # A blocking event lets the core sleep while it waits, for other threads to use.
        event = cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


def _send(pinned: Tensor, target: Tensor) -> None:
    """Queue a copy to the device in the current stream."""
    target.copy_(pinned, non_blocking=True)


def _dtype(store: ActivationStore) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=store.stored_dtype)).dtype
