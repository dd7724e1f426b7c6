"""How the model's forward pass is computed."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class InferenceSettings(Section):
    """How the model's forward pass is computed."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the model's weights and hidden states in every forward pass. "
        "`auto`: float32 on a CPU, the data type of the checkpoint on a GPU. Half precision takes "
        "half the memory; on most CPUs it is much slower than float32. Norms, stored activations, "
        "log-probabilities and entropies are computed in float32 from the model's outputs.",
    )
    tf32: bool = Field(
        False,
        description="Whether a GPU rounds the factors of float32 products to TF32 (10 bits of "
        "mantissa, as in float16), which is faster. It has no effect on a CPU or with another "
        "data type. Not measured.",
    )
    quantization: Literal["none", "4bit"] = Field(
        "none",
        description="`4bit`: the weights of dense layers are rounded to 4 bits (NF4) when the "
        "model is loaded, and multiplied in `inference.dtype`. It needs a GPU and the Python "
        "package bitsandbytes in the environment of the jobs. Not measured.",
    )


DEFAULT_INFERENCE = InferenceSettings()
