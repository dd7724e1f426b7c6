"""Largest resident set of this process, as a job logs it and `benchmarks/memory.py` reads it."""

import re
import resource
import sys
from pathlib import Path

_LINE = re.compile(r"INFO peak memory ([\d,]+) MB$", re.MULTILINE)


def peak_bytes() -> int:
    """Largest resident set of this process since it began, in bytes.

    On Linux from VmHWM in /proc, because getrusage also counts the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def line() -> str:
    """The log line of a job that ends."""
    return f"peak memory {peak_bytes() / 1e6:,.0f} MB"


def logged_peaks(log: str) -> list[int]:
    """Peaks in MB that the attempts of a job have logged, from the text of its log."""
    return [int(size.replace(",", "")) for size in _LINE.findall(log)]
