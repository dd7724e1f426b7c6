"""Nearest neighbours of features in another layer, and the gate that a null sets."""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.runtime.files import atomic_write
from ghosttrack.tracks.similarity import DecoderCosine, Similarity

# Expected number of null similarities above the gate: 20 of them give the rate of chance links to
# within about a fifth.
NULL_EXCEEDANCES = 20
MAX_PERMUTATIONS = 64
# Prefix of the keys of the second layer pair (two layers ahead) in a neighbour file.
SKIP = "skip_"


class NeighbourLists(NamedTuple):
    """The m most similar decoder rows of the other layer, best first, in both directions."""

    target: NDArray[np.int32]  # (d_lower, m) rows of the upper decoder
    cosine: NDArray[np.float32]  # (d_lower, m)
    back_target: NDArray[np.int32]  # (d_upper, m) rows of the lower decoder
    back_cosine: NDArray[np.float32]  # (d_upper, m)


# Their names in a neighbour file.
KEYS = ("index", "cosine", "back_index", "back_cosine")


class LayerComparison(NamedTuple):
    """Two layers compared, and the same comparison with the upper decoder permuted."""

    real: NeighbourLists
    permuted: NeighbourLists
    gate: float
    best: NDArray[np.float32]  # (d_lower,) similarity of the best match
    null_best: NDArray[np.float32]  # (samples,) best matches of the null, both directions pooled
    mutual: NDArray[np.bool_]  # (d_lower,) whether the best match's best match is this feature
    covered: bool  # the lists hold every pair above the gate


class Links(NamedTuple):
    """All pairs above the gate, as a compressed sparse row table over the lower features."""

    start: NDArray[np.int64]  # (d_lower + 1,)
    target: NDArray[np.int32]  # (pairs,) feature of the upper layer
    surplus: NDArray[np.float32]  # (pairs,) cosine - gate, above 0


class LayerLinks(NamedTuple):
    """Links of one layer to the next analysed layer, and to the one after it if there is one."""

    layers: list[int]  # the two or three layers
    adjacent: Links
    skip: Links | None

    def require(self, path: Path, layers: Sequence[int], features: int) -> None:
        """Check that the links, read from `path`, start at `layers[0]` with `features` features.

        Raises:
            UserError: the file is of other layers or of an SAE of another size.
        """
        size = len(self.adjacent.start) - 1
        if self.layers != list(layers) or size != features:
            raise UserError(
                f"{path}: links layers {self.layers} with {size} features, expected "
                f"{list(layers)} with {features}: delete it and run again, rule find_neighbours "
                "writes it again"
            )


def compare(
    lower: Tensor, upper: Tensor, neighbours: int, quantile: float, seed: Sequence[int]
) -> LayerComparison:
    """Compare two decoders by the cosine of their rows.

    Args:
        lower, upper: (d_lower, d_model), (d_upper, d_model) decoder rows of any norm.
        seed: integers that seed the permutations of the null.
    """
    return compare_by(DecoderCosine(lower, upper, seed), neighbours, quantile)


def compare_by(similarity: Similarity, neighbours: int, quantile: float) -> LayerComparison:
    """Find the nearest neighbours of two layers, and the gate that the null sets.

    The gate is the `quantile` of the null's best-match similarities: each feature against the whole
    other layer, in both directions. The number of null draws follows from NULL_EXCEEDANCES. The
    neighbour lists of the null come from a further draw that the gate does not use.
    """
    d_lower, d_upper = similarity.sizes
    samples = d_lower + d_upper
    count = min(MAX_PERMUTATIONS, max(2, math.ceil(NULL_EXCEEDANCES / ((1 - quantile) * samples))))
    real, permuted = (_lists(similarity, draw, neighbours) for draw in (0, 1))
    null_best = np.concatenate([_best_matches(similarity, draw) for draw in range(2, count + 2)])
    gate = float(np.quantile(null_best, quantile))
    mutual = real.back_target[real.target[:, 0], 0] == np.arange(d_lower)
    truncated = [
        bool((cosine[:, -1] > gate).any()) and cosine.shape[1] < other
        for cosine, other in ((real.cosine, d_upper), (real.back_cosine, d_lower))
    ]
    return LayerComparison(
        real, permuted, gate, real.cosine[:, 0].copy(), null_best, mutual, not all(truncated)
    )


