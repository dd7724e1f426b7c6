"""What a sparse autoencoder must reach before its features are worth reading, and where it comes closest to failing."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Gate(NamedTuple):
    """A figure of quality.json with the range that it must lie in."""

    key: str
    label: str
    low: float
    high: float
    asked: str  # the range in words

    def value(self, quality: Mapping[str, Any]) -> float:
        """The figure; NaN where there is none, or none that means anything."""
        # Where zeros do not cost the model anything (random weights), a share of that cost means nothing.
        if self.key == "ce_loss_score" and not quality.get(
            "ce_loss_with_ablation", 0.0
        ) > quality.get("ce_loss_without_sae", 0.0):
            return math.nan
        return float(quality.get(self.key, math.nan))

    def passed(self, quality: Mapping[str, Any]) -> bool | None:
        """Whether an autoencoder passes; None where there is no figure to judge."""
        value = self.value(quality)
        return None if math.isnan(value) else self.low <= value <= self.high

    def worst(self, quality: Mapping[int, Mapping[str, Any]]) -> int | None:
        """The layer that is furthest out of the range, or nearest to its edge; None without any figure."""
        margins = {
            layer: min(value - self.low, self.high - value)
            for layer, found in quality.items()
            if not math.isnan(value := self.value(found))
        }
        return min(margins, key=lambda layer: margins[layer], default=None)


# ASSUME: 50 to 100 active features are few enough to read. The others are what published autoencoders of this size
# reach at that sparsity in middle layers (docs/explanation/sparse_autoencoders.md).
GATES = (
    Gate("l0", "L0", 50.0, 100.0, "50 to 100"),
    Gate("dead_fraction", "dead features", -math.inf, math.nextafter(0.05, 0.0), "under 5 %"),
    Gate("ce_loss_score", "CE score", 0.95, math.inf, "at least .95"),
    Gate("fvu_token_median", "FVU, median token", -math.inf, 0.20, "at most .20"),
)


def judge(quality: Mapping[str, Any]) -> dict[str, bool | None]:
    """Each gate's figure by name, and whether the autoencoder passes."""
    return {gate.key: gate.passed(quality) for gate in GATES}
