"""The report and the explorer."""

from pydantic import Field

from ghosttrack.settings.section import Section


class ReportSettings(Section):
    """Size of the pages."""

    explorer_texts: int = Field(
        2000,
        ge=1,
        description="Maximum number of texts in `explorer.html`. Whole groups are chosen, in "
        "proportion to the size of each data set, and errors of the detector are among them. The "
        "page stays fast with 2,000 texts.",
    )
    explorer_tracks: int = Field(
        40,
        ge=1,
        description="Maximum number of tracks per token in `explorer.html`, strongest first. "
        "Where answers are long, there are fewer.",
    )
