"""Features that two autoencoders with different initial weights share."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Cosines above which two decoder rows count as the same feature: .7 as in Paulo and Belrose
# (arXiv 2501.16615), and .9 for nearly equal rows.
ALIKE, EQUAL = 0.7, 0.9


class Stability(NamedTuple):
    """Cosines of pairs of decoder rows, one row from each autoencoder."""

    features: int  # pairs
    paired_median: float
    paired_mean: float
    share_alike: float  # fraction of the pairs with a cosine above .7
    share_equal: float  # fraction of the pairs with a cosine above .9
    mutual: float  # fraction of the pairs in which each is the other's nearest neighbour
    chance_median: float  # paired_median with the coordinates of the other rows permuted


def compare(one: Tensor, other: Tensor, seed: int) -> Stability:
    """Pair the decoder rows one (n, d_model) and other (m, d_model) with maximal sum of cosines.

    The assignment is exact (scipy), so a feature that resembles two others counts once.
    `chance_median` is the median for a decoder with permuted coordinates: the similarity that is
    due to the dimension alone.

    Args:
        one, other: decoder rows of the features that fire.
        seed: of the permutation.
    Returns:
        NaN, and 0 `features`, if no feature fires on one side.
    """
    if not len(one) or not len(other):
        return Stability(0, *[math.nan] * (len(Stability._fields) - 1))
    left, right = (torch.nn.functional.normalize(rows, dim=1) for rows in (one, other))
    cosine = (left @ right.T).numpy()  # (n, m)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    paired = cosine[rows, columns]
    mutual = (cosine.argmax(1)[rows] == columns) & (cosine.argmax(0)[columns] == rows)
    order = torch.randperm(right.shape[1], generator=torch.Generator().manual_seed(seed))
    chance = (left @ right[:, order].T).numpy()
    return Stability(
        features=len(paired),
        paired_median=float(np.median(paired)),
        paired_mean=float(paired.mean()),
        share_alike=float((paired > ALIKE).mean()),
        share_equal=float((paired > EQUAL).mean()),
        mutual=float(mutual.mean()),
        chance_median=float(np.median(chance[linear_sum_assignment(chance, maximize=True)])),
    )
