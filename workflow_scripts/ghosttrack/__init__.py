"""GhostTrack: do SAE features, tracked across layers, reveal a language model's hallucinations?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghosttrack.api import Detector
    from ghosttrack.detection.scored_texts import ScoredText, Text

__version__ = "0.1.0"
__all__ = ["Detector", "ScoredText", "Text", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Detector`, `ScoredText` and `Text` on first use: their modules are slow to import."""
    if name == "Detector":
        from ghosttrack.api import Detector

        return Detector
    if name in ("ScoredText", "Text"):
        from ghosttrack.detection import scored_texts

        return getattr(scored_texts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
