"""Which features of two layers mean the same: neighbours by similarity, and the gate that chance sets."""

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

# Null similarities expected above the gate: with 20 the share of chance links is known to about a fifth.
NULL_EXCEEDANCES = 20
MAX_PERMUTATIONS = 64
# Keys of the second layer pair (over one silent layer) in a neighbour file start with this.
SKIP = "skip_"


class Lists(NamedTuple):
    """The m most similar decoder rows of the other layer, best first, in both directions."""

    target: NDArray[np.int32]  # (d_lower, m) rows of the upper decoder
    cosine: NDArray[np.float32]  # (d_lower, m)
    back_target: NDArray[np.int32]  # (d_upper, m) rows of the lower decoder
    back_cosine: NDArray[np.float32]  # (d_upper, m)


# The names of these four in a neighbour file.
KEYS = ("index", "cosine", "back_index", "back_cosine")


class Comparison(NamedTuple):
    """Two decoders compared, beside the same with permuted coordinates."""

    real: Lists
    permuted: Lists
    gate: float
    best: NDArray[np.float32]  # (d_lower,) similarity of the best match
    null_best: NDArray[np.float32]  # (samples,) the same under permutation, both directions pooled
    mutual: NDArray[np.bool_]  # (d_lower,) the best match's own best match is this feature
    covered: bool  # no pair above the gate is missing from the lists


class Links(NamedTuple):
    """Every pair above the gate, as a compressed sparse row table over the lower layer's features."""

    start: NDArray[np.int64]  # (d_lower + 1,)
    target: NDArray[np.int32]  # (pairs,) feature of the upper layer
    surplus: NDArray[np.float32]  # (pairs,) cosine - gate, above 0


class LayerLinks(NamedTuple):
    """Links of one layer to the next analysed layer, and to the one after it if there is one."""

    layers: list[int]  # the two or three layers
    adjacent: Links
    skip: Links | None


def compare(
    lower: Tensor, upper: Tensor, neighbours: int, quantile: float, seed: Sequence[int]
) -> Comparison:
    """Neighbour lists of two decoders by cosine, and a gate that permuted decoders rarely reach.

    Args:
        lower, upper: (d_lower, d_model), (d_upper, d_model) decoder rows, any length.
        seed: numbers that fix the permutations.
    """
    return compare_by(DecoderCosine(lower, upper, seed), neighbours, quantile)


def compare_by(similarity: Similarity, neighbours: int, quantile: float) -> Comparison:
    """Neighbour lists of two layers, and a gate that the similarity's null rarely reaches.

    The gate is the `quantile` of the best-match similarities (each feature against all of the other layer,
    both directions) over as many draws of the null as make the tail known. The null's own lists use one
    more draw, which the gate has not seen.
    """
    d_lower, d_upper = similarity.sizes
    samples = d_lower + d_upper
    count = min(MAX_PERMUTATIONS, max(2, math.ceil(NULL_EXCEEDANCES / ((1 - quantile) * samples))))
    real, permuted = (_lists(similarity, draw, neighbours) for draw in (0, 1))
    null_best = np.concatenate([_best_matches(similarity, draw) for draw in range(2, count + 2)])
    gate = float(np.quantile(null_best, quantile))
    mutual = real.back_target[real.target[:, 0], 0] == np.arange(d_lower)
    cut = [
        bool((cosine[:, -1] > gate).any()) and cosine.shape[1] < other
        for cosine, other in ((real.cosine, d_upper), (real.back_cosine, d_lower))
    ]
    return Comparison(
        real, permuted, gate, real.cosine[:, 0].copy(), null_best, mutual, not all(cut)
    )


