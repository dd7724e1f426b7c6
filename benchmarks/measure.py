"""What the benchmarks share: CPU and wall time of a call, and a table on the screen."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Seconds of one call: of all its threads, and by the clock."""

    cpu: float
    wall: float


def cost(call: Callable[[], Any]) -> Cost:
    """Run `call` once."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def least(costs: Sequence[Cost]) -> Cost:
    """The cheapest of several runs: what is left above it is other people's work on the same cores."""
    return Cost(min(each.cpu for each in costs), min(each.wall for each in costs))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table in plain text; numbers with three significant digits."""
    cells = [
        [f"{each:.3g}" if isinstance(each, float) else str(each) for each in row]
        for row in [columns, *rows]
    ]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    sys.stdout.write("\n".join([f"\n{title}", *lines, ""]))
    sys.stdout.flush()
