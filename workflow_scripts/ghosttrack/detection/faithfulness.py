"""Are the named reasons the reasons? They are taken out of the running model, and so are others, and the score is read again."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.activations import example_tokens
from ghosttrack.detection.scoring import FeatureContribution, Scorer
from ghosttrack.runtime.progress import Progress
from ghosttrack.statistics import codes_of

# Texts in all, whole sets in equal parts; about 10 tokens each.
TEXTS = 70
# Features that are taken out: as many as are named, and more.
COUNTS = (5, 20)
TOP, RANDOM, STRONGEST = "named reasons", "random active features", "most active features"
# All active features of a text, of all layers, are fewer.
_ALL = 4096

RemovedFeatures = list[list[tuple[int, int]]]


class Changes(NamedTuple):
    """log-odds of each text before and after a removal, and what the removed features' parts of it were, (texts,)."""

    before: statistics.Floats
    after: statistics.Floats
    parts: statistics.Floats


def choose(datasets: Mapping[str, pd.DataFrame], count: int = TEXTS) -> pd.DataFrame:
    """About `count` given texts of the sets in equal parts, in the order of a hash of their ids: no score is looked at."""
    parts = []
    for name, examples in datasets.items():
        own = examples[examples["mode"] == "given"].assign(dataset=name)
        order = sorted(
            range(len(own)),
            key=lambda row: hashlib.sha256(str(own["id"].iloc[row]).encode()).digest(),
        )
        parts.append(own.iloc[sorted(order[: -(-count // len(datasets))])])
    return pd.concat(parts, ignore_index=True)


def measure(
    scorer: Scorer, texts: pd.DataFrame, seed: int, draws: int, confidence: float
) -> pd.DataFrame:
    """A row for each removal, see tables.EXPLANATIONS.

    `change`: mean absolute change of the log-odds; `beyond_random`: by how much more than a removal of as many random
    features that are active on the same answer, with an interval from a bootstrap over groups; `agreement`: share of texts
    whose score moved to the side that the removed features' parts announce.
    """
    encoded = example_tokens.encode(
        texts,
        scorer.tokenizer,
        scorer.limit,
        "texts of the explanation test",
        positions=scorer.about["positions"],
    )
    found = scorer.read(encoded, _ALL)
    groups = codes_of(
        f"{name}: {group}" for name, group in zip(texts["dataset"], texts["group"], strict=True)
    ).code
    rows = []
    progress = Progress("removing reasons", 3 * len(COUNTS), "rounds")
    for count in COUNTS:
        changes = {}
        for kind in (RANDOM, TOP, STRONGEST):
            chosen = [
                _chosen(parts, kind, count, [seed, count, text])
                for text, parts in enumerate(found.parts)
            ]
            pairs: RemovedFeatures = [
                [(part.place, part.feature) for part in parts] for parts in chosen
            ]
            after = scorer.read(encoded, 0, pairs).log_odds
            announced = np.array([sum(part.log_odds for part in parts) for parts in chosen])
            changes[kind] = Changes(found.log_odds, after, announced)
            progress.advance(1)
        rows += [
            _row(kind, count, changes, groups, seed, draws, confidence)
            for kind in (TOP, STRONGEST, RANDOM)
        ]
    return pd.DataFrame(rows, columns=list(registry.EXPLANATIONS))


def _chosen(
    parts: Sequence[FeatureContribution], kind: str, count: int, seed: list[int]
) -> list[FeatureContribution]:
    if kind == RANDOM:
        order = np.random.default_rng(seed).permutation(len(parts))[:count]
        return [parts[place] for place in order]
    if kind == STRONGEST:
        return sorted(parts, key=lambda part: -part.activation)[:count]
    return list(parts[:count])


def _row(
    kind: str,
    count: int,
    changes: Mapping[str, Changes],
    groups: NDArray[np.int64],
    seed: int,
    draws: int,
    confidence: float,
) -> dict[str, object]:
    own, random = (np.abs(changes[name].after - changes[name].before) for name in (kind, RANDOM))
    moved = np.sign(changes[kind].before - changes[kind].after) == np.sign(changes[kind].parts)
    names, code = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    weight = np.stack(
        [np.bincount(each, minlength=len(names))[code] for each in drawn]
    )  # (draws, texts)
    means = (weight @ np.stack([own, own - random], axis=1)) / weight.sum(axis=1, keepdims=True)
    change, beyond = (statistics.interval(column, confidence) for column in means.T)
    return {
        "removed": kind,
        "features": count,
        "n": len(own),
        "groups": len(names),
        "change": own.mean(),
        "change_low": change.low,
        "change_high": change.high,
        "beyond_random": (own - random).mean(),
        "beyond_random_low": beyond.low,
        "beyond_random_high": beyond.high,
        "agreement": moved.mean(),
    }
