"""Cross-validation, controls and detectors."""

from typing import Literal

from pydantic import Field

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
        description="Inner folds in each outer training fold, for model selection and stacking.",
    )
    trees: int = Field(100, ge=10, description="Trees of the random forest.")
    audit: Literal["stop", "report"] = Field(
        "stop",
        description="What to do about a leak in a data set of given texts. `stop`: fail the run "
        "with the reason; `report`: only mark it in the report. A data set with `control: true` "
        "never stops a run.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive", "ensemble"]] = (
        Field(
            ["logistic", "forest", "boosting", "svm", "additive", "ensemble"],
            min_length=1,
            description="Detectors on the track metrics. `additive` is interpretable, with one "
            "curve per metric; `ensemble` is the mean of the others. Nulls only use `logistic` "
            "and `forest`.",
        )
    )
    pmi_prompts: int = Field(
        8,
        ge=0,
        description="PMI baseline: number of other prompts of the same relation after which each "
        "answer is scored again (up to four times as many where a relation has few answers). "
        "They give the PMI score and the counterfactual-prompt mean of the activations. 0: "
        "neither. Time grows in proportion.",
    )
    fold_seeds: list[int] = Field(
        [1, 2, 3, 4],
        min_length=1,
        description="Seeds of the other fold assignments in the target `seed_variance`, never "
        "part of a run.",
    )
    p_true: Literal["generated", "given", "all", "none"] = Field(
        "generated",
        description="P(True) control: texts about which the model is also asked whether they are "
        "true. `generated`: its own answers; `given`: given texts; `all`; or `none`. The model "
        "reads each of these texts a second time.",
    )
    max_statements: int | None = Field(
        None,
        ge=8,
        description="Maximum number of examples per data set; groups are kept whole. null: all.",
    )
