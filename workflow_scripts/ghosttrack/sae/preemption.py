"""Signals that ask a job to stop: finish the step, save a checkpoint, exit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send SIGTERM and SIGUSR1 before they end a job; SIGINT is Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """The signal that asked the process to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def exit(self) -> None:
        """Exit with the status that a shell gives for the signal."""
        assert self.signal is not None
        raise SystemExit(128 + self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record SIGTERM, SIGUSR1 and SIGINT inside the block; restore the old handlers after it."""
    request = StopRequest()

    def record(number: int, _frame: FrameType | None) -> None:
        request.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield request  # Python handles signals only in the main thread
        return
    before = {number: signal.signal(number, record) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
