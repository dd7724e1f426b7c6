"""Answers with hallucinated spans: their pieces, and what the token detector says about them."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.detection import token_detectors
from ghosttrack.facts.spans import HARD, Span

# Columns of span_scores.parquet that the pages read, where they are there.
COLUMNS = ["id", "fold", "row", "start", "end", "label", "marked", token_detectors.DETECTOR]
# Answers that the report shows of a data set, by kind.
SHOWN = (
    ("found", "a hallucinated answer whose spans are found"),
    ("missed", "a hallucinated answer whose spans are missed"),
    ("false alarm", "a true answer with tokens that are called hallucinated"),
)
# Longest answer in the report, in characters.
LONGEST = 4000


class Part(NamedTuple):
    """Characters start to end - 1 of a text, and the largest probability of the spans over them."""

    start: int
    end: int
    probability: float


class Piece(NamedTuple):
    """A part of an answer that one token adds to it, as it is shown in the report.

    heat: score minus threshold, from -1 to 1; 0 without a score. said: the token's score in words.
    parts: text and kind of underline ("", "soft" up to HARD, "span").
    """

    heat: float
    said: str
    parts: list[tuple[str, str]]


class Answer(NamedTuple):
    """An answer of the report."""

    kind: str
    about: str
    id: str
    generator: str
    context: str
    question: str
    pieces: list[Piece]
    hallucinated: int
    called: int
    both: int


def parts_of(start: int, end: int, spans: Iterable[Span]) -> list[Part]:
    """Characters start to end - 1 of an answer in parts of equal probability; 0 outside of spans."""
    found = list(spans)
    edges = sorted(
        {start, end}
        | {edge for span in found for edge in (span.start, span.end) if start < edge < end}
    )
    return [
        Part(
            first,
            last,
            max((s.probability for s in found if s.start < last and s.end > first), default=0.0),
        )
        for first, last in itertools.pairwise(edges)
    ]


def with_thresholds(scores: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS` of span_scores.parquet with the threshold of the token detector, NaN without one.

    Args:
        scores: span_scores.parquet. choices: span_choices.csv.
    """
    name = token_detectors.DETECTOR
    chosen = choices[choices["score"] == name].set_index("fold")["threshold"].astype(float)
    found = scores[[column for column in COLUMNS if column in scores]].copy()
    if name not in found:
        found[name] = np.nan
    found["threshold"] = scores["fold"].map(chosen).replace(np.inf, np.nan).to_numpy(dtype=float)
    return found.rename(columns={name: "score"})


def called(scores: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the token detector calls each token hallucinated, (tokens,)."""
    result: pd.Series[bool] = scores["score"] >= scores["threshold"]
    return result


def heat(score: float, threshold: float) -> float:
    """How far a score is above its threshold (below: negative), relative to it, from -1 to 1."""
    if not np.isfinite([score, threshold]).all():
        return 0.0
    return float(np.clip((score - threshold) / max(abs(threshold), 0.05), -1, 1))


def examples(answers: pd.DataFrame, scores: pd.DataFrame) -> list[Answer]:
    """One answer of each kind of SHOWN, of different groups of texts where possible.

    Args:
        answers: examples.parquet. scores: of `with_thresholds`.
    """
    known = answers[answers["answer"].str.len() <= LONGEST].set_index("id")
    table = scores[scores["id"].isin(known.index) & scores["score"].notna()]
    if table.empty:
        return []
    table = table.assign(called=called(table))
    by_answer = table.groupby("id", sort=False).agg(
        tokens=("label", "size"), hallucinated=("label", "sum"), called=("called", "sum")
    )
    both = table[table["called"]].groupby("id")["label"].sum()
    by_answer["both"] = both.reindex(by_answer.index, fill_value=0)
    f1 = 2 * by_answer["both"] / (by_answer["hallucinated"] + by_answer["called"]).clip(lower=1)
    missed = by_answer["hallucinated"] - by_answer["both"]
    false = by_answer["hallucinated"] == 0
    orders = {
        "found": f1[~false & (by_answer["both"] > 0)].sort_values(ascending=False, kind="stable"),
        "missed": missed[~false & (missed > 0)].sort_values(ascending=False, kind="stable"),
        "false alarm": by_answer["called"][false & (by_answer["called"] > 0)].sort_values(
            ascending=False, kind="stable"
        ),
    }
    shown: list[Answer] = []
    for kind, about in SHOWN:
        free = [name for name in orders[kind].index if name not in {one.id for one in shown}]
        if free:
            counts = by_answer.loc[free[0], ["hallucinated", "called", "both"]]
            row, tokens = known.loc[free[0]], table[table["id"] == free[0]]
            shown.append(_answer(kind, about, str(free[0]), row, tokens, counts.tolist()))
    return shown


def _answer(
    kind: str, about: str, name: str, row: Any, tokens: pd.DataFrame, counts: Sequence[Any]
) -> Answer:
    text, spans = str(row["answer"]), [Span(**span) for span in row["spans"]]
    pieces, at = [], 0
    for token in tokens.itertuples():
        end = min(max(int(str(token.end)), at), len(text))
        score, threshold = float(str(token.score)), float(str(token.threshold))
        pieces.append(_piece(text, at, end, spans, score, threshold, bool(token.label)))
        at = end
    if at < len(text):
        pieces.append(Piece(0.0, "", _parts(text, at, len(text), spans)))
    return Answer(
        kind,
        about,
        name,
        str(row.get("generator") or ""),
        str(row.get("context") or ""),
        str(row.get("question") or ""),
        pieces,
        *(int(count) for count in counts),
    )


def _piece(
    text: str,
    start: int,
    end: int,
    spans: Sequence[Span],
    score: float,
    threshold: float,
    label: bool,
) -> Piece:
    said = f"score {score:.3f}, threshold {threshold:.3f}, {'hallucinated' if label else 'true'}"
    return Piece(heat(score, threshold), said, _parts(text, start, end, spans))


def _parts(text: str, start: int, end: int, spans: Sequence[Span]) -> list[tuple[str, str]]:
    return [
        (
            text[part.start : part.end],
            "span" if part.probability > HARD else "soft" if part.probability > 0 else "",
        )
        for part in parts_of(start, end, spans)
    ]