def same_index(found: Comparison, similarity: Similarity) -> Comparison:
    """A comparison whose lists hold one pair a feature: with the feature of the same number.

    For dictionaries that share an identity. The gate stays, so that what training has moved apart is no pair.

    Raises:
        UserError: the layers have different numbers of features.
    """
    d_lower, d_upper = similarity.sizes
    if d_lower != d_upper:
        raise UserError(
            f"tracking.links: identity needs dictionaries of one size, found {d_lower} and {d_upper} features: "
            "delete the SAEs and run again, or choose other links"
        )
    number = np.arange(d_lower, dtype=np.int32)[:, None]
    real, permuted = (_diagonal(similarity, draw)[:, None] for draw in (0, 1))
    return found._replace(
        real=Lists(number, real, number, real),
        permuted=Lists(number, permuted, number, permuted),
        best=real[:, 0],
        mutual=found.real.target[:, 0] == number[:, 0],
        covered=True,
    )


def _diagonal(similarity: Similarity, draw: int) -> NDArray[np.float32]:
    """(d_sae,) similarity of every feature to the one of the same number."""
    values, start = [], 0
    for block in similarity.blocks(draw):
        values.append(block.diagonal(start))
        start += len(block)
    return np.asarray(torch.cat(values).numpy(), dtype=np.float32)


def _lists(similarity: Similarity, draw: int, neighbours: int) -> Lists:
    return Lists(
        *_nearest(similarity.blocks(draw), neighbours),
        *_nearest(similarity.back_blocks(draw), neighbours),
    )


def _nearest(blocks: Iterator[Tensor], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    best = [block.topk(min(count, block.shape[1]), dim=1) for block in blocks]
    index = torch.cat([each.indices for each in best]).to(torch.int32)
    return index.numpy(), torch.cat([each.values for each in best]).numpy()


def _best_matches(similarity: Similarity, draw: int) -> NDArray[np.float32]:
    """(d_lower + d_upper,) similarity of every feature of either layer to its best match in the other."""
    forward, backward = [], torch.full((similarity.sizes[1],), -1.0)
    for block in similarity.blocks(draw):
        forward.append(block.amax(1))
        backward = torch.maximum(backward, block.amax(0))
    return np.asarray(torch.cat([*forward, backward]).numpy(), dtype=np.float32)


def links(lists: Lists, gate: float) -> Links:
    """Pairs above the gate that either direction's lists name."""
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


def save(path: Path, layers: Sequence[int], comparisons: Sequence[Comparison]) -> None:
    """Write a layer's comparisons (next layer, then the one after) as an .npz, atomically; same content, same bytes.

    Keys: `layers`; of the next layer `index cosine back_index back_cosine`, the same with `permuted_`,
    `gate best null_best mutual covered`; of the layer after it all of these with `skip_`.
    """
    arrays: dict[str, NDArray[np.generic]] = {"layers": np.asarray(layers, dtype=np.int32)}
    for prefix, found in zip(("", SKIP), comparisons, strict=False):
        arrays |= {prefix + key: value for key, value in zip(KEYS, found.real, strict=True)}
        arrays |= {
            f"{prefix}permuted_{key}": value
            for key, value in zip(KEYS, found.permuted, strict=True)
        }
        for key in ("gate", "best", "null_best", "mutual", "covered"):
            arrays[prefix + key] = np.asarray(getattr(found, key))
    with atomic_write(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_links(path: Path, *, permuted: bool) -> LayerLinks:
    """Links of one layer from its neighbour file; of the permuted decoders if `permuted`.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            layers = stored["layers"]
            adjacent = _stored_links(stored, "", permuted)
            skip = _stored_links(stored, SKIP, permuted) if len(layers) > 2 else None
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run again, rule find_neighbours remakes it") from None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a neighbour file ({error}): delete it and run again"
        ) from None
    return LayerLinks([int(layer) for layer in layers], adjacent, skip)


def _stored_links(stored: Mapping[str, NDArray[np.generic]], prefix: str, permuted: bool) -> Links:
    gate = float(np.asarray(stored[f"{prefix}gate"]))
    names = [prefix + ("permuted_" if permuted else "") + name for name in KEYS]
    return links(Lists(*(stored[name] for name in names)), gate)  # type: ignore[arg-type]
