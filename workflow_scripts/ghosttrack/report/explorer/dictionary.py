"""Descriptions of the features of a layer, for the features that are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

# Columns that are read from features/layer_LL.parquet.
COLUMNS = [
    "feature",
    "density",
    "activation_max",
    "top_text",
    "top_share",
    "context_row",
    "context_activation",
    "context_before",
    "context_token",
    "context_after",
    "output_text",
    "output_logit",
]
# Tokens per list: fits on two lines.
TOKENS = 8
# Maximum contexts per feature and in total; 160 characters each, 12 MB before compression.
CONTEXTS, CONTEXT_BUDGET = 5, 75_000


def contexts_per_feature(drawn: int) -> int:
    """Number of contexts per feature that keeps the page of `drawn` features small."""
    return max(1, min(CONTEXTS, CONTEXT_BUDGET // max(drawn, 1)))


def of_layer(
    table: pd.DataFrame,
    drawn: Sequence[int],
    contexts: int,
    clusters: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Descriptions of the `drawn` features as lists in their order.

    Contexts refer to `windows`, the list of distinct text windows, by index.

    Args:
        table: features/layer_LL.parquet.
        drawn: feature numbers.
        contexts: number of contexts per feature.
        clusters: name of each feature's cluster; None if features are not clustered.
    """
    rows = table.set_index("feature").loc[list(drawn)]
    windows: dict[int, int] = {}
    texts: list[list[str]] = []
    shown: list[list[Any]] = []
    for feature in rows.itertuples():
        entries = []
        columns = (
            feature.context_row,
            feature.context_activation,
            feature.context_before,
            feature.context_token,
            feature.context_after,
        )
        for row, activation, *parts in list(zip(*columns, strict=True))[:contexts]:
            if row not in windows:
                windows[row] = len(texts)
                texts.append([str(part) for part in parts])
            entries.append([windows[row], round(float(activation), 2)])
        shown.append(entries)
    return {
        "density": [round(float(value), 6) for value in rows["density"]],
        "max": [round(float(value), 2) for value in rows["activation_max"]],
        "top": [_pairs(*lists) for lists in zip(rows["top_text"], rows["top_share"], strict=True)],
        "output": [
            _pairs(*lists) for lists in zip(rows["output_text"], rows["output_logit"], strict=True)
        ],
        "contexts": shown,
        "windows": texts,
        **(
            {}
            if clusters is None
            else {"cluster": [clusters.get(int(number), "") for number in drawn]}
        ),
    }


def name_of(top: Sequence[str], output: Sequence[str]) -> str:
    """Name of a feature: its most characteristic token, else the token that it promotes most."""
    return str(next(iter(top), None) or next(iter(output), "")).strip()


def _pairs(texts: Sequence[str], values: Sequence[float]) -> list[list[Any]]:
    return [
        [str(text), round(float(value), 3)]
        for text, value in list(zip(texts, values, strict=True))[:TOKENS]
    ]
