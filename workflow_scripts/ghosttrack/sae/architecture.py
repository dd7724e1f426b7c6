"""What tells one architecture from another. Everything else (gradients, AuxK, Adam) is common to all."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from ghosttrack.sae.encoder import Encoder
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows
from ghosttrack.sae.sparse import Code
from ghosttrack.sae.threshold import Threshold


class Activated(NamedTuple):
    """One chunk of a batch on its way through the dense back end."""

    pre: Tensor  # (chunk, d_sae)
    code: Tensor  # (chunk, d_sae), zero where silent


class Architecture(Protocol):
    """Which pre-activations of a batch stay active, once for each back end, and what is exported in the end.

    A code is zero where silent and equal to its pre-activation, which is positive, where active: a gradient
    passes unchanged where the code is positive and nowhere else.
    """

    @property
    def ends(self) -> tuple[int, ...]:
        """Nested parts: for each end, the features before it alone reconstruct too. The last is d_sae."""

    @property
    def threshold(self) -> Threshold | None:
        """What learns along with the weights, if anything does."""

    def select(self, encoder: Encoder) -> Code:
        """Sparse back end: the active entries of the batch in row-major order.

        With a learned threshold also the silent entries near theirs, value 0.
        """

    def activate(self, encoder: Encoder) -> Iterator[Activated]:
        """Dense back end: the same chunk by chunk, without waiting for the device."""

    def export(self, sae: Sae, store: Rows) -> Sae:
        """`sae` with its rule at inference, measured on the training rows where need be."""
