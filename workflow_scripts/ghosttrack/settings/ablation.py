"""Studies beside a run: ablations of the track metrics, and tuning of the tracking settings."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings.section import Section

Family = Literal[
    "entropy",
    "churn",
    "competition",
    "stability",
    "dominance",
    "density",
    "linkage",
    "clusters",
    "reconstruction",
    "generation",
]


class AblationSettings(Section):
    """Ablations of the track metrics: the target `ablations`, never part of a run."""

    families: list[Family] = Field(
        ["entropy", "churn", "competition", "stability", "dominance", "density"],
        min_length=1,
        description="Families of track metrics that the baseline uses. Every arm (a variant "
        "compared with the baseline) uses them, too, unless it chooses other families. The six "
        "default families are the original 26 metrics.",
    )
    kinds: list[Literal["family", "only", "cumulative", "feature", "tracking"]] = Field(
        ["family", "only", "cumulative", "feature", "tracking"],
        min_length=1,
        description="Kinds of arms. `family`: leave one family out; `only`: one family alone; "
        "`cumulative`: add the families one after another; `feature`: leave one metric out; "
        "`tracking`: no links, random links, permuted decoders, or only the strongest feature "
        "per layer.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive"]] = Field(
        ["logistic", "forest"],
        min_length=1,
        description="Detectors that are fitted on the metrics. On the baseline, the tracks of "
        "the run, and on the arms of kind `tracking` all of them are fitted. On all other arms of "
        "`ablations` and `tuning` only the first one is.",
    )


class TuningSettings(Section):
    """Other values of one tracking setting at a time, chosen in training folds: target `tuning`."""

    top_k: list[int] = Field([10, 25], description="Values of `tracking.top_k`.")
    gate_quantile: list[float] = Field(
        [0.99, 0.9999], description="Values of `tracking.gate_quantile`."
    )
    coast: list[Literal[0, 1]] = Field([0], description="Values of `tracking.coast`.")
    links: list[Literal["cosine", "correlation", "identity"]] = Field(
        ["identity", "correlation"],
        description="Values of `tracking.links`; `identity` is skipped with "
        "`sae.dictionaries: independent`.",
    )
    activation_weight: list[float] = Field(
        [0.2], description="Values of `tracking.activation_weight`."
    )
    second_association: list[int] = Field(
        [1], description="Values of `tracking.second_association`."
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name in ("top_k", "second_association"):
            values = getattr(self, name)
            if any(value < 1 for value in values):
                raise ValueError(f"tuning.{name}: {values} must be 1 or more")
        if any(not 0.5 < value < 1 for value in self.gate_quantile):
            raise ValueError(
                f"tuning.gate_quantile: {self.gate_quantile} must be above 0.5 and below 1"
            )
        if any(value < 0 for value in self.activation_weight):
            raise ValueError(
                f"tuning.activation_weight: {self.activation_weight} must be 0 or more"
            )
        return self
