"""Edges between the features of all layers, with two layers in memory at a time."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.sae import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.tracks.clusters import FeatureEdges
from ghosttrack.tracks.coactivation import LinkFirings, compare_firing, firing
from ghosttrack.tracks.neighbours import Links, load_links

log = logging.getLogger("ghosttrack")


class FeatureGraph(NamedTuple):
    """The edges between the features of all layers."""

    sizes: list[int]  # features of each layer
    edges: list[FeatureEdges]
    links: pd.DataFrame  # one row per pair of neighbouring layers


def join_layers(
    layers: Sequence[int],
    stores: Sequence[Rows],
    saes: Iterable[Sae],
    neighbours: Sequence[Path],
    *,
    quantile: float,
    coactivation: float,
    seed: int,
) -> FeatureGraph:
    """Connect features by links of similar features and by coactivation.

    Links lead one and two layers ahead, coactivation one layer ahead. The weight of an edge is its
    similarity above the gate; that of coactivation is multiplied by `coactivation`.

    Args:
        layers: ascending; one store (held-out rows) and SAE each, and one neighbour file for all
            but the last.
        quantile: of the null that sets the gate of coactivation.

    Raises:
        UserError: a neighbour file is of other layers or of SAEs of another size.
    """
    sizes: list[int] = []
    edges: list[FeatureEdges] = []
    rows: list[dict[str, float]] = []
    previous = None
    for position, (store, sae) in enumerate(zip(stores, saes, strict=True)):
        active = firing(sae, store)
        sizes.append(sae.d_sae)
        if previous is not None:
            path, lower = neighbours[position - 1], position - 1
            real, permuted = load_links(path, permuted=False), load_links(path, permuted=True)
            real.require(path, layers[lower : lower + 3], sizes[lower])
            edges.append(_link_edges(lower, position, real.adjacent))
            if real.skip is not None:
                edges.append(_link_edges(lower, position + 1, real.skip))
            generator = np.random.default_rng([seed, layers[lower], layers[position]])
            compared = compare_firing(
                previous, active, real.adjacent, permuted.adjacent, quantile, generator
            )
            pairs = compared.pairs
            if coactivation:
                weight = coactivation * (pairs.similarity - compared.gate)
                edges.append(FeatureEdges(lower, position, pairs.lower, pairs.upper, weight))
            rows.append(
                {
                    "layer": layers[lower],
                    "next_layer": layers[position],
                    **compared.firings._asdict(),
                }
            )
            _log_pair(rows[-1], compared.firings, compared.gate, len(pairs.lower))
        previous = active
    columns = ["layer", "next_layer", *LinkFirings._fields]
    return FeatureGraph(sizes, edges, pd.DataFrame(rows, columns=columns))


def _link_edges(lower: int, upper: int, links: Links) -> FeatureEdges:
    source = np.repeat(np.arange(len(links.start) - 1), np.diff(links.start))
    return FeatureEdges(
        lower, upper, source, links.target.astype(np.int64), links.surplus.astype(np.float64)
    )


def _log_pair(row: dict[str, float], firings: LinkFirings, gate: float, pairs: int) -> None:
    log.info(
        "layers %d to %d: %d links (%d permuted), of which %.2f fire per token (%.3f permuted); "
        "the upper end fires at %.3f of the lower end's firings (%.3f for shuffled links); "
        "%d pairs fire together above %.3f",
        row["layer"],
        row["next_layer"],
        firings.links,
        firings.permuted_links,
        firings.links_per_token,
        firings.permuted_links_per_token,
        firings.next_fires,
        firings.next_fires_shuffled_links,
        pairs,
        gate,
    )
