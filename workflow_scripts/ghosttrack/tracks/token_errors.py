"""How well each layer's autoencoder reconstructs every token.

The error of a token at a layer is |x - x_hat|^2 / |x - b|^2, b the autoencoder's bias, in which the mean of its
training activations is folded: the token's own share of what is left unexplained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.tracks.track_table import ROWS


class Store(Protocol):
    """What is read of an activation store."""

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def massive(self) -> NDArray[np.bool_]: ...  # noqa: D102
    def read(self, start: int, stop: int) -> NDArray[np.float16]: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


def token_errors(stores: Sequence[Store], weights: Sequence[Path]) -> NDArray[np.float32]:
    """Error of every row at every layer, (rows, layers); NaN for a row that is massive in any layer.

    One autoencoder and one batch of rows are in memory at a time.
    """
    errors = np.empty((stores[0].rows, len(stores)), dtype=np.float32)
    for place, (store, path) in enumerate(zip(stores, weights, strict=True)):
        model = sae.load(path.parent)
        for start in range(0, store.rows, ROWS):
            with torch.inference_mode():
                x = torch.from_numpy(
                    store.read(start, min(start + ROWS, store.rows)).astype(np.float32)
                )
                left = (x - model.decode(model.encode(x))).square().sum(1)
                whole = (x - model.b_dec).square().sum(1)
                errors[start : start + ROWS, place] = (left / whole).numpy()
        store.release()
    errors[np.any([store.massive for store in stores], axis=0)] = np.nan
    return errors
