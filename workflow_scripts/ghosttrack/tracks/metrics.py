"""Metrics of single tokens' tracks: six families of 26 metrics over layers, and linkage metrics.

For one token: L layers, detections at layer l with activations a (in units of the layer's mean
activation), n_l their number; T tracks in total. std is the population standard deviation over
layers. The values of a text are means over its answer tokens, so they do not grow with the answer's
length. The 26 metrics are those of the original GhostTrack. Where it leaves a case undefined, the
table gives the value.

| name | formula |
|---|---|
| entropy_mean, _max, _std, _final | H_l = -sum p log2 p with p = a / sum a; 0 without detections; final = last layer |
| churn_births, _deaths | births = T; deaths = tracks without a detection in the last layer |
| churn_births_per_layer, _deaths_per_layer | births / L, deaths / L |
| churn_turnover | (births + deaths) / 2L |
| churn_survival | fraction of the T tracks with a detection in the last layer |
| competition_mean, _max, _std, _final | c_l = detections with a > 0.5 |
| competition_share | fraction of layers with c_l > 2 |
| stability_mean, _min | over tracks with 2 or more detections: s = 1 / (1 + var a); 0 without such a track |
| stability_unstable | fraction of these tracks with s < 0.5; 0 without such a track |
| dominance_mean, _min, _final | d_l = max a / sum a; 0 without detections |
| dominance_weak | fraction of layers with d_l < 0.5 |
| density_mean, _max, _std | n_l |
| density_concurrent | max over layers of n_l plus the number of tracks that coast over l |
| linkage_track_length | mean detections per track |
| linkage_links_per_token | links of the token, over all layers |
| linkage_links_per_detection | links / detections |
| linkage_surplus | mean similarity above the gate of its links; 0 without links |
| linkage_coasted | fraction of links that coast over a layer; 0 without links |
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.track_table import TrackTable

Floats = NDArray[np.float64]

# ASSUME: the original applied its threshold to raw activations, where every detection passed it.
# Here activations are in units of the layer's mean, so "strong" is half the mean. The other three
# are the original's values.
STRONG = 0.5
CROWDED = 2
UNSTABLE = 0.5
WEAK = 0.5

ORIGINAL = (
    "entropy_mean",
    "entropy_max",
    "entropy_std",
    "entropy_final",
    "churn_births",
    "churn_deaths",
    "churn_births_per_layer",
    "churn_deaths_per_layer",
    "churn_turnover",
    "churn_survival",
    "competition_mean",
    "competition_max",
    "competition_std",
    "competition_final",
    "competition_share",
    "stability_mean",
    "stability_min",
    "stability_unstable",
    "dominance_mean",
    "dominance_min",
    "dominance_final",
    "dominance_weak",
    "density_mean",
    "density_max",
    "density_std",
    "density_concurrent",
)
LINKAGE = (
    "linkage_track_length",
    "linkage_links_per_token",
    "linkage_links_per_detection",
    "linkage_surplus",
    "linkage_coasted",
)
NAMES = (*ORIGINAL, *LINKAGE)


def measure(table: TrackTable, scale: Floats) -> Floats:
    """All metrics of every token, (rows, 31) in the order of NAMES; NaN without any detection.

    Args:
        table: tracks of the tokens.
        scale: (layers,) unit of the activations.
    """
    present = table.feature >= 0  # (rows, layers, slots)
    activation = np.where(present, table.activation / scale[:, None], 0.0)
    total = activation.sum(2)  # (rows, layers)
    share = activation / np.where(total > 0, total, 1.0)[:, :, None]
    entropy = -np.sum(share * np.log2(np.where(share > 0, share, 1.0)), axis=2)
    strong = (activation > STRONG).sum(2)
    dominance = share.max(2)
    count = present.sum(2)
    adjacent, coasted = (table.gap == 1).sum(2), (table.gap == 2).sum(2)
    concurrent = count.copy()
    concurrent[:, :-1] += coasted[:, 1:]  # add the tracks that coast over the layer
    layers = present.shape[1]
    tracks = (present & (table.previous < 0)).sum((1, 2))
    survivors = count[:, -1]
    links = (adjacent + coasted).sum(1)
    columns = [
        *_profile(entropy),
        entropy[:, -1],
        tracks,
        tracks - survivors,
        tracks / layers,
        (tracks - survivors) / layers,
        (2 * tracks - survivors) / (2 * layers),
        _ratio(survivors, tracks),
        *_profile(strong),
        strong[:, -1],
        (strong > CROWDED).mean(1),
        *_stability(table, activation, present),
        dominance.mean(1),
        dominance.min(1),
        dominance[:, -1],
        (dominance < WEAK).mean(1),
        *_profile(count),
        concurrent.max(1),
        _ratio(count.sum(1), tracks),
        links,
        _ratio(links, count.sum(1)),
        _ratio(np.where(table.gap > 0, table.surplus, 0.0).sum((1, 2), dtype=np.float64), links),
        _ratio(coasted.sum(1), links),
    ]
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    values[tracks == 0] = np.nan
    return values


def _profile(values: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Mean, maximum and standard deviation over layers."""
    return values.mean(1), values.max(1), values.std(1)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, 0 where whole is 0."""
    result: Floats = part / np.where(whole == 0, 1, whole)
    return np.where(whole == 0, 0.0, result)


def track_numbers(table: TrackTable) -> NDArray[np.int64]:
    """Track of every slot, (rows, layers, slots), numbered from 0 by (row, layer, slot) of birth.

    Empty slots have -1.
    """
    born = (table.feature >= 0) & (table.previous < 0)
    number = np.where(born, np.cumsum(born).reshape(born.shape) - 1, -1)
    for layer in range(1, born.shape[1]):
        row, slot = np.nonzero(table.previous[:, layer] >= 0)
        number[row, layer, slot] = number[
            row, layer - table.gap[row, layer, slot], table.previous[row, layer, slot]
        ]
    return number


def _stability(
    table: TrackTable, activation: Floats, present: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Mean and minimum of s, and the fraction below UNSTABLE, of each row's tracks.

    Only tracks with two or more detections count.
    """
    rows = len(present)
    number = track_numbers(table)[present]
    row_of = np.repeat(np.arange(rows), (present & (table.previous < 0)).sum((1, 2)))  # (tracks,)
    values = activation[present]
    length = np.bincount(number, minlength=len(row_of))
    mean = np.bincount(number, values, minlength=len(row_of)) / np.maximum(length, 1)
    variance = np.bincount(
        number, (values - mean[number]) ** 2, minlength=len(row_of)
    ) / np.maximum(length, 1)
    long = length >= 2
    stability, owner = 1 / (1 + variance[long]), row_of[long]
    count = np.bincount(owner, minlength=rows)
    least = np.full(rows, np.inf)
    np.minimum.at(least, owner, stability)
    return (
        _ratio(np.bincount(owner, stability, minlength=rows), count),
        np.where(count > 0, least, 0.0),
        _ratio(np.bincount(owner, stability < UNSTABLE, minlength=rows), count),
    )
