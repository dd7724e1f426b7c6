"""What tracking found beside its nulls: similarity of linked layers, links per token, length of tracks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# Shown of a distribution: its middle and the range that holds nine features of ten.
QUANTILES = (0.05, 0.5, 0.95)
# Columns of the signals tables.
LINKS, LENGTH = "linkage_links_per_token", "linkage_track_length"


class Pair(NamedTuple):
    """Best-match cosines of one layer pair: 5 %, 50 % and 95 % quantiles, and the gate a link must pass."""

    lower: int
    upper: int
    real: tuple[float, float, float]
    null: tuple[float, float, float]
    gate: float
    above: float  # share of the lower layer's features whose best match passes the gate
    mutual: float  # share whose best match has this feature as its own best match


def pairs(neighbours: Mapping[int, Mapping[str, np.ndarray]], layers: Sequence[int]) -> list[Pair]:
    """One entry per adjacent pair of analysed layers, ascending."""
    found = []
    for lower, upper in pairwise(layers):
        if lower not in neighbours:
            continue
        stored = neighbours[lower]
        real = np.asarray(stored["best"], dtype=np.float64)  # (d_sae,)
        null = np.asarray(stored["null_best"], dtype=np.float64)
        gate = float(stored["gate"])
        shares = float(np.mean(real > gate)), float(np.mean(stored["mutual"]))
        found.append(Pair(lower, upper, _quantiles(real), _quantiles(null), gate, *shares))
    return found


def _quantiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, QUANTILES)
    return float(low), float(middle), float(high)


class Flow(NamedTuple):
    """Links into a layer from the analysed layers below it, per answer token, over all data sets of a variant."""

    variant: str
    layers: list[int]
    per_token: np.ndarray  # (layers,)


def flows(signals: Mapping[tuple[str, str], pd.DataFrame]) -> list[Flow]:
    """One entry per variant that visits the layers in their order, as the notes of the signals tables count the links."""
    found: dict[str, tuple[list[int], np.ndarray, int]] = {}
    for (_, variant), table in signals.items():
        about = table.attrs
        if "links" not in about or list(about["layers"]) != sorted(about["layers"]):
            continue
        layers, links, rows = found.get(
            variant, (list(about["layers"]), np.zeros(len(about["layers"])), 0)
        )
        found[variant] = (
            layers,
            links + np.asarray(about["links"], dtype=np.float64),
            rows + int(about["rows"]),
        )
    return [
        Flow(variant, layers, links / max(rows, 1))
        for variant, (layers, links, rows) in found.items()
    ]


def lengths(signals: Mapping[tuple[str, str], pd.DataFrame]) -> dict[str, np.ndarray]:
    """Share of tracks with at least 1, 2, ... detections, by variant, over all data sets; those without tracks are left out."""
    found: dict[str, np.ndarray] = {}
    for (_, variant), table in signals.items():
        if "track_lengths" in table.attrs:
            counted = np.asarray(table.attrs["track_lengths"], dtype=np.float64)
            found[variant] = found.get(variant, np.zeros(len(counted))) + counted
    return {
        variant: np.cumsum(each[::-1])[::-1] / each.sum()
        for variant, each in found.items()
        if each.sum() > 0
    }


def tracks(signals: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Mean links per token and track length: columns dataset, variant, links, length.

    Args:
        signals: signals tables by (data set, variant); those without the linkage family are left out.
    """
    rows: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "variant": variant,
            "links": table[LINKS].mean(),
            "length": table[LENGTH].mean(),
        }
        for (dataset, variant), table in signals.items()
        if LINKS in table and LENGTH in table
    ]
    return pd.DataFrame(rows, columns=["dataset", "variant", "links", "length"])
