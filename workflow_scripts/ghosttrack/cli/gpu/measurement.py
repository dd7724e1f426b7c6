"""One measured number of a GPU check, as a line of its table and of its JSON file."""

from typing import NamedTuple


class Measurement(NamedTuple):
    """A measured number."""

    part: str
    name: str
    value: float
    unit: str
    share: float | None = None  # fraction of `limit`
    limit: str = ""  # what bounds the value, measured in the same run

    @property
    def line(self) -> str:
        """The measurement as a line of text."""
        share = "" if self.share is None else f"  {self.share:.0%} of {self.limit}"
        return f"{self.part}: {self.name}: {self.value:,.4g} {self.unit}{share}"
