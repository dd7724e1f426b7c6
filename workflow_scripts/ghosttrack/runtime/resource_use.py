"""Largest resident set and CPU time of this process, as a job logs them at its end.

Snakemake samples both every few seconds, so it misses what a job does after the last sample.
"""

import re
import resource
import sys
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(
    r"INFO peak memory (?P<peak>[\d,]+) MB(?:, CPU time (?P<cpu>[\d,.]+) s)?$", re.MULTILINE
)


class Use(NamedTuple):
    """What one attempt of a job has logged; cpu_seconds is None in logs of earlier versions."""

    peak_mb: int  # of 10^6 bytes
    cpu_seconds: float | None


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


def cpu_seconds() -> float:
    """CPU time of all threads of this process and of the processes that it started, in seconds."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def line() -> str:
    """The log line of a job that ends."""
    return f"peak memory {peak_bytes() / 1e6:,.0f} MB, CPU time {cpu_seconds():,.2f} s"


def logged(log: str) -> list[Use]:
    """Use of every attempt of a job that came to its end, in order, from the text of its log."""
    return [
        Use(
            int(found["peak"].replace(",", "")),
            float(found["cpu"].replace(",", "")) if found["cpu"] else None,
        )
        for found in _LINE.finditer(log)
    ]
