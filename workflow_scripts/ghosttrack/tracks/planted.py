"""Layers whose features have known identities, for measuring the tracker: copies, permuted, noised, partly replaced."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack.tracks.identity import Scores, score
from ghosttrack.tracks.metrics import track_numbers
from ghosttrack.tracks.neighbours import compare, links
from ghosttrack.tracks.tracking import Options, detect, follow

# Share of the active features of one layer that fire in the next one too, if they are there: the links of the models
# that were looked at hold about so often, and a tracker must not need more.
PERSISTENCE = 0.8
# Relative change of an activation from layer to layer (standard deviation of its logarithm).
CHANGE = 0.2
# Copies differ in how well they resemble: cosines are spread evenly, this far to either side of the mean, within 0 and 1.
SPREAD = 0.2
NEIGHBOURS, QUANTILE = 32, 0.999


class Planted(NamedTuple):
    """A chain of layers."""

    decoders: list[NDArray[np.float32]]  # (d_sae, d_model) unit rows
    numbers: list[
        NDArray[np.int64]
    ]  # (d_sae,) identity of every feature; a replaced one has a new identity
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
) -> Planted:
    """Layers that each copy the one before in another order.

    Args:
        base: (d_sae, d_model) directions of the first layer, any length.
        cosine: mean similarity of a feature and its copy in the next layer.
        replaced: share of the features that the next layer exchanges for others, with directions of the same
            distribution: those of a feature drawn at random, its coordinates permuted.
        active: features that fire on each token and layer.
    """
    d_sae = len(base)
    generator = np.random.default_rng([seed, d_sae])  # not the one that a caller drew `base` from
    decoder, number = _unit(base), np.arange(d_sae)
    decoders, numbers, born = [decoder], [number], d_sae
    for _ in range(layers - 1):
        noise = _unit(generator.standard_normal(base.shape))
        noise = _unit(
            noise - (noise * decoder).sum(1, keepdims=True) * decoder
        )  # at a right angle to each row
        reach = min(SPREAD, cosine, 1 - cosine)
        likeness = generator.uniform(cosine - reach, cosine + reach, (d_sae, 1))
        decoder = likeness * decoder + np.sqrt(1 - likeness**2) * noise
        number = number.copy()
        new = generator.permutation(d_sae)[: round(replaced * d_sae)]
        shuffled = generator.permuted(_unit(base)[generator.integers(d_sae, size=len(new))], axis=1)
        decoder[new], number[new] = shuffled, born + np.arange(len(new))
        born += len(new)
        order = generator.permutation(d_sae)
        decoder, number = decoder[order], number[order]
        decoders.append(decoder)
        numbers.append(number)
    return Planted(
        [each.astype(np.float32) for each in decoders],
        numbers,
        _fire(numbers, born, tokens, active, generator),
    )


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)


def _fire(
    numbers: list[NDArray[np.int64]],
    born: int,
    tokens: int,
    active: int,
    generator: np.random.Generator,
) -> list[NDArray[np.float32]]:
    """Codes: most active identities fire on in the next layer, others take the place of the rest."""
    d_sae = len(numbers[0])
    codes = []
    strength = np.zeros((tokens, born))  # of every identity in the layer at hand
    for layer, number in enumerate(numbers):
        before = strength
        fires = (before > 0) & (generator.random(before.shape) < PERSISTENCE)
        here = np.zeros(born, bool)
        here[number] = True
        key = generator.random((tokens, born)) + 2.0 * fires - 4.0 * ~here
        if layer:  # what was silent by chance stays silent, so that persistence is what it says
            key -= 2.0 * ((before > 0) & ~fires)
        chosen = np.argsort(-key, axis=1)[:, :active]
        row = np.arange(tokens)[:, None]
        strength = np.zeros((tokens, born))
        fresh = generator.lognormal(0.0, 0.7, chosen.shape)
        carried = before[row, chosen] * generator.lognormal(0.0, CHANGE, chosen.shape)
        strength[row, chosen] = np.where(before[row, chosen] > 0, carried, fresh)
        code = np.zeros((tokens, d_sae), np.float32)
        code[:] = strength[:, number]
        codes.append(code)
    return codes


def track_planted(planted: Planted, options: Options, seed: int) -> Scores:
    """Link the planted decoders as real ones are, follow the codes, and compare with the truth."""
    tensors = [torch.from_numpy(decoder) for decoder in planted.decoders]
    tables = []
    for ahead in (1, 2):
        pairs = zip(tensors, tensors[ahead:], strict=False)
        found = (
            compare(lower, upper, NEIGHBOURS, QUANTILE, [seed, ahead, at])
            for at, (lower, upper) in enumerate(pairs)
        )
        tables.append([links(each.real, each.gate) for each in found])
    detections = [detect(code, options.ranks) for code in planted.codes]
    table = follow(detections, tables[0], tables[1], options).table
    row, layer, slot = np.nonzero(table.feature >= 0)
    number = np.stack(planted.numbers)[layer, table.feature[row, layer, slot]]
    most = 1 + max(int(each.max()) for each in planted.numbers)
    return score(row * most + number, track_numbers(table)[row, layer, slot], layer)
