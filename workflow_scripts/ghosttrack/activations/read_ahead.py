"""A function that runs in a thread, ahead of the time at which its result is needed."""

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Generic, TypeVar

T = TypeVar("T")
# At exit, the longest wait for a thread: enough to finish one chunk, even on a slow network disk.
# A thread that hangs longer, on a disk that does not answer, ends with the process.
EXIT_SECONDS = 10.0


class ReadAhead(Generic[T]):
    """Runs `function(stop)` in a thread, where `stop` asks it to return early.

    At exit, and when this object is deleted, the thread is asked to stop.
    """

    def __init__(self, function: Callable[[threading.Event], T]) -> None:
        self._future: Future[T] = Future()
        stop = threading.Event()
        # A daemon: the interpreter would otherwise wait for it before it calls `_end`.
        thread = threading.Thread(
            target=_run, args=(function, stop, self._future), name="read-ahead", daemon=True
        )
        self._stop = stop
        weakref.finalize(self, _end, stop, thread)
        thread.start()

    def result(self) -> T:
        """Wait for the function; return its result, or raise its error."""
        return self._future.result()

    def cancel(self) -> None:
        """Ask the function to stop, and wait until it has. Its result or error is dropped."""
        self._stop.set()
        self._future.exception()


def _run(
    function: Callable[[threading.Event], T], stop: threading.Event, future: "Future[T]"
) -> None:
    try:
        future.set_result(function(stop))
    except BaseException as error:
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(EXIT_SECONDS)
