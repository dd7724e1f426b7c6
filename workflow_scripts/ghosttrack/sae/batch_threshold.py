"""The batch threshold of BatchTopK (Bussmann et al., arXiv 2412.06410)."""

import torch
from torch import Tensor

from ghosttrack.sae.encoder import Encoder


def kept(k: int, rows: int) -> int:
    """How many activations a batch of `rows` rows keeps: `k` per row on average."""
    return k * rows


def batch_threshold(encoder: Encoder, k: int) -> Tensor:
    """The largest pre-activation of the batch that is not kept, at least 0.

    A tensor () on the device, so that nothing waits for it.
    """
    largest: list[Tensor] = []
    for pre in encoder():
        count = min(kept(k, encoder.rows) + 1, pre.numel())
        values = pre.reshape(-1).topk(count, sorted=False).values
        values = torch.cat([*largest, values])
        count = min(kept(k, encoder.rows) + 1, values.numel())
        largest = [values.topk(count, sorted=False).values]
    return largest[0].min().clamp(min=0.0)
