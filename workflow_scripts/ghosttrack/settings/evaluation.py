"""Intervals, and what a claim needs."""

from pydantic import Field

from ghosttrack.settings.section import Section


class EvaluationSettings(Section):
    """Intervals and verdicts."""

    bootstrap: int = Field(
        1000, ge=100, description="Cluster-bootstrap draws behind every interval."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    minimum_groups: int = Field(
        20, ge=2, description="A claim on fewer groups is never called established."
    )
    minimum_answers: int = Field(
        50,
        ge=10,
        description="A relation of generated answers carries claims of its own from so many right and so many wrong ones on; with `generation.questions: 700` several do.",
    )
