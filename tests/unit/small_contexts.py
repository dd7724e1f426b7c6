"""Texts behind contexts, for tests."""

import pandas as pd

from ghosttrack.activations.example_tokens import Encoded

PASSAGES = ["Paris is a city of France. " * 2, "gold has the number 79. " * 2, ""]
ANSWERS = ["Paris", "a city", "gold", "79 is gold", "Ada", "Ada Lovelace"]


def table(passages: list[str], answers: list[str], rule: str = "") -> pd.DataFrame:
    """Examples whose whole text is the answer, each behind its passage."""
    return pd.DataFrame(
        {
            "id": [f"e{number}" for number in range(len(answers))],
            "relation": "file",
            "mode": "given",
            "text": answers,
            "answer": answers,
            "answer_start": 0,
            "answer_end": [len(answer) for answer in answers],
            "context": passages,
            "long_contexts": rule,
        }
    )


def whole(one: Encoded) -> list[int]:
    """All tokens that the model reads."""
    return [*one.prefix.tolist(), *one.ids.tolist()]
