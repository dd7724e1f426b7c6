"""Studies aside from a run: ablations of the track metrics, and tuning of the tracking settings."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings.section import Section

Family = Literal[
    "entropy", "churn", "competition", "stability", "dominance", "density", "linkage", "clusters", "reconstruction",
    "generation",
]  # fmt: skip


class AblationSettings(Section):
    """What the metrics of tracks are worth, part by part; target `ablations`, never part of a run."""

    families: list[Family] = Field(
        ["entropy", "churn", "competition", "stability", "dominance", "density"],
        min_length=1,
        description="Families of metrics that the baseline has, and every arm that does not name its own; the six of the default are the original 26 metrics.",
    )
    kinds: list[Literal["family", "only", "cumulative", "feature", "tracking"]] = Field(
        ["family", "only", "cumulative", "feature", "tracking"],
        min_length=1,
        description="Arms: without one `family`, `only` one family, families added one after another (`cumulative`), without one `feature`, and `tracking` without links, with random ones, with permuted decoders, with a single hypothesis a layer.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive"]] = Field(
        ["logistic", "forest"],
        min_length=1,
        description="Detectors: all of them score the run's own tracks and their nulls, the first one every other arm of ablations and tuning.",
    )


class TuningSettings(Section):
    """Tracking settings tried one at a time beside the run's own, chosen inside training folds; target `tuning`."""

    top_k: list[int] = Field([10, 25], description="Values of `tracking.top_k`.")
    gate_quantile: list[float] = Field(
        [0.99, 0.9999], description="Values of `tracking.gate_quantile`."
    )
    coast: list[Literal[0, 1]] = Field([0], description="Values of `tracking.coast`.")
    links: list[Literal["cosine", "correlation", "identity"]] = Field(
        ["identity", "correlation"],
        description="Values of `tracking.links`; `identity` is left out where dictionaries are independent.",
    )
    activation_weight: list[float] = Field(
        [0.2], description="Values of `tracking.activation_weight`."
    )
    second_association: list[int] = Field(
        [1], description="Values of `tracking.second_association`."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for values in (self.top_k, self.second_association):
            if any(value < 1 for value in values):
                raise ValueError(f"tuning: top_k and second_association {values} must be 1 or more")
        if any(not 0.5 < value < 1 for value in self.gate_quantile):
            raise ValueError(
                f"tuning.gate_quantile: {self.gate_quantile} must lie between .5 and 1"
            )
        if any(value < 0 for value in self.activation_weight):
            raise ValueError(
                f"tuning.activation_weight: {self.activation_weight} must not be below 0"
            )
        return self
