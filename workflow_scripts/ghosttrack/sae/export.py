"""Export of a trained dictionary: fold in the normalisation, set one inference threshold."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ghosttrack.sae.batch_threshold import kept
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.rows import Normaliser, Rows, blocks
from ghosttrack.sae.sparse import kth_largest

# The L0 of a token has a standard deviation of about 30: 65,536 rows give the mean to a few tenths.
THRESHOLD_ROWS = 65_536
# Rows of a first estimate, which sets how many values are kept and never changes the result.
ESTIMATE_ROWS = 512


def fold_normalisation(parameters: Parameters, normaliser: Normaliser) -> Sae:
    """The autoencoder on raw activations that equals the training form on normalised ones.

    Its threshold is 0. With y = (x - mean) * scale,

        (y - b) W_enc = (x - (mean + b / scale)) (scale * W_enc)
        (code W_dec + b) / scale + mean = code (W_dec / scale) + (mean + b / scale).
    """
    W_enc, W_dec, b_enc, b_dec = (tensor.detach().to("cpu", torch.float64) for tensor in parameters)
    folded = (
        (W_enc * normaliser.scale).t(),
        b_enc,
        W_dec / normaliser.scale,
        normaliser.mean.to(torch.float64) + b_dec / normaliser.scale,
        torch.zeros_like(b_enc),
    )
    W_enc, b_enc, W_dec, b_dec, threshold = (
        tensor.to(torch.float32).contiguous() for tensor in folded
    )
    return Sae(W_enc, b_enc, W_dec, b_dec, threshold, mean=normaliser.mean.cpu())


@torch.no_grad()
def calibrate(sae: Sae, store: Rows, k: int, at_most: int = THRESHOLD_ROWS) -> Sae:
    """The autoencoder with the one threshold at which k features per row are active on average.

    The threshold is measured on the included rows of `store`, in evenly spread blocks of about
    `at_most` rows in total. Fewer than k features are active only if fewer pre-activations are
    positive, or if values tie at the threshold.
    """
    threshold = _threshold(lambda: (sae.preactivations(x) for x in blocks(store, at_most)), k)
    return replace(sae, threshold=torch.full((sae.d_sae,), threshold))


def estimated_threshold(pre: Tensor, k: int) -> float:
    """BatchTopK's threshold of the first rows of pre (rows, d_sae), at least 0."""
    first = pre[:ESTIMATE_ROWS]
    return max(kth_largest(first.reshape(-1), kept(k, len(first)) + 1), 0.0)


def _threshold(preactivations: Callable[[], Iterator[Tensor]], k: int) -> float:
    """The (k * rows + 1)-th largest of all values, at least 0, with only larger ones in memory."""
    # Half of the estimate is almost surely below the threshold; if not, 0 is.
    estimate = 0.5 * estimated_threshold(next(preactivations()), k)
    for candidate_threshold in dict.fromkeys((estimate, 0.0)):
        values, rows = _above(preactivations(), candidate_threshold)
        if values.numel() > kept(k, rows):
            return kth_largest(values, kept(k, rows) + 1)
    return 0.0


def _above(preactivations: Iterable[Tensor], candidate_threshold: float) -> tuple[Tensor, int]:
    values, rows = [], 0
    for pre in preactivations:
        values.append(pre[pre > candidate_threshold])
        rows += pre.shape[0]
    return torch.cat(values), rows
