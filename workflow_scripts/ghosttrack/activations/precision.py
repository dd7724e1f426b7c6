"""Storage error: stored rows compared with the exact ones."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class StorageError(NamedTuple):
    """Mean squared error of storage, as a fraction of the variance."""

    relative: float  # over all directions
    # Within the half of the principal components with the least variance, where rare features lie.
    low_variance: float


def storage_error(exact: Floats, stored: npt.NDArray[np.floating[Any]]) -> StorageError | None:
    """Compare exact with stored rows, (n, d_model), without massive activations.

    None if n <= d_model: too few rows for principal components.
    """
    rows, width = exact.shape
    if rows <= width:
        return None
    centred = exact - exact.mean(axis=0)
    error = stored.astype(np.float32) - exact
    variance, components = np.linalg.eigh(centred.T @ centred / np.float32(rows))  # ascending
    low = components[:, : max(1, width // 2)]
    projected = error @ low
    return StorageError(
        float(np.square(error).sum() / np.square(centred).sum()),
        float(
            np.square(projected).sum() / (rows * max(float(variance[: low.shape[1]].sum()), 1e-30))
        ),
    )
