"""What a feature's decoder row says by itself: the tokens it speaks for, and the features that resemble it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghosttrack.inputs.unembedding import Unembedding

# Features of one block of products: with 50,000 tokens it takes 50 MB.
_BLOCK = 256


class Ranked(NamedTuple):
    """For each feature the entries with the highest values, best first."""

    entry: npt.NDArray[np.int64]  # (d_sae, count)
    value: npt.NDArray[np.float32]  # (d_sae, count)


@torch.no_grad()
def output_tokens(decoder: Tensor, unembedding: Unembedding, tokens: int, count: int) -> Ranked:
    """The tokens whose logits a feature raises most, and by how much beyond the mean token.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"), applied to a direction: for token t
    and decoder row d, logit_t = u_t . (gain * (d - mean d)) - its mean over tokens, with no mean of d where
    the final norm takes out none. It is the change of the model's logits for one unit of activation that goes
    straight to the output, times the norm's sigma, which a direction alone does not determine: so values compare
    within a layer. Layers between feature and output are left out.

    Args:
        decoder: (d_sae, d_model).
        unembedding: of the model.
        tokens: the first so many rows of the unembedding are tokens; the rest is padding.
        count: tokens for each feature.
    """
    weight = unembedding.weight[:tokens]
    found = []
    for rows in torch.split(decoder, _BLOCK):
        direction = (
            rows - rows.mean(1, keepdim=True) if unembedding.centred else rows
        ) * unembedding.gain
        logits = direction @ weight.T  # (block, tokens)
        top = logits.topk(min(count, len(weight)), dim=1)
        found.append((top.indices, top.values - logits.mean(1, keepdim=True)))
    return _joined(found)


@torch.no_grad()
def nearest(decoder: Tensor, count: int) -> Ranked:
    """The other features of the same layer with the highest cosine of decoder rows (d_sae, d_model)."""
    unit = torch.nn.functional.normalize(decoder, dim=1)
    found = []
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T  # (block, d_sae)
        cosine.diagonal(start).fill_(-torch.inf)
        top = cosine.topk(min(count, len(unit) - 1), dim=1)
        found.append((top.indices, top.values))
    return _joined(found)


def _joined(blocks: list[tuple[Tensor, Tensor]]) -> Ranked:
    entry, value = (torch.cat(parts).numpy() for parts in zip(*blocks, strict=True))
    return Ranked(entry, value)
