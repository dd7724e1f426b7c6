"""From the files of all layers to the edges between their features, two layers in memory at a time."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.sae import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.tracks.clusters import Edges
from ghosttrack.tracks.coactivation import LinkFirings, compare_firing, firing
from ghosttrack.tracks.neighbours import Links, load_links

log = logging.getLogger("ghosttrack")


class Joined(NamedTuple):
    """`sizes`: features of each layer; `edges` between layers; `links`: one row per pair of neighbouring layers."""

    sizes: list[int]
    edges: list[Edges]
    links: pd.DataFrame


def join_layers(
    layers: Sequence[int],
    stores: Sequence[Rows],
    saes: Iterable[Sae],
    neighbours: Sequence[Path],
    *,
    quantile: float,
    coactivation: float,
    seed: int,
) -> Joined:
    """Edges between features: links by decoder similarity, one and two layers ahead, and firing together one ahead.

    An edge weighs what its similarity exceeds its gate by; for firing together, times `coactivation`.

    Args:
        layers: ascending; `stores` (held-out rows), `saes` go with them, `neighbours` with all but the last.
        quantile: of the gate for firing together.
    Raises:
        UserError: a neighbour file holds other layers, or autoencoders of another size.
    """
    sizes: list[int] = []
    edges: list[Edges] = []
    rows: list[dict[str, float]] = []
    before = None
    for position, (store, sae) in enumerate(zip(stores, saes, strict=True)):
        active = firing(sae, store)
        sizes.append(sae.d_sae)
        if before is not None:
            path, lower = neighbours[position - 1], position - 1
            found, permuted = load_links(path, permuted=False), load_links(path, permuted=True)
            if (
                found.layers != list(layers[lower : lower + 3])
                or len(found.adjacent.start) != sizes[lower] + 1
            ):
                raise UserError(
                    f"{path}: links layers {found.layers}, expected {list(layers[lower : lower + 3])} with "
                    f"{sizes[lower]} features: delete it and run again, rule find_neighbours remakes it"
                )
            edges.append(_of_links(lower, position, found.adjacent))
            if found.skip is not None:
                edges.append(_of_links(lower, position + 1, found.skip))
            generator = np.random.default_rng([seed, layers[lower], layers[position]])
            compared = compare_firing(
                before, active, found.adjacent, permuted.adjacent, quantile, generator
            )
            pairs = compared.pairs
            if coactivation:
                weight = coactivation * (pairs.similarity - compared.gate)
                edges.append(Edges(lower, position, pairs.lower, pairs.upper, weight))
            rows.append(
                {
                    "layer": layers[lower],
                    "next_layer": layers[position],
                    **compared.firings._asdict(),
                }
            )
            _tell(rows[-1], compared.firings, compared.gate, len(pairs.lower))
        before = active
    columns = ["layer", "next_layer", *LinkFirings._fields]
    return Joined(sizes, edges, pd.DataFrame(rows, columns=columns))


def _of_links(lower: int, upper: int, links: Links) -> Edges:
    source = np.repeat(np.arange(len(links.start) - 1), np.diff(links.start))
    return Edges(
        lower, upper, source, links.target.astype(np.int64), links.surplus.astype(np.float64)
    )


def _tell(row: dict[str, float], found: LinkFirings, gate: float, pairs: int) -> None:
    log.info(
        "layers %d to %d: %d links (%d permuted), %.2f a token with both ends active (%.3f permuted); the next end fires at %.3f of a link's firings (%.3f dealt out anew); %d pairs fire together above %.3f",
        row["layer"],
        row["next_layer"],
        found.links,
        found.permuted_links,
        found.links_per_token,
        found.permuted_links_per_token,
        found.next_fires,
        found.next_fires_relinked,
        pairs,
        gate,
    )
