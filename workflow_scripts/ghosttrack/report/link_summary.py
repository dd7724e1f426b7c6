"""Links and tracks of the tracker and its nulls: cosines, links per token, track lengths."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# Median and the range of 90 % of the features.
QUANTILES = (0.05, 0.5, 0.95)
# Columns of the tables in signals/.
LINKS, LENGTH = "linkage_links_per_token", "linkage_track_length"


class Pair(NamedTuple):
    """Best-match decoder cosines of two layers: QUANTILES of real and permuted decoders, gate."""

    lower: int
    upper: int
    real: tuple[float, float, float]
    null: tuple[float, float, float]
    gate: float
    above: float  # fraction of the lower layer's features whose best match exceeds the gate
    mutual: float  # fraction of features that are the best match of their best match


def pairs(neighbours: Mapping[int, Mapping[str, np.ndarray]], layers: Sequence[int]) -> list[Pair]:
    """One entry per pair of adjacent analysed layers, ascending.

    Args:
        neighbours: arrays of neighbours/layer_LL.npz by layer.
        layers: the analysed layers, ascending.
    """
    pairs_of_layers = []
    for lower, upper in pairwise(layers):
        if lower not in neighbours:
            continue
        stored = neighbours[lower]
        real = np.asarray(stored["best"], dtype=np.float64)  # (d_sae,)
        null = np.asarray(stored["null_best"], dtype=np.float64)
        gate = float(stored["gate"])
        shares = float(np.mean(real > gate)), float(np.mean(stored["mutual"]))
        pairs_of_layers.append(
            Pair(lower, upper, _quantiles(real), _quantiles(null), gate, *shares)
        )
    return pairs_of_layers


def _quantiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, QUANTILES)
    return float(low), float(middle), float(high)


class Flow(NamedTuple):
    """Links per answer token into each layer, over all data sets of a variant."""

    variant: str
    layers: list[int]
    per_token: np.ndarray  # (layers,)


def flows(track_metrics: Mapping[tuple[str, str], pd.DataFrame]) -> list[Flow]:
    """One entry per variant that visits the layers in ascending order.

    Args:
        track_metrics: tables of signals/ by (data set, variant); their attributes hold the counts.
    """
    counts: dict[str, tuple[list[int], np.ndarray, int]] = {}
    for (_, variant), table in track_metrics.items():
        notes = table.attrs
        if "links" not in notes or list(notes["layers"]) != sorted(notes["layers"]):
            continue
        layers, links, rows = counts.get(
            variant, (list(notes["layers"]), np.zeros(len(notes["layers"])), 0)
        )
        counts[variant] = (
            layers,
            links + np.asarray(notes["links"], dtype=np.float64),
            rows + int(notes["rows"]),
        )
    return [
        Flow(variant, layers, links / max(rows, 1))
        for variant, (layers, links, rows) in counts.items()
    ]


def lengths(track_metrics: Mapping[tuple[str, str], pd.DataFrame]) -> dict[str, np.ndarray]:
    """Fraction of tracks with at least 1, 2, ... detections by variant, over all data sets.

    Variants without tracks are left out.
    """
    counts: dict[str, np.ndarray] = {}
    for (_, variant), table in track_metrics.items():
        if "track_lengths" in table.attrs:
            lengths_here = np.asarray(table.attrs["track_lengths"], dtype=np.float64)
            counts[variant] = counts.get(variant, np.zeros(len(lengths_here))) + lengths_here
    return {
        variant: np.cumsum(count[::-1])[::-1] / count.sum()
        for variant, count in counts.items()
        if count.sum() > 0
    }


def tracks(track_metrics: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Mean links per token and mean track length: columns dataset, variant, links, length.

    Args:
        track_metrics: tables of signals/ by (data set, variant). Tables without linkage metrics are
            left out.
    """
    rows: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "variant": variant,
            "links": table[LINKS].mean(),
            "length": table[LENGTH].mean(),
        }
        for (dataset, variant), table in track_metrics.items()
        if LINKS in table and LENGTH in table
    ]
    return pd.DataFrame(rows, columns=["dataset", "variant", "links", "length"])
