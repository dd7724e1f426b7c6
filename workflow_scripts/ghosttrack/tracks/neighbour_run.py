"""One comparison job: a layer's autoencoder beside those of the next two layers, by decoders or by held-out activations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.tracks.neighbours import Comparison, compare_by, same_index
from ghosttrack.tracks.similarity import ActivationCorrelation, DecoderCosine, Similarity, codes_of

LinkKind = Literal["cosine", "correlation", "identity"]


def similarities(
    layers: Sequence[int],
    weights: Sequence[Path],
    stores: Sequence[Path],
    manifests: Sequence[Path],
    seed: int,
) -> Iterator[Similarity]:
    """The first layer against each of the others: correlations where there are held-out `stores`, else decoder cosines.

    Raises:
        UserError: the stores do not hold the same tokens of one model.
    """
    saes = [sae.load(path.parent) for path in weights]
    seeds = [[seed, layers[0], upper] for upper in layers[1:]]
    if not stores:
        for each, numbers in zip(saes[1:], seeds, strict=True):
            yield DecoderCosine(saes[0].W_dec, each.W_dec, numbers)
        return
    opened = [
        ActivationStore.open([store], [manifest], {"layer": layer})
        for store, manifest, layer in zip(stores, manifests, layers, strict=True)
    ]
    require_same_rows(opened)
    kept = ~np.any([store.excluded for store in opened], axis=0)
    lower, *uppers = (codes_of(each, store, kept) for each, store in zip(saes, opened, strict=True))
    for upper, numbers in zip(uppers, seeds, strict=True):
        yield ActivationCorrelation(lower, upper, opened[0].context or 1, numbers)


def compare_as(
    kind: LinkKind, similarity: Similarity, neighbours: int, quantile: float
) -> Comparison:
    """The comparison that `tracking.links` names, `kind`."""
    found = compare_by(similarity, neighbours, quantile)
    return same_index(found, similarity) if kind == "identity" else found
