"""Folds, controls, probes and detectors."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class DetectionSettings(Section):
    """Folds and detectors."""

    folds: int = Field(5, ge=2, le=50, description="Outer folds; whole groups stay in one fold.")
    inner_folds: int = Field(
        4, ge=2, le=20, description="Folds inside each training fold, for choosing and stacking."
    )
    trees: int = Field(100, ge=10, description="Trees of the random forest.")
    audit: Literal["stop", "report"] = Field(
        "stop",
        description="What a leak in a data set of given texts does: `stop` the run with the reason, or only mark it in the `report`. Data sets with `control: true` never stop a run.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive", "ensemble"]] = (
        Field(
            ["logistic", "forest", "boosting", "svm", "additive", "ensemble"],
            min_length=1,
            description="Detectors on the metrics of tracks: `additive` explains itself by one curve a metric, `ensemble` is the mean of the others. Nulls get `logistic` and `forest`.",
        )
    )
    pmi_prompts: int = Field(
        8,
        ge=0,
        description="Other prompts of its relation that each answer is also scored after (up to four times as many where answers are few), for PMI and to tell what its activations owe to the answer alone; 0: none. Time grows in proportion.",
    )
    fold_seeds: list[int] = Field(
        [1, 2, 3, 4],
        min_length=1,
        description="Seeds of other folds beside the run's own; target `seed_variance`, never part of a run.",
    )
    p_true: Literal["generated", "given", "all", "none"] = Field(
        "generated",
        description="Texts that the model is also asked about, true or false, as a control: its own answers, given texts, `all` or `none`. It reads every text once more.",
    )
    max_statements: int | None = Field(
        None,
        ge=8,
        description="At most this many examples per data set, whole groups kept; null uses all.",
    )
