"""The cluster that a plan is made for."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class PlanSettings(Section):
    """What the machine offers: for the size of waves and the expected hours. Changes no result, reruns nothing."""

    gpus: int = Field(4, ge=1, description="Jobs that may hold an accelerator at once.")
    teraflops: float = Field(
        40.0,
        gt=0,
        description="Sustained 10^12 operations per second of one accelerator, for expected hours until a first job was measured. 40: an A100 in TF32 at a quarter of its peak, an assumption.",
    )
    bandwidth_gb_s: float = Field(
        1200.0,
        gt=0,
        description="Sustained 10^9 bytes per second between one accelerator and its memory, which bounds SAE steps of small batches. 1200: an A100 at three quarters of its peak, an assumption.",
    )
    device: Literal["gpu", "cpu"] = Field(
        "gpu",
        description="Where SAEs train, and so which back end's operations the expected hours count.",
    )
    gpu_partition: names.Partition | None = Field(
        None,
        min_length=1,
        description="Slurm partition of the jobs with a GPU; null: the profile's `slurm_partition`, which all other jobs use.",
    )
    gpu_model: names.GpuModel | None = Field(
        None,
        min_length=1,
        description="Slurm's name for the type of GPU that those jobs ask for, `a100` for `--gpus=a100:1`; null: any.",
    )
