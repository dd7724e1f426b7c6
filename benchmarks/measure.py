"""Helpers of the benchmarks: CPU and wall time of a call, and tables as text."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Seconds of one call."""

    cpu: float  # of all threads
    wall: float


def cost(call: Callable[[], Any]) -> Cost:
    """Measure one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def least(costs: Sequence[Cost]) -> Cost:
    """The smallest CPU and wall time of several runs, which other load disturbed least."""
    return Cost(min(each.cpu for each in costs), min(each.wall for each in costs))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table as plain text, numbers with three significant digits."""
    cells = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in [columns, *rows]
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    sys.stdout.write("\n".join([f"\n{title}", *lines, ""]))
    sys.stdout.flush()
