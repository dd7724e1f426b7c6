"""Synthetic layers with known feature identities, for measuring the tracker.

Each layer copies the one before: permuted, with noise, and with some features replaced.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack.tracks.identity import IdentityScores, score
from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.neighbours import compare, links
from ghosttrack.tracks.tracking import TrackerOptions, detect, follow

# Fraction of the active features of a layer that fire in the next layer too, if it has them. The
# value is that of links in real models; a tracker must not need more.
PERSISTENCE = 0.8
# Standard deviation of the change of the logarithm of an activation between layers.
CHANGE = 0.2
# Half the width of the uniform distribution of copies' cosines around the mean, cut to 0 .. 1.
SPREAD = 0.2
NEIGHBOURS, QUANTILE = 32, 0.999


class PlantedLayers(NamedTuple):
    """A chain of layers."""

    decoders: list[NDArray[np.float32]]  # (d_sae, d_model) unit rows
    identities: list[NDArray[np.int64]]  # (d_sae,) of every feature; new for a replaced one
    codes: list[NDArray[np.float32]]  # (tokens, d_sae)


def plant(
    base: NDArray[np.floating],
    *,
    layers: int,
    cosine: float,
    replaced: float,
    tokens: int,
    active: int,
    seed: int,
) -> PlantedLayers:
    """Build layers that each copy the one before in another order.

    Args:
        base: (d_sae, d_model) directions of the first layer, of any norm.
        cosine: mean similarity of a feature and its copy in the next layer.
        replaced: fraction of features that the next layer replaces. A replacement is the direction
            of a random feature with its coordinates permuted, so it has the same distribution.
        active: features that fire per token and layer.
    """
    d_sae = len(base)
    # A caller may have drawn `base` with the plain seed.
    generator = np.random.default_rng([seed, d_sae])
    decoder, identity = _unit(base), np.arange(d_sae)
    decoders, identities, next_identity = [decoder], [identity], d_sae
    for _ in range(layers - 1):
        noise = _unit(generator.standard_normal(base.shape))
        # Orthogonal to each row.
        noise = _unit(noise - (noise * decoder).sum(1, keepdims=True) * decoder)
        spread = min(SPREAD, cosine, 1 - cosine)
        similarity = generator.uniform(cosine - spread, cosine + spread, (d_sae, 1))
        decoder = similarity * decoder + np.sqrt(1 - similarity**2) * noise
        identity = identity.copy()
        new = generator.permutation(d_sae)[: round(replaced * d_sae)]
        shuffled = generator.permuted(_unit(base)[generator.integers(d_sae, size=len(new))], axis=1)
        decoder[new], identity[new] = shuffled, next_identity + np.arange(len(new))
        next_identity += len(new)
        order = generator.permutation(d_sae)
        decoder, identity = decoder[order], identity[order]
        decoders.append(decoder)
        identities.append(identity)
    return PlantedLayers(
        [rows.astype(np.float32) for rows in decoders],
        identities,
        _fire(identities, next_identity, tokens, active, generator),
    )


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)


def _fire(
    identities: list[NDArray[np.int64]],
    total: int,
    tokens: int,
    active: int,
    generator: np.random.Generator,
) -> list[NDArray[np.float32]]:
    """Codes of all layers: most active identities persist, and random ones fill up."""
    d_sae = len(identities[0])
    codes = []
    strength = np.zeros((tokens, total))  # of every identity in the current layer
    for layer, identity in enumerate(identities):
        previous = strength
        persists = (previous > 0) & (generator.random(previous.shape) < PERSISTENCE)
        present = np.zeros(total, bool)
        present[identity] = True
        priority = generator.random((tokens, total)) + 2.0 * persists - 4.0 * ~present
        if layer:  # an identity that stopped by chance stays silent, or PERSISTENCE would not hold
            priority -= 2.0 * ((previous > 0) & ~persists)
        chosen = np.argsort(-priority, axis=1)[:, :active]
        row = np.arange(tokens)[:, None]
        strength = np.zeros((tokens, total))
        initial = generator.lognormal(0.0, 0.7, chosen.shape)
        carried = previous[row, chosen] * generator.lognormal(0.0, CHANGE, chosen.shape)
        strength[row, chosen] = np.where(previous[row, chosen] > 0, carried, initial)
        code = np.zeros((tokens, d_sae), np.float32)
        code[:] = strength[:, identity]
        codes.append(code)
    return codes


def track_planted(planted: PlantedLayers, options: TrackerOptions, seed: int) -> IdentityScores:
    """Link the planted decoders like real ones, track the codes, and compare with the truth."""
    tensors = [torch.from_numpy(decoder) for decoder in planted.decoders]
    tables = []
    for ahead in (1, 2):
        pairs = zip(tensors, tensors[ahead:], strict=False)
        comparisons = (
            compare(lower, upper, NEIGHBOURS, QUANTILE, [seed, ahead, position])
            for position, (lower, upper) in enumerate(pairs)
        )
        tables.append([links(comparison.real, comparison.gate) for comparison in comparisons])
    detections = [detect(code, options.ranks) for code in planted.codes]
    table = follow(detections, tables[0], tables[1], options).table
    row, layer, slot = np.nonzero(table.feature >= 0)
    identity = np.stack(planted.identities)[layer, table.feature[row, layer, slot]]
    span = 1 + max(int(numbers.max()) for numbers in planted.identities)
    return score(row * span + identity, track_numbers(table)[row, layer, slot], layer)
