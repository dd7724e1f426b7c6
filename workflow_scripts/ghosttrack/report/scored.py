"""Scored texts as one page: each with its verdict, its tokens coloured, and its reasons. No script, no request."""

from collections.abc import Mapping, Sequence
from typing import Any

import ghosttrack
from ghosttrack.detection.scored_texts import ScoredText
from ghosttrack.report import page

# Probe scores from which on a token's colour is full, and how much colour that is.
FULL, STRONGEST = 3.0, 62


def render(scores: Sequence[ScoredText], about: Mapping[str, Any]) -> str:
    """The page as HTML text.

    Args:
        about: the detector's own description, and `run` and `confidence`.
    """
    return page.page(
        "scored.html",
        run=about["run"],
        confidence=about["confidence"],
        quality=about["quality"],
        counts={
            verdict: sum(score.verdict == verdict for score in scores)
            for verdict in ("hallucinated", "true", "abstain")
        },
        texts=[{"score": score, "parts": _parts(score)} for score in scores],
        version=ghosttrack.__version__,
    )


def _parts(score: ScoredText) -> list[dict[str, Any]]:
    """The text in pieces: judged tokens with a colour, the rest without; joined they are the text."""
    found: list[dict[str, Any]] = []
    end = 0
    for place, token in enumerate(score.tokens):
        start = end if place else token.start
        if not place and start:
            found.append({"text": score.text[:start], "style": "", "title": ""})
        stop = max(start, token.end)
        tone = round(STRONGEST * min(1.0, abs(token.probe) / FULL))
        colour = "--cool" if token.probe < 0 else "--hot"
        found.append(
            {
                "text": score.text[start:stop],
                "style": f"background: color-mix(in srgb, var({colour}) {tone}%, transparent)",
                "title": f"surprise {token.surprise:.2f} nats, probes {token.probe:+.2f}",
            }
        )
        end = stop
    return [*found, {"text": score.text[end:], "style": "", "title": ""}]
