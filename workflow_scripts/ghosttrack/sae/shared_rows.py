"""Rows of several layers for one dictionary: a share of every batch for each, and an order of its own."""

from collections.abc import Sequence

import numpy as np

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import WINDOW_CHUNKS, ChunkSampler
from ghosttrack.sae.training import Source


def sources(
    stores: Sequence[ActivationStore], batch: int, seed: int, resident: bool
) -> list[Source]:
    """Every layer with its share of `batch` rows a step; the shares differ by one row at most.

    The layers' orders differ, or a batch would hold the same few tokens in every layer. Their windows share one
    layer's buffer, so that memory does not grow with the layers where they are not `resident`.

    Raises:
        UserError: a layer keeps fewer rows than its share.
    """
    shares = [len(part) for part in np.array_split(np.arange(batch), len(stores))]
    window = max(1, WINDOW_CHUNKS // len(stores))
    return [
        Source(
            store,
            ChunkSampler(
                store, share, _seed_of(seed, number), resident=resident, window_chunks=window
            ),
        )
        for number, (store, share) in enumerate(zip(stores, shares, strict=True))
    ]


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
