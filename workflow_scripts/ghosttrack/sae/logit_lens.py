"""Properties of a feature's decoder row: the tokens that it promotes, and similar features."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghosttrack.inputs.unembedding import Unembedding

# Features per block of products: 50 MB with 50,000 tokens.
_BLOCK = 256


class Ranked(NamedTuple):
    """The entries with the highest values of each feature, highest first."""

    entry: npt.NDArray[np.int64]  # (d_sae, count)
    value: npt.NDArray[np.float32]  # (d_sae, count)


@torch.no_grad()
def output_tokens(decoder: Tensor, unembedding: Unembedding, tokens: int, count: int) -> Ranked:
    """The tokens whose logits a feature raises most, and the increase relative to the mean token.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"), applied to a
    direction: for token t and decoder row d, logit_t = u_t . (gain * (d - mean d)) - its mean over
    tokens. The mean of d is subtracted only if the final norm subtracts it. The value is the change
    of the model's logits per unit of activation on the direct path to the output, times the norm's
    sigma, which a direction does not determine. So values are comparable within a layer only.
    Layers between feature and output are ignored.

    Args:
        decoder: (d_sae, d_model).
        unembedding: of the model.
        tokens: number of tokens; further rows of the unembedding are padding.
        count: tokens per feature.
    """
    weight = unembedding.weight[:tokens]
    blocks = []
    for rows in torch.split(decoder, _BLOCK):
        direction = (
            rows - rows.mean(1, keepdim=True) if unembedding.centred else rows
        ) * unembedding.gain
        logits = direction @ weight.T  # (block, tokens)
        top = logits.topk(min(count, len(weight)), dim=1)
        blocks.append((top.indices, top.values - logits.mean(1, keepdim=True)))
    return _joined(blocks)


@torch.no_grad()
def nearest(decoder: Tensor, count: int) -> Ranked:
    """The other features with the highest cosine between decoder rows (d_sae, d_model)."""
    unit = torch.nn.functional.normalize(decoder, dim=1)
    blocks = []
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T  # (block, d_sae)
        cosine.diagonal(start).fill_(-torch.inf)
        top = cosine.topk(min(count, len(unit) - 1), dim=1)
        blocks.append((top.indices, top.values))
    return _joined(blocks)


def _joined(blocks: list[tuple[Tensor, Tensor]]) -> Ranked:
    entry, value = (torch.cat(parts).numpy() for parts in zip(*blocks, strict=True))
    return Ranked(entry, value)
