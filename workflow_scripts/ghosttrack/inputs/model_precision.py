"""The precision in which a model runs: data type, TF32, quantization.

`inference.dtype: auto` depends on the device, so each job resolves it. `check_model` writes the
result to model_check.json; a job that resolves it otherwise is refused (`activations.run_model`).
"""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ghosttrack.settings import InferenceSettings

if TYPE_CHECKING:
    import torch

# Data types of safetensors in which a model can run; another one runs in float32.
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Precision(NamedTuple):
    """Resolved settings of `inference`."""

    dtype: str = "float32"  # float32, bfloat16 or float16
    tf32: bool = False  # whether float32 products round their factors to TF32
    quantization: str = "none"  # none or 4bit

    @property
    def name(self) -> str:
        """Name in manifests and messages, such as `bfloat16` or `float32 with TF32`."""
        parts = [
            "4-bit weights" if self.quantization == "4bit" else "",
            "TF32" if self.tf32 else "",
        ]
        more = " and ".join(part for part in parts if part)
        return f"{self.dtype} with {more}" if more else self.dtype

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The data type in torch."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


FLOAT32 = Precision()


def resolve(directory: Path, device: str, settings: InferenceSettings) -> Precision:
    """The precision of a fetched model on `device` (cpu or cuda)."""
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else checkpoint_dtype(directory)
    return Precision(
        dtype, settings.tf32 and device != "cpu" and dtype == "float32", settings.quantization
    )


def checkpoint_dtype(directory: Path) -> str:
    """Data type of most weights of a fetched model: float32, bfloat16 or float16."""
    from safetensors import safe_open

    sizes: Counter[str] = Counter()
    with safe_open(directory / "model.safetensors", "np") as weights:
        for name in weights.keys():  # noqa: SIM118 (the file is no dictionary)
            part = weights.get_slice(name)
            sizes[part.get_dtype()] += math.prod(part.get_shape())
    return _DTYPES.get(sizes.most_common(1)[0][0] if sizes else "", "float32")
