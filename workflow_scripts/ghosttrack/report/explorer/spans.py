"""Contexts and hallucinated spans of the texts of the explorer."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ghosttrack.facts.spans import Span
from ghosttrack.report import marked

# Contexts per packed part of the page: 50 of 2,000 characters are 40 kB packed.
PASSAGES = 50


class Contexts:
    """The distinct contexts of the shown texts, in the order of their first texts."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, context: str) -> int:
        """Number of a context; -1 for none."""
        return self._places.setdefault(context, len(self._places)) if context else -1

    def packed(self) -> list[list[str]]:
        """All contexts, PASSAGES in a part."""
        every = list(self._places)
        return [every[start : start + PASSAGES] for start in range(0, len(every), PASSAGES)]


def of_text(
    row: Any, begin: int, pieces: Sequence[str], scores: pd.DataFrame | None
) -> dict[str, Any]:
    """Marks of a text's answer and what the token detector says about its tokens.

    Args:
        row: example with the columns answer_start and spans.
        begin: first character of the first piece in the text.
        pieces: of the answer's tokens.
        scores: rows of `marked.with_thresholds` of these tokens; None without token scores.
    Returns:
        marks: number of the piece, start and end in it in UTF-16 units, as JavaScript counts, and
        probability. hallucinated: by token, 0 or 1. token: score by token; limit: threshold.
        Both only with finite scores.
    """
    spans = [Span(**span) for span in row.spans]
    marks: list[list[Any]] = []
    at = begin - int(row.answer_start)
    for place, piece in enumerate(pieces):
        for part in marked.parts_of(at, at + len(piece), spans) if piece else ():
            if part.probability > 0:
                start, end = (_units(piece[: edge - at]) for edge in (part.start, part.end))
                marks.append([place, start, end, round(part.probability, 4)])
        at += len(piece)
    found: dict[str, Any] = {"marks": marks}
    if scores is not None and len(scores) == len(pieces):
        found["hallucinated"] = scores["label"].astype(int).tolist()
        if scores["score"].notna().all():
            limit = float(scores["threshold"].iloc[0])
            found["token"] = [round(float(value), 3) for value in scores["score"]]
            found["limit"] = None if pd.isna(limit) else round(limit, 3)
    return found


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