def index_aligned(comparison: LayerComparison, similarity: Similarity) -> LayerComparison:
    """Replace the neighbour lists by one pair per feature: the features of equal index.

    This is for index-aligned dictionaries. The gate still applies, so features that training moved
    apart are not linked.

    Raises:
        UserError: the layers have different numbers of features.
    """
    d_lower, d_upper = similarity.sizes
    if d_lower != d_upper:
        raise UserError(
            f"tracking.links: identity needs dictionaries of equal size, found {d_lower} and "
            f"{d_upper} features: use SAEs of one size (sae.source), set tracking.links to cosine, "
            "or leave identity out of tuning.links"
        )
    index = np.arange(d_lower, dtype=np.int32)[:, None]
    real, permuted = (_diagonal(similarity, draw)[:, None] for draw in (0, 1))
    return comparison._replace(
        real=NeighbourLists(index, real, index, real),
        permuted=NeighbourLists(index, permuted, index, permuted),
        best=real[:, 0],
        mutual=comparison.real.target[:, 0] == index[:, 0],
        covered=True,
    )


def _diagonal(similarity: Similarity, draw: int) -> NDArray[np.float32]:
    """(d_sae,) similarity of every feature to the feature of the same index."""
    values, start = [], 0
    for block in similarity.blocks(draw):
        values.append(block.diagonal(start))
        start += len(block)
    return np.asarray(torch.cat(values).numpy(), dtype=np.float32)


def _lists(similarity: Similarity, draw: int, neighbours: int) -> NeighbourLists:
    return NeighbourLists(
        *_nearest(similarity.blocks(draw), neighbours),
        *_nearest(similarity.back_blocks(draw), neighbours),
    )


def _nearest(blocks: Iterator[Tensor], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    best = [block.topk(min(count, block.shape[1]), dim=1) for block in blocks]
    index = torch.cat([top.indices for top in best]).to(torch.int32)
    return index.numpy(), torch.cat([top.values for top in best]).numpy()


def _best_matches(similarity: Similarity, draw: int) -> NDArray[np.float32]:
    """(d_lower + d_upper,) similarity of each feature to its best match in the other layer."""
    forward, backward = [], torch.full((similarity.sizes[1],), -1.0)
    for block in similarity.blocks(draw):
        forward.append(block.amax(1))
        backward = torch.maximum(backward, block.amax(0))
    return np.asarray(torch.cat([*forward, backward]).numpy(), dtype=np.float32)


def links(lists: NeighbourLists, gate: float) -> Links:
    """All pairs above the gate that appear in the lists of either direction."""
    forward, backward = lists.cosine > gate, lists.back_cosine > gate
    lower = np.concatenate([np.nonzero(forward)[0], lists.back_target[backward]]).astype(np.int64)
    upper = np.concatenate([lists.target[forward], np.nonzero(backward)[0]]).astype(np.int64)
    cosine = np.concatenate([lists.cosine[forward], lists.back_cosine[backward]])
    _, once = np.unique(
        lower * len(lists.back_target) + upper, return_index=True
    )  # sorted by lower, then upper
    counts = np.bincount(lower[once], minlength=len(lists.target))
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    surplus = (cosine[once].astype(np.float64) - gate).astype(np.float32)
    return Links(start, upper[once].astype(np.int32), surplus)


def save(path: Path, layers: Sequence[int], comparisons: Sequence[LayerComparison]) -> None:
    """Write the comparisons of a layer with the next one or two to an .npz, atomically.

    Equal content gives equal bytes. The keys are `layers`; for the next layer `index`, `cosine`,
    `back_index`, `back_cosine`, the same four with the prefix `permuted_`, `gate`, `best`,
    `null_best`, `mutual` and `covered`; for the layer after it all of these with the prefix
    `skip_`.
    """
    arrays: dict[str, NDArray[np.generic]] = {"layers": np.asarray(layers, dtype=np.int32)}
    for prefix, comparison in zip(("", SKIP), comparisons, strict=False):
        arrays |= {prefix + key: value for key, value in zip(KEYS, comparison.real, strict=True)}
        arrays |= {
            f"{prefix}permuted_{key}": value
            for key, value in zip(KEYS, comparison.permuted, strict=True)
        }
        for key in ("gate", "best", "null_best", "mutual", "covered"):
            arrays[prefix + key] = np.asarray(getattr(comparison, key))
    with atomic_write(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_links(path: Path, *, permuted: bool) -> LayerLinks:
    """Read the links of one layer from its neighbour file; those of the null if `permuted`.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            layers = stored["layers"]
            adjacent = _stored_links(stored, "", permuted)
            skip = _stored_links(stored, SKIP, permuted) if len(layers) > 2 else None
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run again, rule find_neighbours writes it again"
        ) from None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a neighbour file ({error}): delete it and run again, "
            "rule find_neighbours writes it again"
        ) from None
    return LayerLinks([int(layer) for layer in layers], adjacent, skip)


def _stored_links(stored: Mapping[str, NDArray[np.generic]], prefix: str, permuted: bool) -> Links:
    gate = float(np.asarray(stored[f"{prefix}gate"]))
    names = [prefix + ("permuted_" if permuted else "") + name for name in KEYS]
    return links(NeighbourLists(*(stored[name] for name in names)), gate)  # type: ignore[arg-type]
