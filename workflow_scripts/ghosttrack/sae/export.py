"""From training form to the exported autoencoder: scale and mean folded in, one threshold."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.rows import Normaliser, Rows, blocks

# The L0 of a token varies by about 30 around the mean: 65,536 rows give the mean within a few tenths.
THRESHOLD_ROWS = 65_536
# Rows of a first guess, which sets how many values are held and not what is found.
GUESS_ROWS = 512


def fold(parameters: Parameters, normaliser: Normaliser) -> Sae:
    """An autoencoder on raw activations that equals the training form on normalised ones; threshold 0.

    With y = (x - mean) * scale:  (y - b) W_enc = (x - (mean + b / scale)) (scale * W_enc), and the
    reconstruction (code W_dec + b) / scale + mean = code (W_dec / scale) + (mean + b / scale).
    """
    W_enc, W_dec, b_enc, b_dec = (tensor.detach().to("cpu", torch.float64) for tensor in parameters)
    threshold = torch.zeros_like(b_enc)
    middle = normaliser.mean.to(torch.float64) + b_dec / normaliser.scale
    folded = ((W_enc * normaliser.scale).t(), b_enc, W_dec / normaliser.scale, middle, threshold)
    W_enc, b_enc, W_dec, b_dec, threshold = (
        tensor.to(torch.float32).contiguous() for tensor in folded
    )
    return Sae(W_enc, b_enc, W_dec, b_dec, threshold, mean=normaliser.mean.cpu())


@torch.no_grad()
def calibrate(sae: Sae, store: Rows, k: int, at_most: int = THRESHOLD_ROWS) -> Sae:
    """The autoencoder with the one threshold at which exactly k features a row are active on average.

    Measured on the kept rows of `store`, evenly spread blocks of about `at_most` rows. Fewer than k
    only where fewer pre-activations are positive, or values tie at the threshold.
    """
    threshold = _threshold(lambda: (sae.preactivations(x) for x in blocks(store, at_most)), k)
    return replace(sae, threshold=torch.full((sae.d_sae,), threshold))


def _threshold(preactivations: Callable[[], Iterator[Tensor]], k: int) -> float:
    """The (k * rows + 1)-th largest of all values, at least 0, holding only the larger ones in memory."""
    first = next(preactivations())[:GUESS_ROWS]  # (rows, d_sae)
    cut = torch.kthvalue(first.reshape(-1), max(first.numel() - k * len(first), 1)).values
    # Half the cut of some rows surely lies below the cut of all; if not, the second bar does.
    guess = max(0.5 * float(cut), 0.0)
    for bar in dict.fromkeys((guess, 0.0)):
        values, rows = _above(preactivations(), bar)
        surplus = values.numel() - k * rows
        if surplus > 0:
            return float(torch.kthvalue(values, surplus).values)
    return 0.0


def _above(preactivations: Iterable[Tensor], bar: float) -> tuple[Tensor, int]:
    values, rows = [], 0
    for pre in preactivations:
        values.append(pre[pre > bar])
        rows += pre.shape[0]
    return torch.cat(values), rows
