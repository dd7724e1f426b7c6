"""Page of scored texts: verdict, coloured words and reasons of each text."""

from collections.abc import Mapping, Sequence
from typing import Any

import ghosttrack
from ghosttrack.detection.scored_texts import ScoredText
from ghosttrack.report import page

# Absolute probe score at which the colour of a word saturates, and its opacity there in per cent.
FULL, STRONGEST = 3.0, 62


def render(scores: Sequence[ScoredText], about: Mapping[str, Any]) -> str:
    """The page as HTML text.

    Args:
        scores: of all texts.
        about: the description stored with the detector, with the keys `run` and `confidence` added.
    """
    return page.page(
        "scored.html",
        run=about["run"],
        confidence=about["confidence"],
        quality=about["quality"],
        counts={
            verdict: sum(score.verdict.split(":")[0] == verdict for score in scores)
            for verdict in ("hallucinated", "true", "abstain")
        },
        texts=[entry(score) for score in scores],
        version=ghosttrack.__version__,
    )


def entry(score: ScoredText) -> dict[str, Any]:
    """A score as templates show it."""
    return {"score": score, "parts": _parts(score)}


def _parts(score: ScoredText) -> list[dict[str, Any]]:
    """The text split into pieces: scored words have a style, other pieces have none."""
    pieces: list[dict[str, Any]] = []
    end = 0
    for word in score.words:
        start, stop = max(end, word.start), max(end, word.end)
        if start > end:
            pieces.append({"text": score.text[end:start], "style": "", "title": ""})
        tone = round(STRONGEST * min(1.0, abs(word.probe) / FULL))
        colour = "--cool" if word.probe < 0 else "--hot"
        pieces.append(
            {
                "text": score.text[start:stop],
                "style": f"background: color-mix(in srgb, var({colour}) {tone}%, transparent)",
                "title": f"surprise {word.surprise:.2f} nats, probes {word.probe:+.2f}",
            }
        )
        end = stop
    return [*pieces, {"text": score.text[end:], "style": "", "title": ""}]
