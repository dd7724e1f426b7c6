"""GhostTrack: do a language model's tracked internal hypotheses reveal when it hallucinates?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghosttrack.api import Detector, Score, Text

__version__ = "0.1.0"
__all__ = ["Detector", "Score", "Text", "__version__"]


def __getattr__(name: str) -> Any:
    """`from ghosttrack import Detector`, without a cost for those who only import the package."""
    if name in ("Detector", "Score", "Text"):
        from ghosttrack import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
