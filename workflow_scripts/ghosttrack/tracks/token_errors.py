"""Reconstruction error of every token at every layer.

The error of a token at a layer is |x - x_hat|^2 / |x - b|^2, where b is the SAE's decoder bias,
which includes the mean of the training activations. It is the fraction of variance unexplained of
one token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.tracks.track_table import ROWS


class ActivationRows(Protocol):
    """The part of an activation store that tracking reads."""

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def massive(self) -> NDArray[np.bool_]: ...  # noqa: D102
    def read(self, start: int, stop: int) -> NDArray[np.floating[Any]]: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


def token_errors(stores: Sequence[ActivationRows], weights: Sequence[Path]) -> NDArray[np.float32]:
    """Error of every row at every layer, (rows, layers); NaN for rows with massive activations.

    A row with a massive activation in one layer is NaN in all of them. One SAE and one batch of
    rows are in memory at a time.
    """
    errors = np.empty((stores[0].rows, len(stores)), dtype=np.float32)
    for position, (store, path) in enumerate(zip(stores, weights, strict=True)):
        model = sae.load(path.parent)
        for start in range(0, store.rows, ROWS):
            with torch.inference_mode():
                x = torch.from_numpy(
                    store.read(start, min(start + ROWS, store.rows)).astype(np.float32)
                )
                residual = (x - model.decode(model.encode(x))).square().sum(1)
                total = (x - model.b_dec).square().sum(1)
                errors[start : start + ROWS, position] = (residual / total).numpy()
        store.release()
    errors[np.any([store.massive for store in stores], axis=0)] = np.nan
    return errors
