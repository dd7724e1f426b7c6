"""Helpers of the benchmarks: CPU and wall time of a call, and tables as text and csv."""

import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
# Folder of the csv tables; `run_all.py` sets it. Without it a benchmark only prints.
FOLDER = "GHOSTTRACK_BENCHMARKS"
# Columns after those of a table: where, with what, by which command and when it was measured.
ORIGIN = ("machine", "versions", "code", "date", "command")
PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "zarr",
    "sae-lens",
    "eai-sparsify",
    "dictionary-learning",
    "lm-polygraph",
)
# Title, columns and rows of every table of this process, by file name.
_tables: dict[str, tuple[list[str], dict[str, list[list[Any]]]]] = {}


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


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], table: str | None = ""
) -> None:
    """Print a table as plain text, numbers with three significant digits, and keep it as csv.

    Args:
        title: the case that was measured. A second table with this title replaces the first;
            tables with other titles are appended.
        columns: names of the columns.
        rows: cells; None is an empty cell.
        table: name of the csv file after that of the script; None: only print.

    Raises:
        ValueError: another table of the same file has other columns.
    """
    cells = [
        [
            f"{cell:.3g}" if isinstance(cell, float) else "" if cell is None else str(cell)
            for cell in row
        ]
        for row in [columns, *rows]
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    sys.stdout.write("\n".join([f"\n{title}", *lines, ""]))
    sys.stdout.flush()
    if table is not None and (folder := os.environ.get(FOLDER)):
        name = ".".join(filter(None, (Path(sys.argv[0]).stem, table)))
        _keep(Path(folder) / f"{name}.csv", title, columns, rows)


def _keep(path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write all tables of one file: a column `case`, the columns, and those of `ORIGIN`."""
    known, cases = _tables.setdefault(path.name, (list(columns), {}))
    if known != list(columns):
        raise ValueError(
            f"{path.name} has the columns {known}, found {list(columns)}: give this table a name"
        )
    cases[title] = [list(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["case", *(name or "what" for name in columns), *ORIGIN])
        for case, found in cases.items():
            writer.writerows([[case, *map(_cell, row), *_origin()] for row in found])


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


@cache
def _origin() -> tuple[str, ...]:
    """Values of the columns `ORIGIN`, which are the same for the whole process."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *map(_relative, sys.argv[1:])]
    command = shlex.join(["python", *words])
    return machine(), versions(), _code(), datetime.now(UTC).date().isoformat(), command


def machine() -> str:
    """Processor, cores and memory of this machine."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory = psutil.virtual_memory().total / 1e9
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores, {memory:.0f} GB"


def versions() -> str:
    """Python and the packages that a measurement may depend on, those of other projects too."""
    found = [f"python {'.'.join(map(str, sys.version_info[:3]))}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _code() -> str:
    """Short commit of the checkout, with + if files of it were changed; empty without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _relative(word: str) -> str:
    """An argument without the path of the checkout."""
    return word.replace(f"{ROOT}/", "")
