"""The encoder's matrix product over one batch, one micro-batch at a time."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ghosttrack.sae.parameters import Parameters

# (x, weight, bias): x @ weight^T + bias.
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class Encoder(Protocol):
    """Pre-activations (chunk, d_sae) of consecutive chunks of a batch."""

    @property
    def rows(self) -> int:
        """Rows of the batch."""

    def __call__(self) -> Iterator[Tensor]:
        """Iterate over the chunks from the first; they must not be modified."""


class MicroBatches:
    """Pre-activations of centred rows (batch, d_model).

    They are kept if one chunk holds them all, and computed again at each call otherwise. Once all
    chunks were read, `selected_pre` (batch, features) holds those of the features `selected`.
    """

    selected_pre: Tensor | None = None

    def __init__(
        self,
        parameters: Parameters,
        centred: Tensor,
        micro_batch: int,
        product: Product,
        selected: Tensor | None = None,
    ) -> None:
        self.rows = len(centred)
        self._parameters, self._centred = parameters, centred
        self._product, self._selected = product, selected
        # Chunks of about equal size: other kernels, which round differently, would compute a last
        # chunk of one row (with MKL: of three rows).
        chunks = max(math.ceil(len(centred) / micro_batch), 1)
        self._chunk = math.ceil(len(centred) / chunks)
        self._kept: list[Tensor] = []

    def __call__(self) -> Iterator[Tensor]:
        """Iterate over the chunks from the first."""
        if self._chunk < self.rows:
            return self._compute()
        if not self._kept:
            self._kept = list(self._compute())
        return iter(self._kept)

    def _compute(self) -> Iterator[Tensor]:
        W_enc, _, b_enc, _ = self._parameters
        if self._selected is not None:
            selected_pre = self._centred.new_empty(self.rows, len(self._selected))
        done = 0
        for part in torch.split(self._centred, self._chunk):
            pre = self._product(part, W_enc, b_enc)
            if self._selected is not None:
                rows = slice(done, done + len(part))
                torch.index_select(pre, 1, self._selected, out=selected_pre[rows])
            done += len(part)
            yield pre
        if self._selected is not None:
            self.selected_pre = selected_pre
