"""Log lines with the progress, rate and time left of a job."""

import logging
import time
from collections.abc import Callable

# Called with the number of units done, at every progress.
observers: list[Callable[[int], None]] = []


class Progress:
    """Log `label: done/total unit, rate, time left` at most every `every` seconds.

    `unit` is what the caller counts (tokens, steps, examples). The last line is always logged.
    """

    def __init__(
        self, label: str, total: int, unit: str, *, start: int = 0, every: float = 10.0
    ) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.start = self.done = start
        self._began = self._logged = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` units; log if `every` seconds have passed or all units are done."""
        self.done += count
        for observer in observers:
            observer(self.done)
        now = time.monotonic()
        if now - self._logged < self.every and self.done < self.total:
            return
        self._logged = now
        elapsed = max(now - self._began, 1e-9)
        rate = (self.done - self.start) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        text = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s"
        text += (
            f", {duration(left)} left" if self.done < self.total else f", took {duration(elapsed)}"
        )
        logging.getLogger("ghosttrack").info(text + (f"; {note}" if note else ""))


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m 05s` or `2h 07m`."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def amount(size: float) -> str:
    """Bytes as `20.5 GB` or `1.09 MB` (10^9 and 10^6 bytes)."""
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB")
    return f"{size / unit:,.0f} {name}" if size / unit >= 99.95 else f"{size / unit:.3g} {name}"
