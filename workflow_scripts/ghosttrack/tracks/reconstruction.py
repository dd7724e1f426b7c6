"""How well each layer's autoencoder reconstructs a token: errors, and their dynamics over layers.

The error of a token at a layer is |x - x_hat|^2 / |x - b|^2, b the autoencoder's bias, in which the mean of its
training activations is folded: the token's own share of what is left unexplained. Values of a text are means
over its answer tokens. e_l: error at layer l of L, in the order of the layers.

| name | formula |
|---|---|
| reconstruction_mean, _std, _max, _min, _final | of e_l over layers; e_L |
| reconstruction_growth | e_L - e_1 |
| reconstruction_argmax | place of the largest e_l, 0 = first layer, 1 = last |
| reconstruction_late_early | mean e_l of the later half of the layers / that of the earlier half; the middle one is in neither |
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.tracks.track_table import ROWS

Floats = NDArray[np.float64]

NAMES = (
    "reconstruction_mean", "reconstruction_std", "reconstruction_max", "reconstruction_min", "reconstruction_final",
    "reconstruction_growth", "reconstruction_argmax", "reconstruction_late_early",
)  # fmt: skip


class Store(Protocol):
    """What is read of an activation store."""

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def massive(self) -> NDArray[np.bool_]: ...  # noqa: D102
    def read(self, start: int, stop: int) -> NDArray[np.float16]: ...  # noqa: D102


def token_errors(stores: Sequence[Store], weights: Sequence[Path]) -> NDArray[np.float32]:
    """Error of every row at every layer, (rows, layers); NaN for a row that is massive in any layer.

    One autoencoder and one batch of rows are in memory at a time.
    """
    errors = np.empty((stores[0].rows, len(stores)), dtype=np.float32)
    for place, (store, path) in enumerate(zip(stores, weights, strict=True)):
        model = sae.load(path.parent)
        for start in range(0, store.rows, ROWS):
            with torch.inference_mode():
                x = torch.from_numpy(store.read(start, min(start + ROWS, store.rows)).astype(np.float32))
                left = (x - model.decode(model.encode(x))).square().sum(1)
                whole = (x - model.b_dec).square().sum(1)
                errors[start : start + ROWS, place] = (left / whole).numpy()
    errors[np.any([store.massive for store in stores], axis=0)] = np.nan
    return errors


def measure(errors: NDArray[np.float32]) -> Floats:
    """All metrics of every token, (rows, 8) in the order of NAMES; NaN where the errors are.

    Args:
        errors: (rows, layers).
    """
    e = errors.astype(np.float64)
    layers = e.shape[1]
    half = max(1, layers // 2)
    place = np.where(np.isnan(e), -np.inf, e).argmax(1) / max(layers - 1, 1)
    early = e[:, :half].mean(1)
    columns = [
        e.mean(1), e.std(1), e.max(1), e.min(1), e[:, -1], e[:, -1] - e[:, 0], place,
        e[:, -half:].mean(1) / np.where(early == 0, 1.0, early),
    ]  # fmt: skip
    values = np.stack(columns, axis=1)
    values[np.isnan(e).any(1)] = np.nan
    return values
