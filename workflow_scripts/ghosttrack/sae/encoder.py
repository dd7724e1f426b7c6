"""The encoder's product over one batch, a micro-batch at a time."""

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
        """Start over at the first chunk; nobody writes to one."""


class MicroBatches:
    """Pre-activations of centred (batch, d_model); kept if one chunk holds them all, else computed anew at each call.

    Those of the features `some`, if given, are `of_some` (batch, features) once every chunk was asked for.
    """

    of_some: Tensor | None = None

    def __init__(
        self,
        parameters: Parameters,
        centred: Tensor,
        micro_batch: int,
        product: Product,
        some: Tensor | None = None,
    ) -> None:
        self.rows = len(centred)
        self._parameters, self._centred, self._product, self._some = (
            parameters,
            centred,
            product,
            some,
        )
        # About equal chunks: a last one of one row, with MKL of three, would be computed by other kernels, which round otherwise.
        chunks = max(math.ceil(len(centred) / micro_batch), 1)
        self._chunk = math.ceil(len(centred) / chunks)
        self._known: list[Tensor] = []

    def __call__(self) -> Iterator[Tensor]:
        """Start over at the first chunk."""
        if self._chunk < self.rows:
            return self._compute()
        if not self._known:
            self._known = list(self._compute())
        return iter(self._known)

    def _compute(self) -> Iterator[Tensor]:
        W_enc, _, b_enc, _ = self._parameters
        if self._some is not None:
            of_some = self._centred.new_empty(self.rows, len(self._some))
        done = 0
        for part in torch.split(self._centred, self._chunk):
            pre = self._product(part, W_enc, b_enc)
            if self._some is not None:
                torch.index_select(pre, 1, self._some, out=of_some[done : done + len(part)])
            done += len(part)
            yield pre
        if self._some is not None:
            self.of_some = of_some


def cut(encoder: Encoder, k: int) -> Tensor:
    """The (k * rows + 1)-th largest pre-activation of the batch, at least 0, (): a tensor, so that nothing waits for it."""
    largest: list[Tensor] = []
    for pre in encoder():
        values = pre.reshape(-1)
        values = values.topk(
            min(k * encoder.rows + 1, values.numel()), sorted=False
        ).values  # nothing else can be among them
        values = torch.cat([*largest, values])
        largest = [values.topk(min(k * encoder.rows + 1, values.numel()), sorted=False).values]
    return largest[0].min().clamp(min=0.0)
