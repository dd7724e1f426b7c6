"""How many of its features an autoencoder has in common with one that started from other weights."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Above them two decoder rows count as one feature: .7 as in Paulo and Belrose (arXiv 2501.16615), .9 as good as equal.
ALIKE, EQUAL = 0.7, 0.9


class Stability(NamedTuple):
    """Cosines of decoder rows, each row matched with one of the other side."""

    features: int  # matched pairs
    matched_median: float
    matched_mean: float
    share_alike: float  # of the pairs, cosine above .7
    share_equal: float  # of the pairs, cosine above .9
    mutual: float  # of the pairs: each is the other's most similar
    chance_median: float  # the same median against rows whose coordinates were permuted


def compare(one: Tensor, other: Tensor, seed: int) -> Stability:
    """Match the decoder rows one (n, d_model) and other (m, d_model) so that the sum of cosines is largest.

    The assignment is exact (scipy), so a feature that two others resemble counts once. `chance_median` is what a decoder
    with the same values in another order of its coordinates gives: similarity that dimension alone brings.

    Args:
        one, other: rows of the features that fire at all.
        seed: of the permutation.
    Returns:
        NaN but for `features`, 0, where none fires on one side.
    """
    if not len(one) or not len(other):
        return Stability(0, *[math.nan] * (len(Stability._fields) - 1))
    left, right = (torch.nn.functional.normalize(each, dim=1) for each in (one, other))
    cosine = (left @ right.T).numpy()  # (n, m)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    matched = cosine[rows, columns]
    mutual = (cosine.argmax(1)[rows] == columns) & (cosine.argmax(0)[columns] == rows)
    order = torch.randperm(right.shape[1], generator=torch.Generator().manual_seed(seed))
    chance = (left @ right[:, order].T).numpy()
    return Stability(
        features=len(matched),
        matched_median=float(np.median(matched)),
        matched_mean=float(matched.mean()),
        share_alike=float((matched > ALIKE).mean()),
        share_equal=float((matched > EQUAL).mean()),
        mutual=float(mutual.mean()),
        chance_median=float(np.median(chance[linear_sum_assignment(chance, maximize=True)])),
    )
