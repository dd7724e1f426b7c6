"""GPU usage of a job: sampled by the job with nvidia-smi, stored next to its benchmark file."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# Interval between samples. nvidia-smi takes some 50 ms.
SECONDS = 15.0
_QUERY = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)


class Sample(NamedTuple):
    """Usage of a GPU at one time, by all processes."""

    time: str  # UTC
    utilisation: float  # percent of the time in which a kernel ran
    memory_used: float  # MiB
    memory_total: float  # MiB


def samples_beside(log: Path) -> Path:
    """File of a job's samples: `logs/RULE/NAME.log` -> `benchmarks/RULE/NAME.gpu.tsv`."""
    parts = ["benchmarks" if part == "logs" else part for part in log.with_suffix(".gpu.tsv").parts]
    return Path(*parts)


def ask() -> Sample | None:
    """Usage of the first GPU of this process; None without nvidia-smi, a GPU, or an answer."""
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
    """Append a sample to `path` every `every` seconds while the block runs, if there is a GPU."""
    if (first := look()) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def sample() -> None:
        latest: Sample | None = first
        with path.open("w", encoding="utf-8") as stream:
            stream.write("\t".join(Sample._fields) + "\n")
            while True:
                if latest is not None:
                    stream.write("\t".join(map(str, latest)) + "\n")
                    stream.flush()
                if stop.wait(every):
                    return
                latest = look()

    thread = threading.Thread(target=sample, name="gpu samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=12)


def last_sample(path: Path) -> Sample | None:
    """The latest sample in a file, or None."""
    try:
        time, *numbers = path.read_text(encoding="utf-8").splitlines()[-1].split("\t")
        return Sample(time, *map(float, numbers))
    except (OSError, IndexError, ValueError, TypeError):
        return None
