"""The page of `make serve`: a form, and the verdict, words and reasons of each statement."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ghosttrack
from ghosttrack.detection.scored_texts import HALLUCINATED, TRUE, ScoredText
from ghosttrack.report import page, scored

# Confidences that the form offers.
CONFIDENCES = (0.5, 0.6, 0.75, 0.8, 0.9, 0.95)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


class Form(NamedTuple):
    """What the user has entered: statements, one per line, context and confidence."""

    texts: str = ""
    context: str = ""
    confidence: float = 0.75


class Page(NamedTuple):
    """A page, and the content security policy with which it must be sent."""

    html: str
    policy: str


def render(
    form: Form, scores: Sequence[ScoredText], about: Mapping[str, Any], error: str = ""
) -> Page:
    """The page with the scores of the form's statements, or with an error.

    Args:
        about: the description stored with the detector, with the key `run` added.
    """
    html = page.page(
        "served.html",
        run=about["run"],
        quality=about["quality"],
        form=form,
        confidences=sorted({*CONFIDENCES, form.confidence}),
        entries=[
            {**scored.entry(score), "words": verdict_in_words(score, form.confidence)}
            for score in scores
        ],
        error=error,
        version=ghosttrack.__version__,
    )
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
        for style in _STYLE.findall(html)
    )
    # Only words have a style attribute, whose colour the server computes.
    return Page(
        html,
        f"default-src 'none'; style-src {hashes}; style-src-elem {hashes}; "
        "style-src-attr 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'",
    )


def verdict_in_words(score: ScoredText, confidence: float) -> tuple[str, str]:
    """A verdict as a headline and a sentence."""
    likelier = HALLUCINATED if score.probability >= 0.5 else TRUE
    if score.verdict in (HALLUCINATED, TRUE):  # a probability is rounded
        likelier = score.verdict
    share = f"{max(score.probability, 1 - score.probability):.0%}".replace("%", " %")
    given = f"The detector gives {share} for {likelier}"
    if score.verdict == HALLUCINATED:
        return "Probably hallucinated", f"{given}."
    if score.verdict == TRUE:
        return "Probably true", f"{given}."
    reason = score.verdict.partition(":")[2].strip()
    needed = f"{confidence:.0%}".replace("%", " %")
    return "No verdict", f"{given}. " + (
        f"It abstains: {reason}."
        if reason
        else f"That is not enough for a verdict with a confidence of {needed}."
    )
