"""Which activations are read from the model, and how they are stored."""

from typing import Literal

from pydantic import Field, field_validator

from ghosttrack.settings.section import Section


class ActivationSettings(Section):
    """Which activations are read from the model, and how they are stored."""

    layers: Literal["all"] | list[int] = Field(
        "all",
        description="Layers to analyse, in ascending order, or `all`. Layer 0 is the output of "
        "the first block.",
    )
    site: Literal["resid_post", "mlp_out", "attn_out"] = Field(
        "resid_post",
        description="Activation to read in each block. `resid_post`: the residual stream after "
        "the block; `mlp_out`: what the MLP adds to the residual stream; `attn_out`: what the "
        "attention adds to it.",
    )
    positions: Literal["answer", "last", "all"] = Field(
        "answer",
        description="Tokens of a data set's texts whose activations are read and tracked. "
        "Probes read the mean or the maximum over these tokens. `answer`: all tokens of the "
        "answer; `last`: the last token of the answer; `all`: all tokens of the text. For an "
        "answer with `generation.prompt: chat`, `all` means all tokens after the prompt.",
    )
    storage: Literal["fp16", "int8s"] = Field(
        "fp16",
        description="Data type of the stored training activations. `fp16`: half precision; "
        "`int8s`: standardised 8-bit integers, which take half the space. Activations of held-out "
        "text and of examples are always fp16.",
    )
    min_scale: int = Field(
        1,
        ge=1,
        le=2**24,
        description="Minimum scale of the stored activations, a power of two. Activations are "
        "divided by the scale of their layer, stored in half precision, and multiplied by it when "
        "they are read, so values up to 65,504 x scale can be stored. `check_model` determines the "
        "scale of every layer from ordinary text: 1 for a median norm of up to 3,275, else the power "
        "of two that is large enough for 20 median norms. Raise this minimum if an extraction job "
        "finds larger values.",
    )
    disk_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Maximum disk space, in GB, for training activations and activations of "
        "held-out text together. The held-out activations of all layers are kept, so their size "
        "is subtracted from the budget first. Layers are then extracted and trained in waves "
        "(sets of layers) whose training activations fit the rest. Activations of examples are "
        "not counted. null: no limit, one wave, and the training activations of all layers are "
        "kept.",
    )
    rows_per_job: int = Field(
        1_048_576,
        ge=1,
        description="Tokens per extraction job. A preempted job loses at most this much work.",
    )

    @field_validator("min_scale")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(
                f"activations.min_scale: {value} must be a power of two, such as "
                f"{1 << value.bit_length()}"
            )
        return value
