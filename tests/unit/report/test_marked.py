"""Answers with hallucinated spans, as the report shows them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ghosttrack.facts.spans import Span
from ghosttrack.report import marked
from ghosttrack.report.marked import Part


def test_overlapping_spans_are_parts_with_the_largest_probability() -> None:
    spans = [Span(2, 6, 0.3), Span(4, 8, 1.0), Span(5, 6, 0.6)]
    assert marked.parts_of(0, 10, spans) == [
        Part(0, 2, 0.0),
        Part(2, 4, 0.3),
        Part(4, 5, 1.0),
        Part(5, 6, 1.0),
        Part(6, 8, 1.0),
        Part(8, 10, 0.0),
    ]
    assert marked.parts_of(3, 3, spans) == []
    assert marked.parts_of(8, 9, spans) == [Part(8, 9, 0.0)]


ANSWERS = {"good": "ab cd ef", "bad": "gh ij kl", "alarm": "mn op qr", "quiet": "st uv wx"}
SPANS = {"good": (3, 5), "bad": (0, 8)}
SCORES = {"good": [0, 1, 0], "bad": [0, 0, 1], "alarm": [1, 1, 0], "quiet": [0, 0, 0]}


def tables(detector: bool = True) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    examples = pd.DataFrame(
        {
            "id": list(ANSWERS),
            "answer": list(ANSWERS.values()),
            "context": "<passage>",
            "generator": "writer",
            "spans": [
                [{"start": SPANS[name][0], "end": SPANS[name][1], "probability": 1.0}]
                if name in SPANS
                else []
                for name in ANSWERS
            ],
        }
    )
    rows: list[dict[str, Any]] = []
    for name, values in SCORES.items():
        for place, value in enumerate(values):
            start = 3 * place
            first, last = SPANS.get(name, (9, 9))
            rows.append(
                {
                    "id": name,
                    "fold": 1,
                    "row": len(rows),
                    "start": start - (place > 0),
                    "end": start + 2,
                    "label": int(first < start + 2 and last > start),
                    "marked": 0,
                    "token_detector": 0.1 + 0.4 * value,
                }
            )
    choices = pd.DataFrame(
        {
            "score": ["token_words", "token_detector", "token_detector"],
            "fold": [1, 0, 1],
            "threshold": [0.0, 9.0, 0.3],
        }
    )
    scores = pd.DataFrame(rows)
    return examples, scores if detector else scores.drop(columns="token_detector"), choices


def test_the_report_shows_an_answer_of_each_kind() -> None:
    examples, scores, choices = tables()
    shown = marked.examples(examples, marked.with_thresholds(scores, choices))
    assert [(one.kind, one.id) for one in shown] == [
        ("found", "good"),
        ("missed", "bad"),
        ("false alarm", "alarm"),
    ]
    found = shown[0]
    assert (found.hallucinated, found.called, found.both) == (1, 1, 1)
    assert [piece.parts for piece in found.pieces] == [
        [("ab", "")],
        [(" ", ""), ("cd", "span")],
        [(" ef", "")],
    ]
    assert found.pieces[0].heat == pytest.approx(-2 / 3)
    assert found.pieces[1].heat == pytest.approx(2 / 3)
    assert found.pieces[1].said == "score 0.500, threshold 0.300, hallucinated"
    for one in shown:
        text = "".join(part for piece in one.pieces for part, _ in piece.parts)
        assert text == ANSWERS[one.id]


def test_without_scores_of_tokens_no_answer_is_shown() -> None:
    examples, scores, choices = tables(detector=False)
    table = marked.with_thresholds(scores, choices)
    assert table["score"].isna().all()
    assert marked.examples(examples, table) == []


def test_a_fold_without_a_threshold_calls_nothing() -> None:
    examples, scores, choices = tables()
    table = marked.with_thresholds(scores, choices.replace(0.3, np.inf))
    assert not marked.called(table).any()
    assert [one.kind for one in marked.examples(examples, table)] == ["missed"]
