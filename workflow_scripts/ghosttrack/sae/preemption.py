"""Finish the step, save, then go: signals as a request instead of an interruption."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM and SIGUSR1 are what schedulers send before the end, SIGINT is Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether the process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def exit(self) -> None:
        """Leave with the status that a shell gives for the signal."""
        assert self.signal is not None
        raise SystemExit(128 + self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR1 and SIGINT while the block runs; the handlers before it come back after it."""
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python handles signals only there
        yield request
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
