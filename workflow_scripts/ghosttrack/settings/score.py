"""Texts of the user, scored by the detector of a finished run."""

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class ScoreSettings(Section):
    """Scoring one's own texts with the saved detector: the target `scores`."""

    texts: names.LocalPath | None = Field(
        None,
        description="File for the target `scores`: .txt (one text a line), .csv, .tsv, .jsonl, .json or .parquet with a column `text`, and perhaps `answer`, `id`, `context` and `question` (see `generation.prompt`), each text or a number. No two rows have one `id`; without one a row has its number.",
    )
    context: names.LocalPath | None = Field(
        None,
        description="Text file that the model reads before each text and nobody judges: a few true statements of the same kind, one a line.",
    )
    confidence: float = Field(
        0.75,
        ge=0.5,
        le=1,
        description="Below this probability of its own verdict the detector abstains; 0.5: never.",
    )
    reasons: int = Field(5, ge=0, description="Features named for each text.")
