"""Confidence intervals, and the requirements of a claim."""

from pydantic import Field

from ghosttrack.settings.section import Section


class EvaluationSettings(Section):
    """Confidence intervals, and the requirements of a claim."""

    bootstrap: int = Field(
        1000,
        ge=100,
        description="Resamples for each interval. The bootstrap draws whole groups (cluster "
        "bootstrap).",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    minimum_groups: int = Field(
        20,
        ge=2,
        description="Minimum number of groups that a claim needs to be called established.",
    )
    minimum_answers: int = Field(
        50,
        ge=10,
        description="A relation of generated answers is tested separately if it has at least this "
        "many correct answers and this many wrong ones. With `generation.questions: 700` several "
        "relations reach it.",
    )
