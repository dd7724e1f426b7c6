"""The interface of an SAE architecture. Gradients, AuxK and Adam are common to all."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code
from ghosttrack.sae.threshold import Threshold


class Activated(NamedTuple):
    """One chunk of a batch in the dense back end."""

    pre: Tensor  # (chunk, d_sae)
    code: Tensor  # (chunk, d_sae), zero where silent


class Architecture(Protocol):
    """The activation rule for a batch, once per back end, and its form at inference.

    A code is zero where silent. Where active, it equals its pre-activation, which is positive. So a
    gradient passes unchanged where the code is positive and nowhere else.
    """

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Sizes of the dictionary's prefixes that must reconstruct alone; the last is d_sae."""

    @property
    def threshold(self) -> Threshold | None:
        """Thresholds that are learned with the weights, or None."""

    def select(self, encoder: Encoder) -> Code:
        """Sparse back end: the active entries of the batch in row-major order.

        With a learned threshold also the silent entries near their threshold, with value 0.
        """

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """Dense back end: the codes chunk by chunk, without a device synchronisation."""

    def export(self, sae: Sae, store: Rows) -> Sae:
        """`sae` with its rule at inference, measured on the training rows if necessary."""
