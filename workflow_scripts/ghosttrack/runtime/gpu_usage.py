"""How busy a job's GPU is: sampled by the job itself with nvidia-smi, kept beside its benchmark, read by `status`."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# Often enough for a curve of a job of minutes, rare enough to cost nothing (nvidia-smi takes some 50 ms).
SECONDS = 15.0
_QUERY = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)


class Sample(NamedTuple):
    """One look at a GPU: the share of the time in which it computed, and its memory in MiB, all processes together."""

    time: str  # UTC
    utilisation: float  # percent
    memory_used: float
    memory_total: float


def samples_beside(log: Path) -> Path:
    """Where the samples of the job with this log are: `logs/RULE/NAME.log` -> `benchmarks/RULE/NAME.gpu.tsv`."""
    parts = ["benchmarks" if part == "logs" else part for part in log.with_suffix(".gpu.tsv").parts]
    return Path(*parts)


def ask() -> Sample | None:
    """Look at the first GPU that this process may use; None without nvidia-smi, a GPU, or an answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not visible or shutil.which("nvidia-smi") is None:
        return None
    try:
        answer = subprocess.run(
            [*_QUERY, "-i", visible], check=True, capture_output=True, text=True, timeout=10
        ).stdout
        numbers = [float(word) for word in answer.strip().splitlines()[0].split(",")]
        return Sample(datetime.now(UTC).isoformat(timespec="seconds"), *numbers)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, TypeError):
        return None


@contextmanager
def sampled(
    path: Path, every: float = SECONDS, look: Callable[[], Sample | None] = ask
) -> Iterator[None]:
    """While the block runs, add a line to `path` every `every` seconds; without a GPU nothing is started or written."""
    if (first := look()) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def sample() -> None:
        found: Sample | None = first
        with path.open("w", encoding="utf-8") as stream:
            stream.write("\t".join(Sample._fields) + "\n")
            while True:
                if found is not None:
                    stream.write("\t".join(map(str, found)) + "\n")
                    stream.flush()
                if stop.wait(every):
                    return
                found = look()

    thread = threading.Thread(target=sample, name="gpu samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=12)


def last_sample(path: Path) -> Sample | None:
    """The newest sample of a job; None without one."""
    try:
        time, *numbers = path.read_text(encoding="utf-8").splitlines()[-1].split("\t")
        return Sample(time, *map(float, numbers))
    except (OSError, IndexError, ValueError, TypeError):
        return None
