"""The machines on which a plan is based."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class PlanSettings(Section):
    """The machines, for the size of waves and the expected hours; no result depends on them."""

    gpus: int = Field(
        4, ge=1, description="Number of jobs that may use an accelerator at the same time."
    )
    teraflops: float = Field(
        40.0,
        gt=0,
        description="Sustained compute of one accelerator, in 10^12 floating-point operations per "
        "second. The expected hours are computed from it until a first job is measured. The "
        "default is an assumption: an A100 in TF32 at a quarter of its peak.",
    )
    bandwidth_gb_s: float = Field(
        1200.0,
        gt=0,
        description="Sustained memory bandwidth of one accelerator, in 10^9 bytes per second. It "
        "limits SAE steps of small batches. The default is an assumption: an A100 at three "
        "quarters of its peak.",
    )
    feed_gb_s: float = Field(
        5.0,
        gt=0,
        description="Rate at which one core reads shuffled activations and hands them to a training "
        "step, in 10^9 stored bytes per second. The stored measurement "
        "(benchmarks/feeding.py) has 4.0 (int8s) or 3.5 (fp16) in the first epoch, with checksums, and "
        "12 or 13 later. A slow core reaches half of that or less. Without a GPU the CPU also "
        "decodes; it then reaches 0.6 to 4.5.",
    )
    write_gb_s: float = Field(
        1.0,
        gt=0,
        description="Rate at which an extraction job writes the activations of all its layers with "
        "their checksums, in 10^9 stored bytes per second. The default is the stored "
        "measurement (benchmarks/writing.py). A slow core reaches half of it. Without a GPU the CPU "
        "also encodes; for int8s it then reaches 0.45.",
    )
    copy_gb_s: float = Field(
        20.0,
        gt=0,
        description="Rate of copies between host and accelerator, in 10^9 bytes per second. The "
        "default is an assumption: PCIe 4.0 x16 at two thirds of its peak.",
    )
    gpu_memory_gb: float = Field(
        40.0,
        gt=0,
        description="Memory of one accelerator, in 10^9 bytes. Activations of a layer that fit into "
        "half of it beside the SAE are fed and copied once, otherwise once per epoch. The default "
        "is that of the smaller A100.",
    )
    device: Literal["gpu", "cpu"] = Field(
        "gpu",
        description="Device on which the SAEs train. The expected hours count the operations of "
        "this device: those of dense steps on a GPU, those of sparse steps on a CPU.",
    )
    gpu_partition: names.Partition | None = Field(
        None,
        min_length=1,
        description="Slurm partition of the jobs with a GPU. null: the profile's "
        "`slurm_partition`, which all other jobs use.",
    )
    gpu_model: names.GpuModel | None = Field(
        None,
        min_length=1,
        description="Slurm's name for the type of GPU that these jobs request: `a100` gives "
        "`--gpus=a100:1`. null: any type.",
    )
    gpus_per_model: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of GPUs of each job that runs the model. With more than 1, the blocks "
        "are spread over these GPUs, for a model that does not fit into the memory of one. Not "
        "measured.",
    )
