"""The GPU: name, memory, versions, and the rates that bound every phase, measured."""

import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ghosttrack.cli.gpu.measurement import Measurement
from ghosttrack.errors import UserError

# Square matrices of this size reach the peak rate of a data-centre GPU; on a CPU they take seconds.
MATRIX, SMALL_MATRIX = 8192, 512
# Bytes of a copy: several times the cache of a GPU.
COPIED, SMALL_COPIED = 2**30, 2**24
PRECISIONS = ("float32", "tf32", "bfloat16")


def require_gpu() -> torch.device:
    """The GPU.

    Raises:
        UserError: torch sees no GPU.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "unset" if visible is None else repr(visible)
    raise UserError(
        f"no GPU: torch {torch.__version__} ({built}) sees none on {os.uname().nodename}, "
        f"CUDA_VISIBLE_DEVICES is {shown}. "
        "Run this on a machine with a GPU (snakemake --profile slurm check_gpu), with a torch "
        "built for its CUDA"
    )


def described(device: torch.device) -> str:
    """Name and memory of the GPU, versions of torch and CUDA."""
    entries = about(device)
    return (
        f"{entries['name']}, {entries['memory_gib']:.0f} GiB; torch {entries['torch']}, CUDA "
        f"{entries['cuda']}"
    )


def about(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on: the device, the versions and the host's processor."""
    entries: dict[str, Any] = {
        "name": platform.processor() or platform.machine(),
        "memory_gib": 0.0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": None,
        "python": platform.python_version(),
        "host_cores": len(os.sched_getaffinity(0)),
        "host_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        entries |= {
            "name": card.name,
            "memory_gib": card.total_memory / 2**30,
            "compute_capability": f"{card.major}.{card.minor}",
            "driver": _driver(),
        }
    return entries


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
        return answer.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def set_precision(precision: str) -> torch.dtype:
    """Let float32 products run as IEEE float32 or as TF32; returns the dtype of the tensors."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def rate(call: Callable[[], Any], device: torch.device, seconds: float, warm_up: int = 2) -> float:
    """Calls per second over about `seconds`.

    The device is waited for only before and after, so that calls may overlap as in a job.
    """
    for _ in range(warm_up):
        call()
    wait(device)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or not calls:
        call()
        calls += 1
        if calls % 8 == 0:
            wait(device)  # otherwise a thousand launches are queued before the first one ends
    wait(device)
    return calls / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    """Wait until the device has done everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Limits(NamedTuple):
    """What bounds every phase on this machine.

    flops: FLOP/s of large square matrix products by precision (see PRECISIONS).
    memory: bytes read and written per second by a copy on the device.
    to_device: bytes per second of a copy from pinned host memory (pageable on a CPU).
    """

    flops: dict[str, float]
    memory: float
    to_device: float

    def measurements(self) -> list[Measurement]:
        """The limits as rows of the table."""
        return [
            *(
                Measurement("limits", f"large matrix products, {name}", value / 1e12, "TFLOP/s")
                for name, value in self.flops.items()
            ),
            Measurement("limits", "copy on the device", self.memory / 1e9, "GB/s"),
            Measurement("limits", "copy from the host", self.to_device / 1e9, "GB/s"),
        ]


def limits(device: torch.device, seconds: float, *, small: bool = False) -> Limits:
    """Measure the limits, each for about `seconds`; `small`: with sizes for a CPU."""
    size = SMALL_MATRIX if small else MATRIX
    flops = {}
    for precision in PRECISIONS:
        matrix = torch.randn(size, size, device=device).to(set_precision(precision))
        per_second = rate(functools.partial(torch.mm, matrix, matrix), device, seconds)
        flops[precision] = 2.0 * size**3 * per_second
    count = (SMALL_COPIED if small else COPIED) // 4
    source, target = (torch.zeros(count, device=device) for _ in range(2))
    memory = 8.0 * count * rate(functools.partial(target.copy_, source), device, seconds)
    host = torch.zeros(count, pin_memory=device.type == "cuda")
    copy = functools.partial(target.copy_, host, non_blocking=True)
    return Limits(flops, memory, 4.0 * count * rate(copy, device, seconds))
