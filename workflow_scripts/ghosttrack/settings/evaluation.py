"""Confidence intervals, and the requirements of a claim."""

from pydantic import Field

from ghosttrack.settings.section import Section


class EvaluationSettings(Section):
    """Confidence intervals, and the requirements of a claim."""

    bootstrap: int = Field(
        1000, ge=100, description="Cluster-bootstrap resamples for each interval."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    minimum_groups: int = Field(
        20, ge=2, description="Minimum number of groups for a claim to be called established."
    )
    minimum_answers: int = Field(
        50,
        ge=10,
        description="Minimum number of correct and of wrong answers for a relation of generated "
        "answers to be tested separately; with `generation.questions: 700` several relations "
        "reach it.",
    )
