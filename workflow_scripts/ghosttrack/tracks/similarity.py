"""Similarity of the features of two layers: decoder directions, or activations on the same tokens.

Each feature is a unit vector, and the similarity of two features is the dot product. It is the
cosine of two decoder rows, or the Pearson correlation of two activation patterns over held-out
tokens. Each measure has a null that keeps the geometry within a layer and breaks the alignment
between the layers.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows

# Features per block of similarities: 1024 x 16384 float32 is 64 MiB.
BLOCK = 1024
# Rows per encoder call: 4096 x 16384 float32 is 256 MiB.
ENCODED_ROWS = 4096
# ASSUME: a feature with fewer firings correlates by chance with any feature that fires on the same
# few tokens.
MIN_FIRINGS = 20


class Similarity(Protocol):
    """Similarities of two layers' features, in blocks. Draw 0 is real, the others are nulls."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of features of the lower and of the upper layer."""

    def blocks(self, draw: int) -> Iterator[Tensor]:
        """Blocks (up to BLOCK, d_upper): lower features, in order, against the upper layer."""

    def back_blocks(self, draw: int) -> Iterator[Tensor]:
        """Blocks (up to BLOCK, d_lower): upper features, in order, against the lower layer."""


class DecoderCosine:
    """Cosine of decoder rows. A null permutes the coordinates of all upper rows in the same way.

    Args:
        lower, upper: (d_lower, d_model), (d_upper, d_model) decoder rows of any norm.
        seed: integers that seed the permutations.
    """

    def __init__(self, lower: Tensor, upper: Tensor, seed: Sequence[int]) -> None:
        self._lower, self._upper = _unit(lower), _unit(upper)
        self._generator = np.random.default_rng(seed)
        self._permutations = [torch.arange(self._upper.shape[1])]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of features of the lower and of the upper layer."""
        return len(self._lower), len(self._upper)

    def blocks(self, draw: int) -> Iterator[Tensor]:
        """The lower rows against all upper rows."""
        return _products(self._lower, self._moved(draw))

    def back_blocks(self, draw: int) -> Iterator[Tensor]:
        """The upper rows against all lower rows."""
        return _products(self._moved(draw), self._lower)

    def _moved(self, draw: int) -> Tensor:
        while len(self._permutations) <= draw:
            self._permutations.append(
                torch.from_numpy(self._generator.permutation(self._upper.shape[1]))
            )
        return self._upper[:, self._permutations[draw]] if draw else self._upper


def _unit(decoder: Tensor) -> Tensor:
    return torch.nn.functional.normalize(decoder.detach().to(torch.float32), dim=1)


def _products(rows: Tensor, others: Tensor) -> Iterator[Tensor]:
    return (block @ others.T for block in torch.split(rows, BLOCK))


class ActivationCorrelation:
    """Pearson correlation of activations on the same tokens.

    The null is a circular shift of the upper layer's tokens. It keeps what makes chance
    correlations large: a feature's firing rate, and firing in runs within a document. The shift is
    longer than `context` tokens in either direction, so no token is compared with its own document.
    Features that fire on fewer than MIN_FIRINGS tokens get a similarity of -1 to every feature.

    Args:
        lower, upper: (d_lower, tokens), (d_upper, tokens) codes.
        context: tokens per packed context.
        seed: integers that seed the shifts.
    """

    def __init__(
        self, lower: sparse.csr_array, upper: sparse.csr_array, context: int, seed: Sequence[int]
    ) -> None:
        self._lower, self._upper = _Pattern(lower), _Pattern(upper)
        self._tokens = lower.shape[1]
        # With too few tokens for a shift by a whole context, the largest possible shift.
        margin = min(context, (self._tokens - 1) // 2)
        self._margin, self._generator, self._shifts = margin, np.random.default_rng(seed), [0]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of features of the lower and of the upper layer."""
        return self._lower.codes.shape[0], self._upper.codes.shape[0]

    def blocks(self, draw: int) -> Iterator[Tensor]:
        """The lower features against all upper features."""
        return _correlations(self._lower, self._upper, self._tokens, self._moved(draw))

    def back_blocks(self, draw: int) -> Iterator[Tensor]:
        """The upper features against all lower features."""
        return _correlations(self._upper, self._lower, self._tokens, -self._moved(draw))

    def _moved(self, draw: int) -> int:
        while len(self._shifts) <= draw:
            self._shifts.append(
                int(self._generator.integers(self._margin, self._tokens - self._margin + 1))
            )
        return self._shifts[draw]


class _Pattern:
    """Codes of one layer (d_sae, tokens), with the means and deviations for correlations."""

    def __init__(self, codes: sparse.csr_array) -> None:
        tokens = codes.shape[1]
        self.codes = codes.astype(np.float64)
        self.mean = np.asarray(self.codes.sum(1)).ravel() / tokens
        square = np.asarray(self.codes.multiply(self.codes).sum(1)).ravel() / tokens
        deviation = np.sqrt(np.maximum(square - self.mean**2, 0.0))
        known = (np.diff(self.codes.indptr) >= MIN_FIRINGS) & (deviation > 0)
        self.deviation = np.where(known, deviation, np.nan)

    def shifted(self, shift: int) -> sparse.csc_array:
        """The codes (tokens, d_sae), with token t at position t + shift."""
        columns = (self.codes.indices + shift) % self.codes.shape[1]
        return sparse.csr_array(
            (self.codes.data, columns, self.codes.indptr), shape=self.codes.shape
        ).T


def _correlations(rows: _Pattern, others: _Pattern, tokens: int, shift: int) -> Iterator[Tensor]:
    moved = others.shifted(shift)
    for start in range(0, len(rows.mean), BLOCK):
        some = slice(start, start + BLOCK)
        joint = (rows.codes[some] @ moved).toarray() / tokens
        joint -= np.outer(rows.mean[some], others.mean)
        joint /= np.outer(rows.deviation[some], others.deviation)
        yield torch.from_numpy(np.nan_to_num(joint, copy=False, nan=-1.0).astype(np.float32))


@torch.inference_mode()
def codes_of(sae: Sae, store: Rows, included: NDArray[np.bool_]) -> sparse.csr_array:
    """Codes (d_sae, included rows) of the rows of `store` where `included` (rows,) is true."""
    parts = []
    for start in range(0, store.rows, ENCODED_ROWS):
        stop = min(start + ENCODED_ROWS, store.rows)
        rows = store.read(start, stop)[included[start:stop]]
        parts.append(
            sparse.csr_array(sae.encode(torch.from_numpy(rows.astype(np.float32))).numpy())
        )
    return sparse.csr_array(sparse.vstack(parts).T)
