"""What is stored of the activations."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class ActivationSettings(Section):
    """What is read from the model, and how it is kept."""

    layers: Literal["all"] | list[int] = Field(
        "all", description="Analysed layers (0 = output of the first block), ascending."
    )
    site: Literal["resid_post", "mlp_out", "attn_out"] = Field(
        "resid_post",
        description="What is read of each block: the residual stream behind it, or what its MLP or its attention adds to the stream.",
    )
    positions: Literal["answer", "last", "all"] = Field(
        "answer",
        description="At which tokens of a data set's texts activations are read, tracked and pooled: all of the answer, its last one, or all of the text (of an answer in `generation.prompt: chat`: all behind the prompt).",
    )
    storage: Literal["fp16", "int8s"] = Field(
        "fp16",
        description="How training activations are kept: half precision, or standardised 8-bit integers at half the size. Held-out text and examples are always fp16.",
    )
    disk_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Most disk that training activations may fill at once, beside the held-out text's, which stay; null keeps all layers.",
    )
    rows_per_job: int = Field(
        1_048_576,
        ge=1,
        description="Tokens of one extraction job; what a preempted job can lose at most.",
    )
