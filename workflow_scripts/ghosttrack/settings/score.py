"""User texts, scored by the detector of a finished run."""

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class ScoreSettings(Section):
    """User texts, scored by the saved detector: the target `scores`."""

    texts: names.LocalPath | None = Field(
        None,
        description="File with the user texts. A .txt file has one text per line. A .csv, .tsv, "
        ".jsonl, .json or .parquet file has a column `text` and optional columns `answer`, `id`, "
        "`context` and `question` (for `generation.prompt: chat`). A cell holds text or a number. "
        "Values of `id` must be unique. A row without an id is named by its number.",
    )
    context: names.LocalPath | None = Field(
        None,
        description="Text file that the model reads before each text and that is not scored. It "
        "should hold a few true statements of the same kind, one per line.",
    )
    confidence: float = Field(
        0.75,
        ge=0.5,
        le=1,
        description="Fraction of the verdicts that shall be right. The detector abstains where it has "
        "not shown that. 0.5: a verdict on every text.",
    )
    reasons: int = Field(
        5,
        ge=0,
        description="Number of SAE features that are named as reasons for the score of each text.",
    )
