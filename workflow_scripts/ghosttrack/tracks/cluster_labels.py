"""What a cluster stands for: the tokens that its features are about, and the contexts that most of them share."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

# Entries of every list, and of the label.
ENTRIES, NAMED = 10, 3
# Columns of a layer's feature dictionary that are read.
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
    """One row per cluster, in order; columns are described in docs/reference/outputs.md.

    A token counts with the share of each feature's whole activation that falls on it, a context with each
    feature's activation there as a share of its largest: a loud feature says no more than a quiet one.

    Args:
        clusters: the features of all layers, in order, with their `cluster`.
        dictionaries: by layer, one row per feature in order, with the columns DICTIONARY.
    """
    count = int(clusters["cluster"].max()) + 1
    tokens: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(count)]
    contexts: list[defaultdict[int, float]] = [defaultdict(float) for _ in range(count)]
    windows: dict[int, tuple[str, str, str]] = {}
    densities = []
    for layer, part in clusters.groupby("layer", sort=True):
        table = dictionaries[int(layer)]
        densities.append(table["density"])
        for cluster, feature in zip(part["cluster"], table.itertuples(index=False), strict=True):
            for text, share in zip(feature.top_text, feature.top_share, strict=True):
                tokens[cluster][text] += float(share)
            shown = zip(
                feature.context_before, feature.context_token, feature.context_after, strict=True
            )
            for row, activation, window in zip(
                feature.context_row, feature.context_activation, shown, strict=True
            ):
                contexts[cluster][int(row)] += float(activation) / float(feature.activation_max)
                windows[int(row)] = window
    known = clusters.assign(density=pd.concat(densities).to_numpy())
    table = (
        known.groupby("cluster", sort=True)
        .agg(
            features=("layer", "size"),
            layers=("layer", "nunique"),
            first_layer=("layer", "min"),
            last_layer=("layer", "max"),
            density=("density", "mean"),
        )
        .reset_index()
    )
    best = [(_best(tokens[each]), _best(contexts[each])) for each in range(count)]
    table["label"] = [_label([text for text, _ in words]) for words, _ in best]
    table["top_text"] = [[text for text, _ in words] for words, _ in best]
    table["top_share"] = [
        [share / size for _, share in words]
        for (words, _), size in zip(best, table["features"], strict=True)
    ]
    table["context_row"] = [[row for row, _ in places] for _, places in best]
    table["context_share"] = [
        [share / size for _, share in places]
        for (_, places), size in zip(best, table["features"], strict=True)
    ]
    for part, name in enumerate(("context_before", "context_token", "context_after")):
        table[name] = [[windows[row][part] for row, _ in places] for _, places in best]
    return table


def _best(counter: Mapping[Any, float]) -> list[tuple[Any, float]]:
    """The highest entries, ties in the order of their keys."""
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))[:ENTRIES]


def _label(texts: list[str]) -> str:
    """The first few different words; what is not seen, such as a line end, is written out."""
    words = dict.fromkeys(text.strip() or repr(text)[1:-1] for text in texts)
    return " / ".join(list(words)[:NAMED])
