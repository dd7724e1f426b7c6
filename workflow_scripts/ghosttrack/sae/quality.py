"""Quality of an autoencoder on held-out documents, with two baselines of equal sparsity.

All sums are float64 over the included rows (without position 0 and massive activations), and ratios
are taken last. The mean of per-token ratios would be another number; the median over tokens is also
reported. Names are those of SAEBench's core evaluation (arXiv 2503.09532) where it has one.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows, blocks, mean_of

# A feature that fires on every tenth token says little about any of them.
DENSE_DENSITY = 0.1
# Enough rows for two digits of the random baseline, which takes a full product per row.
RANDOM_ROWS = 16_384
RANDOM_SEED = 0


class Reconstruction(NamedTuple):
    """How close xhat is to x, over a set of rows."""

    fvu: float  # sum |x - xhat|^2 / sum |x - mean|^2
    fvu_token_median: float  # median over rows of |x - xhat|^2 / |x - mean|^2
    explained_variance: float  # 1 - fvu
    mse: float  # mean over rows and dimensions of (x - xhat)^2, in squared raw units
    cossim: float  # mean over rows of cos(x, xhat)
    l2_ratio: float  # mean over rows of |xhat| / |x|; below 1: shrinkage
    relative_reconstruction_bias: float  # sum |xhat|^2 / sum <x, xhat>; 1: unbiased


class Sparsity(NamedTuple):
    """How the features fire, over a set of rows."""

    l0: float  # mean active features per row
    l0_p5: float
    l0_p50: float
    l0_p95: float
    dead_fraction: float  # features that fire on none of the rows
    frac_alive: float  # 1 - dead_fraction
    dense_fraction: float  # features that fire on more than a tenth of the rows


class Quality(NamedTuple):
    """The result of `measure`."""

    reconstruction: Reconstruction
    sparsity: Sparsity
    rows: int  # rows measured
    k: int  # components of the two baselines
    pca_fvu: float
    random_fvu: float


class ReconstructionSums:
    """Collects rows and their reconstructions chunk by chunk; `result` takes the ratios."""

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean.to(torch.float64)  # (d_model,) of all rows that will be added
        self._columns: list[Tensor] = []

    def add(self, x: Tensor, xhat: Tensor) -> None:
        """Add x and xhat, both (rows, d_model)."""
        x, xhat = x.to(torch.float64), xhat.to(torch.float64)
        residual_ss = (x - xhat).pow_(2).sum(1)
        total_ss = (x - self._mean).pow_(2).sum(1)
        columns = (residual_ss, total_ss, x.pow(2).sum(1), xhat.pow(2).sum(1), (x * xhat).sum(1))
        self._columns.append(torch.stack(columns))

    def result(self) -> Reconstruction:
        """Metrics over all rows added. Raises UserError if the rows do not vary."""
        residual_ss, total_ss, x2, xhat2, product = torch.cat(self._columns, dim=1)
        if float(total_ss.sum()) == 0.0:
            raise UserError(
                f"all {total_ss.numel()} held-out rows are equal: raise corpus.heldout_tokens"
            )
        fvu = float(residual_ss.sum() / total_ss.sum())
        varying = total_ss > 0
        lengths = (x2 * xhat2).sqrt()
        nonzero = lengths > 0
        return Reconstruction(
            fvu=fvu,
            fvu_token_median=float(np.median((residual_ss[varying] / total_ss[varying]).numpy())),
            explained_variance=1.0 - fvu,
            mse=float(residual_ss.mean()) / self._mean.numel(),
            cossim=float(torch.where(nonzero, product / lengths.where(nonzero, 1.0), 0.0).mean()),
            l2_ratio=float((xhat2 / x2.where(x2 > 0, 1.0)).sqrt().mean()),
            # A reconstruction that is zero or orthogonal has no finite bias.
            relative_reconstruction_bias=float(xhat2.sum() / product.sum())
            if float(product.sum())
            else 0.0,
        )


def sparsity(row_l0: Tensor, fired: Tensor) -> Sparsity:
    """Sparsity from the active features per row (rows,) and the rows per feature (d_sae,)."""
    counts = row_l0.to(torch.float64).numpy()
    p5, p50, p95 = np.percentile(counts, [5, 50, 95]).tolist()
    dead = float((fired == 0).to(torch.float64).mean())
    dense = float((fired > DENSE_DENSITY * len(counts)).to(torch.float64).mean())
    return Sparsity(float(counts.mean()), p5, p50, p95, dead, 1.0 - dead, dense)


class Tally:
    """Collects rows, their codes and reconstructions chunk by chunk."""

    def __init__(self, mean: Tensor, d_sae: int) -> None:
        self._sums = ReconstructionSums(mean)
        self._row_l0: list[Tensor] = []
        self.fired = torch.zeros(d_sae, dtype=torch.int64)  # rows in which each feature fired

    def add(self, x: Tensor, code: Tensor, xhat: Tensor) -> None:
        """Add x and xhat, both (rows, d_model), with code (rows, d_sae)."""
        self._sums.add(x, xhat)
        active = code > 0
        self._row_l0.append(active.sum(1))
        self.fired += active.sum(0)

    @property
    def rows(self) -> int:
        """Rows added."""
        return sum(part.numel() for part in self._row_l0)

    def result(self) -> tuple[Reconstruction, Sparsity]:
        """Metrics over all rows added. Raises UserError if the rows do not vary."""
        return self._sums.result(), sparsity(torch.cat(self._row_l0), self.fired)


@torch.no_grad()
def tally(sae: Sae, store: Rows, mean: Tensor) -> Tally:
    """Run `sae` on the included rows of `store`, whose mean is (d_model,).

    Raises:
        UserError: the widths differ.
    """
    if store.d_model != sae.d_model:
        raise UserError(
            f"the held-out rows have {store.d_model} dimensions, the autoencoder {sae.d_model}: "
            "delete the autoencoder's folder under saes/ and run again"
        )
    result = Tally(mean, sae.d_sae)
    for x in blocks(store):
        code = sae.encode(x)  # (rows, d_sae)
        result.add(x, code, sae.decode(code))
    return result


def measure(sae: Sae, store: Rows, k: int | None) -> Quality:
    """Quality of `sae` on the included rows of `store`.

    The baselines, PCA and a random dictionary, have k components per row. Pretrained autoencoders
    may have no k: then it is the mean number of active features.
    """
    mean = mean_of(store)
    counts = tally(sae, store, mean)
    reconstruction, active = counts.result()
    k = k or max(1, round(active.l0))
    baselines = pca_fvu(store, mean, k), random_fvu(store, mean, sae.d_sae, k)
    return Quality(reconstruction, active, counts.rows, k, *baselines)


def pca_fvu(store: Rows, mean: Tensor, k: int) -> float:
    """FVU of the first k principal components; each half of the rows uses those of the other half.

    So a row is never projected on components fitted on it, and the rows are those that the
    autoencoder reads. Rows are in document order: at most one document is in both halves.
    """
    chunks = list(_halves(store))
    if min(sum(len(x) for x, half in chunks if half == side) for side in (0, 1)) < 2:
        return 1.0  # nothing to fit on: no better than the mean
    fitted = [_principal([x for x, half in chunks if half != side], k) for side in (0, 1)]
    residual_ss = total_ss = 0.0
    for x, half in chunks:
        centre, basis = fitted[half]
        centred = x.to(torch.float64) - centre
        residual_ss += float(centred.pow(2).sum() - (centred @ basis).pow_(2).sum())
        total_ss += float((x.to(torch.float64) - mean).pow_(2).sum())
    return residual_ss / total_ss


def _halves(store: Rows) -> list[tuple[Tensor, int]]:
    """Included rows with the number of their half, 0 or 1."""
    parts: list[tuple[Tensor, int]] = []
    total, done = int((~store.excluded).sum()), 0
    for x in blocks(store):
        first_rows = min(max(total // 2 - done, 0), len(x))
        split = x[:first_rows], x[first_rows:]
        parts += [(part, half) for half, part in enumerate(split) if len(part)]
        done += len(x)
    return parts


def _principal(chunks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Mean (d_model,) and the first k principal directions (d_model, k), both float64."""
    count = sum(len(x) for x in chunks)
    mean = torch.stack([x.sum(0, dtype=torch.float64) for x in chunks]).sum(0) / count
    covariance = torch.zeros(mean.numel(), mean.numel(), dtype=torch.float64)
    for x in chunks:
        centred = x.to(torch.float64) - mean
        covariance += centred.t() @ centred
    directions = torch.linalg.eigh(covariance).eigenvectors  # ascending by variance
    return mean, directions[:, -min(k, mean.numel()) :]


def random_fvu(store: Rows, mean: Tensor, d_sae: int, k: int) -> float:
    """FVU of d_sae random unit directions with the k largest projections per row and one best gain.

    Sparsity and size alone achieve this: an untrained tied autoencoder with the best scale.
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    directions = torch.randn(d_sae, mean.numel(), generator=generator)
    directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    xhat_ss = product = total_ss = 0.0
    for x in blocks(store, RANDOM_ROWS):
        centred = x - mean.to(x.dtype)
        strongest = (centred @ directions.t()).topk(min(k, d_sae), dim=1, sorted=False)
        code = torch.zeros(len(x), d_sae).scatter_(1, strongest.indices, strongest.values.relu())
        xhat = code @ directions
        xhat_ss += float(xhat.pow(2).sum(dtype=torch.float64))
        product += float((xhat * centred).sum(dtype=torch.float64))
        total_ss += float(centred.pow(2).sum(dtype=torch.float64))
    # min over the gain g of |x - g xhat|^2 = |x|^2 - <x, xhat>^2 / |xhat|^2
    return 1.0 - product**2 / (xhat_ss * total_ss) if xhat_ss else 1.0
