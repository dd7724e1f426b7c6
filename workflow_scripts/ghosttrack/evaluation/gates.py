"""Quality gates of sparse autoencoders: ranges that their metrics should lie in."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Gate(NamedTuple):
    """A metric of quality.json with its accepted range; `asked`: the range in words."""

    key: str
    label: str
    low: float
    high: float
    asked: str

    def value(self, quality: Mapping[str, Any]) -> float:
        """The metric; NaN where it is missing or undefined."""
        # The CE score is undefined where zero ablation does not increase the loss (random weights).
        if self.key == "ce_loss_score" and not quality.get(
            "ce_loss_with_ablation", 0.0
        ) > quality.get("ce_loss_without_sae", 0.0):
            return math.nan
        return float(quality.get(self.key, math.nan))

    def passed(self, quality: Mapping[str, Any]) -> bool | None:
        """Whether the SAE passes; None without a metric."""
        value = self.value(quality)
        return None if math.isnan(value) else self.low <= value <= self.high

    def worst(self, quality: Mapping[int, Mapping[str, Any]]) -> int | None:
        """The layer furthest outside the range, else nearest its bounds; None without a metric."""
        margins = {
            layer: min(value - self.low, self.high - value)
            for layer, metrics in quality.items()
            if not math.isnan(value := self.value(metrics))
        }
        return min(margins, key=lambda layer: margins[layer], default=None)


# ASSUME: 50 to 100 active features are few enough to interpret. The other bounds are what published
# SAEs of this size reach at that sparsity in middle layers
# (docs/explanation/sparse_autoencoders.md).
GATES = (
    Gate("l0", "L0", 50.0, 100.0, "50 to 100"),
    Gate("dead_fraction", "dead features", -math.inf, math.nextafter(0.05, 0.0), "under 5 %"),
    Gate("ce_loss_score", "CE score", 0.95, math.inf, "at least .95"),
    Gate("fvu_token_median", "FVU, median token", -math.inf, 0.20, "at most .20"),
)


def judge(quality: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether the SAE passes each gate, by the name of the metric."""
    return {gate.key: gate.passed(quality) for gate in GATES}
