"""Labels of clusters: the tokens on which their features fire most, and the contexts they share."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

# Entries per list, and tokens per label.
LIST_LENGTH, LABEL_TOKENS = 10, 3
# Columns read from a layer's feature dictionary.
DICTIONARY = [
    "density",
    "activation_max",
    "top_text",
    "top_share",
    "context_row",
    "context_activation",
    "context_before",
    "context_token",
    "context_after",
]


def describe(clusters: pd.DataFrame, dictionaries: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """One row per cluster, in order; docs/reference/outputs.md describes the columns.

    A token's weight is the fraction of each feature's total activation that falls on it. A
    context's weight is each feature's activation there relative to its largest. Features with large
    and with small activations therefore count the same.

    Args:
        clusters: the features of all layers, in order, with their `cluster`.
        dictionaries: by layer, one row per feature, in order, with the columns DICTIONARY.
    """
    count = int(clusters["cluster"].max()) + 1
    tokens: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(count)]
    contexts: list[defaultdict[int, float]] = [defaultdict(float) for _ in range(count)]
    windows: dict[int, tuple[str, str, str]] = {}
    densities = []
    for layer, members in clusters.groupby("layer", sort=True):
        table = dictionaries[int(layer)]
        densities.append(table["density"])
        for cluster, feature in zip(members["cluster"], table.itertuples(index=False), strict=True):
            for text, share in zip(feature.top_text, feature.top_share, strict=True):
                tokens[cluster][text] += float(share)
            windows_of_feature = zip(
                feature.context_before, feature.context_token, feature.context_after, strict=True
            )
            for row, activation, window in zip(
                feature.context_row, feature.context_activation, windows_of_feature, strict=True
            ):
                contexts[cluster][int(row)] += float(activation) / float(feature.activation_max)
                windows[int(row)] = window
    with_density = clusters.assign(density=pd.concat(densities).to_numpy())
    table = (
        with_density.groupby("cluster", sort=True)
        .agg(
            features=("layer", "size"),
            layers=("layer", "nunique"),
            first_layer=("layer", "min"),
            last_layer=("layer", "max"),
            density=("density", "mean"),
        )
        .reset_index()
    )
    top = [(_best(tokens[number]), _best(contexts[number])) for number in range(count)]
    table["label"] = [_label([text for text, _ in words]) for words, _ in top]
    table["top_text"] = [[text for text, _ in words] for words, _ in top]
    table["top_share"] = [
        [share / size for _, share in words]
        for (words, _), size in zip(top, table["features"], strict=True)
    ]
    table["context_row"] = [[row for row, _ in positions] for _, positions in top]
    table["context_share"] = [
        [share / size for _, share in positions]
        for (_, positions), size in zip(top, table["features"], strict=True)
    ]
    for part, name in enumerate(("context_before", "context_token", "context_after")):
        table[name] = [[windows[row][part] for row, _ in positions] for _, positions in top]
    return table


def _best(counter: Mapping[Any, float]) -> list[tuple[Any, float]]:
    """The highest entries, ties in the order of their keys."""
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))[:LIST_LENGTH]


def _label(texts: list[str]) -> str:
    """The first few different words; whitespace tokens such as a line end are escaped."""
    words = dict.fromkeys(text.strip() or repr(text)[1:-1] for text in texts)
    return " / ".join(list(words)[:LABEL_TOKENS])
