"""One comparison job: the SAE of a layer against those of the next two layers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.tracks.neighbours import LayerComparison, compare_by, index_aligned
from ghosttrack.tracks.similarity import ActivationCorrelation, DecoderCosine, Similarity, codes_of

LinkKind = Literal["cosine", "correlation", "identity"]


def similarities(
    layers: Sequence[int],
    weights: Sequence[Path],
    stores: Sequence[Path],
    manifests: Sequence[Path],
    seed: int,
) -> Iterator[Similarity]:
    """Similarity of the first layer to each of the others.

    It is the correlation of held-out activations if `stores` are given, else the cosine of decoder
    rows.

    Raises:
        UserError: the stores are not of the same tokens and model.
    """
    saes = [sae.load(path.parent) for path in weights]
    seeds = [[seed, layers[0], upper] for upper in layers[1:]]
    if not stores:
        for model, integers in zip(saes[1:], seeds, strict=True):
            yield DecoderCosine(saes[0].W_dec, model.W_dec, integers)
        return
    opened = [
        ActivationStore.open([store], [manifest], {"layer": layer})
        for store, manifest, layer in zip(stores, manifests, layers, strict=True)
    ]
    require_same_rows(opened)
    included = ~np.any([store.excluded for store in opened], axis=0)
    lower, *uppers = (
        codes_of(model, store, included) for model, store in zip(saes, opened, strict=True)
    )
    for upper, integers in zip(uppers, seeds, strict=True):
        yield ActivationCorrelation(lower, upper, opened[0].context or 1, integers)


def compare_as(
    kind: LinkKind, similarity: Similarity, neighbours: int, quantile: float
) -> LayerComparison:
    """The comparison for a value of `tracking.links`."""
    comparison = compare_by(similarity, neighbours, quantile)
    return index_aligned(comparison, similarity) if kind == "identity" else comparison
