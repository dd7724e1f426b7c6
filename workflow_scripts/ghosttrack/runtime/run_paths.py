"""Where the files of a run lie, for code that opens them without a rule.

Rules spell out their paths, so that they can be read; Python code asks here.
"""

from pathlib import Path
from typing import NamedTuple


def layer_name(layer: int) -> str:
    """Name of a layer in files and tables: layer_05."""
    return f"layer_{layer:02d}"


def layer_of(path: Path) -> int:
    """The layer that a path names: of its last part that begins with `layer_`, without suffix."""
    named = [part for part in path.with_suffix("").parts if part.startswith("layer_")]
    return int(named[-1].removeprefix("layer_"))


class RunPaths(NamedTuple):
    """Paths of one run."""

    home: Path  # results/MODEL

    def sae(self, layer: int) -> Path:
        """Directory of a layer's SAE."""
        return self.home / "saes" / layer_name(layer)

    def sae_weights(self, layer: int) -> Path:
        """Weights of a layer's SAE."""
        return self.sae(layer) / "sae_weights.safetensors"

    def sae_quality(self, layer: int) -> Path:
        """Held-out quality of a layer's SAE."""
        return self.sae(layer) / "quality.json"

    def manifest(self, layer: int, shard: int) -> Path:
        """Manifest of one shard of training activations."""
        return self.home / "activations" / layer_name(layer) / f"shard_{shard:04d}.json"

    def features(self, layer: int) -> Path:
        """Table of a layer's features."""
        return self.home / "features" / f"{layer_name(layer)}.parquet"

    def examples(self, dataset: str) -> Path:
        """Texts and labels of a data set."""
        return self.home / "datasets" / dataset / "examples.parquet"

    def example_activations(self, dataset: str) -> Path:
        """Directory of the activations and outputs of a data set."""
        return self.home / "examples" / dataset

    @property
    def detection(self) -> Path:
        """Directory of scores and of the saved detector."""
        return self.home / "detection"

    @property
    def evaluation(self) -> Path:
        """Directory of metric tables and the ledger."""
        return self.home / "evaluation"
