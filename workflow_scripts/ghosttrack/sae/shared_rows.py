"""Training rows of several layers for one dictionary: each layer has a share of every batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import WINDOW_CHUNKS, ChunkSampler
from ghosttrack.sae.training import TrainingLayer


def training_layers(
    stores: Sequence[ActivationStore], batch: int, seed: int, resident: bool, **options: Any
) -> list[TrainingLayer]:
    """Give each layer its share of the `batch` rows of a step; shares differ by at most one row.

    The order of rows differs between layers: otherwise a batch would hold the same few tokens in
    every layer. Unless the rows are `resident`, the layers' windows together take the memory of one
    layer's window. `options` are keyword arguments of `ChunkSampler`.

    Raises:
        UserError: a layer has fewer included rows than its share.
    """
    shares = [len(part) for part in np.array_split(np.arange(batch), len(stores))]
    window = max(1, WINDOW_CHUNKS // len(stores))
    layers = []
    for position, (store, share) in enumerate(zip(stores, shares, strict=True)):
        layer_seed = int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
        sampler = ChunkSampler(store, share, layer_seed, resident, window, **options)
        layers.append(TrainingLayer(store, sampler))
    return layers
