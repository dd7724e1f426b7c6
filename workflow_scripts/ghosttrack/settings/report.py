"""The report and the explorer."""

from pydantic import Field

from ghosttrack.settings.section import Section


class ReportSettings(Section):
    """What the pages show."""

    explorer_texts: int = Field(
        2000,
        ge=1,
        description="Most texts in `explorer.html`: whole groups, each data set in proportion, failures included. 2,000 keep it quick.",
    )
    explorer_tracks: int = Field(
        40,
        ge=1,
        description="Most tracks of a token in `explorer.html`, strongest first; fewer where answers are long.",
    )
