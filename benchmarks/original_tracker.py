"""Reference of tracking.py: the original GhostTrack's tracking and metrics, from their formulas.

It handles one token of one text at a time, has an object per track, and computes the association
cost of every pair in a loop. `fast` replaces the loop by one matrix product and one broadcast.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

TOP_K, SEMANTIC, ACTIVATION, POSITION, ASSOCIATION, BIRTH = 50, 0.6, 0.2, 0.2, 0.5, 0.5


@dataclass
class Feature:
    """One active feature of a layer."""

    number: int
    activation: float
    embedding: np.ndarray  # (d_model,) decoder row


@dataclass
class Track:
    """A feature tracked from its birth."""

    birth: int
    states: dict[int, Feature] = field(default_factory=dict)  # by layer
    death: int | None = None

    def last(self) -> Feature:
        """The latest state, which is compared with the next layer."""
        return self.states[max(self.states)]


def features(code: np.ndarray, decoder: np.ndarray) -> list[Feature]:
    """The strongest active features of a token's code (d_sae,)."""
    order = np.argsort(-code)[:TOP_K]
    return [Feature(int(at), float(code[at]), decoder[at]) for at in order if code[at] > 0]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two vectors."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.dot(one, other)) / lengths if lengths > 0 else 0.0


def change(before: float, after: float) -> float:
    """Relative change of an activation."""
    if before <= 1e-6:
        return 1.0 if after > 0.1 else 0.0
    return abs(before - after) / (before + after)


def position(_one: Feature, _other: Feature) -> float:
    """Association cost of a move, which the original never implemented."""
    return 0.0


def association_costs(tracks: list[Track], detections: list[Feature]) -> np.ndarray:
    """Association cost of every pair, cell by cell."""
    matrix = np.zeros((len(tracks), len(detections)))
    for i, track in enumerate(tracks):
        before = track.last()
        for j, after in enumerate(detections):
            semantic = 1.0 - cosine(before.embedding, after.embedding)
            matrix[i, j] = (
                SEMANTIC * semantic
                + ACTIVATION * change(before.activation, after.activation)
                + POSITION * position(before, after)
            )
    return matrix


def association_costs_at_once(tracks: list[Track], detections: list[Feature]) -> np.ndarray:
    """Association cost of every pair, by one product and one broadcast."""
    before, after = (
        np.stack([track.last().embedding for track in tracks]),
        np.stack([each.embedding for each in detections]),
    )
    lengths = np.outer(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1))
    a = np.array([track.last().activation for track in tracks])[:, None]
    b = np.array([each.activation for each in detections])[None, :]
    costs: np.ndarray = SEMANTIC * (1 - before @ after.T / lengths) + ACTIVATION * np.abs(a - b) / (
        a + b
    )
    return costs


def associate(
    tracks: list[Track], detections: list[Feature], layer: int, *, fast: bool
) -> list[Track]:
    """One layer step: assignment, threshold, deaths, births. Returns the new tracks."""
    alive = [track for track in tracks if track.death is None]
    matched: set[int] = set()
    if alive and detections:
        matrix = (association_costs_at_once if fast else association_costs)(alive, detections)
        for i, j in zip(*linear_sum_assignment(matrix), strict=True):
            if matrix[i, j] < ASSOCIATION:
                alive[i].states[layer] = detections[j]
                matched.add(int(j))
    for track in alive:
        if layer not in track.states:
            track.death = layer
    born = [
        each for j, each in enumerate(detections) if j not in matched and each.activation > BIRTH
    ]
    return [Track(layer, {layer: each}) for each in born]


def track(codes: list[np.ndarray], decoders: list[np.ndarray], *, fast: bool) -> list[Track]:
    """All tracks of one token, from the codes (d_sae,) of every layer."""
    tracks: list[Track] = []
    for layer, (code, decoder) in enumerate(zip(codes, decoders, strict=True)):
        tracks += associate(tracks, features(code, decoder), layer, fast=fast)
    return tracks


def measure(tracks: list[Track], layers: int) -> list[float]:
    """The 26 metrics, as documented in ghosttrack.tracks.metrics, track by track."""
    entropy, strong, dominance, density = [], [], [], []
    for layer in range(layers):
        here = [each.states[layer].activation for each in tracks if layer in each.states]
        total = sum(here)
        shares = [value / total for value in here] if total > 0 else []
        entropy.append(-sum(share * np.log2(share) for share in shares if share > 0))
        strong.append(sum(value > 0.5 for value in here))
        dominance.append(max(shares, default=0.0))
        density.append(len(here))
    births, deaths = len(tracks), sum(each.death is not None for each in tracks)
    stable = [
        1 / (1 + float(np.var([state.activation for state in each.states.values()])))
        for each in tracks
        if len(each.states) >= 2
    ]
    return [
        np.mean(entropy),
        max(entropy),
        np.std(entropy),
        entropy[-1],
        births,
        deaths,
        births / layers,
        deaths / layers,
        (births + deaths) / (2 * layers),
        (births - deaths) / max(births, 1),
        np.mean(strong),
        max(strong),
        np.std(strong),
        strong[-1],
        np.mean([each > 2 for each in strong]),
        np.mean(stable) if stable else 0.0,
        min(stable, default=0.0),
        np.mean([each < 0.5 for each in stable]) if stable else 0.0,
        np.mean(dominance),
        min(dominance),
        dominance[-1],
        np.mean([each < 0.5 for each in dominance]),
        np.mean(density),
        max(density),
        np.std(density),
        max(density),
    ]
