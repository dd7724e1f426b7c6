"""Cross-validation, controls and detectors."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings.section import Section


class DetectionSettings(Section):
    """Cross-validation, controls and detectors."""

    folds: int = Field(
        5, ge=2, le=50, description="Outer folds; all examples of a group stay in one fold."
    )
    inner_folds: int = Field(
        4,
        ge=2,
        le=20,
        description="Inner folds in the training part of each outer fold, for model selection and "
        "stacking.",
    )
    trees: int = Field(100, ge=10, description="Trees of the random forest.")
    audit: Literal["stop", "report"] = Field(
        "stop",
        description="What to do about a leak in a data set of given texts. `stop`: fail the run "
        "with the reason; `report`: only mark the leak in the report. A data set with `control: "
        "true` never stops a run.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive", "ensemble"]] = (
        Field(
            ["logistic", "forest", "boosting", "svm", "additive", "ensemble"],
            min_length=1,
            description="Detectors on the track metrics. `additive`: an interpretable model with one "
            "curve per metric; `ensemble`: the mean of the others. On the metrics of nulls, only "
            "`logistic` and `forest` are fitted.",
        )
    )
    pmi_prompts: int = Field(
        8,
        ge=0,
        description="Number of other prompts of the same relation after which each answer is "
        "scored again. The PMI score and the counterfactual-prompt mean of the activations are "
        "means over these prompts. If a relation has many prompts and few answers, each answer "
        "gets more prompts, up to four times this number. 0: neither is computed. Time grows in "
        "proportion.",
    )
    fold_seeds: list[int] = Field(
        [1, 2, 3, 4],
        min_length=1,
        description="Seeds of further fold assignments, for the target `seed_variance`. No other "
        "target uses them.",
    )
    p_true: Literal["generated", "given", "all", "none"] = Field(
        "generated",
        description="Texts of the P(True) control, which asks the model whether a text is true. "
        "`generated`: the model's own answers; `given`: given texts; `all`: both; `none`: no "
        "texts. The model reads each of these texts a second time.",
    )
    statements_per_kind: int = Field(
        200,
        ge=8,
        le=1000,
        description="Maximum number of training statements of each kind (affirmed, negated, "
        "comparison, definition, ...) for the detector of whole statements. Its time grows in "
        "proportion.",
    )
    max_statements: int | None = Field(
        None,
        ge=8,
        description="Maximum number of examples per data set; groups are kept whole. null: all.",
    )

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        if set(self.detectors) == {"ensemble"}:
            raise ValueError(
                "detection.detectors: the ensemble is the mean of the other detectors in the list; "
                "add one, such as logistic"
            )
        return self
