"""What a storage mode costs: the error of stored rows against the rows as they were."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.shards import Half

Floats = npt.NDArray[np.float32]


class StorageError(NamedTuple):
    """Mean squared error of storage, as a share of the variance."""

    relative: float  # over all directions
    low_variance: float  # within the half of the principal components that vary least, where rare features live


def storage_error(exact: Floats, stored: Half) -> StorageError | None:
    """Compare rows (n, d_model) with what a store gives back; rows far from the origin are left out by the caller.

    None with no more rows than channels: their principal components say nothing.
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
