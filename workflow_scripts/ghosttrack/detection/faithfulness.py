"""Faithfulness of explanations: ablate features in the running model and score again."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.activations import example_tokens
from ghosttrack.detection.reasons import Meanings
from ghosttrack.detection.scoring import FeatureContribution, Scorer
from ghosttrack.runtime.progress import Progress
from ghosttrack.statistics import codes_of

# Number of texts, spread equally over the data sets.
TEXTS = 70
# Long texts are fewer: tokens of all texts with their contexts, and the texts that are always taken.
TOKENS, FEWEST = 4000, 16
# Numbers of ablated features: as many as a report names, and more.
COUNTS = (5, 20)
TOP, RANDOM, STRONGEST = "named reasons", "random active features", "most active features"
# More than the active features of any text over all layers.
_ALL = 4096

RemovedFeatures = list[list[tuple[int, int]]]


class Changes(NamedTuple):
    """Log-odds before and after an ablation, and the ablated contributions, each (texts,)."""

    before: statistics.Floats
    after: statistics.Floats
    contributions: statistics.Floats


def choose(
    datasets: Mapping[str, pd.DataFrame],
    count: int = TEXTS,
    length: Callable[[pd.DataFrame], list[int]] | None = None,
) -> pd.DataFrame:
    """Sample about `count` given texts, equally from each data set, by a hash of their ids.

    Args:
        length: number of tokens of each text. With it, fewer texts are taken where they are long,
            so that all have about TOKENS tokens, but not fewer than FEWEST.
    """
    parts = []
    for name, examples in datasets.items():
        given = examples[examples["mode"] == "given"].assign(dataset=name)
        order = sorted(
            range(len(given)),
            key=lambda row: hashlib.sha256(str(given["id"].iloc[row]).encode()).digest(),
        )
        order = order[: -(-count // len(datasets))]
        if length:
            tokens = np.cumsum(length(given.iloc[order])) * len(datasets)
            order = order[: max(-(-FEWEST // len(datasets)), int((tokens <= TOKENS).sum()))]
        parts.append(given.iloc[sorted(order)])
    return pd.concat(parts, ignore_index=True)


def tokens_of(scorer: Scorer) -> Callable[[pd.DataFrame], list[int]]:
    """Function that counts the tokens of each text, those of its context included."""
    return lambda texts: [len(each.ids) + len(each.prefix) for each in _encode(scorer, texts)]


def _encode(scorer: Scorer, texts: pd.DataFrame) -> list[example_tokens.Encoded]:
    return example_tokens.encode(
        texts,
        scorer.tokenizer,
        scorer.limit,
        "texts of the explanation test",
        positions=scorer.about["positions"],
    )


def measure(
    scorer: Scorer,
    texts: pd.DataFrame,
    seed: int,
    draws: int,
    confidence: float,
    meanings: Meanings,
) -> pd.DataFrame:
    """One row per ablation, with the columns scores.EXPLANATIONS.

    The named reasons are the largest contributions of features with a meaning, as in a report.

    change: mean absolute change of the log-odds; beyond_random: the same minus the change by as
    many random features that are active on the same answer, with an interval from a bootstrap over
    groups; agreement: fraction of texts whose log-odds changed in the direction that the ablated
    contributions predict.
    """
    encoded = _encode(scorer, texts)
    before = scorer.read(encoded, _ALL)
    groups = codes_of(
        f"{name}: {group}" for name, group in zip(texts["dataset"], texts["group"], strict=True)
    ).code
    named = [
        list(islice(_named(contributions, scorer.layers, meanings), max(COUNTS)))
        for contributions in before.contributions
    ]
    rows = []
    progress = Progress("ablating features", 3 * len(COUNTS), "ablations")
    for count in COUNTS:
        changes = {}
        for kind in (RANDOM, TOP, STRONGEST):
            chosen = [
                _chosen(
                    named[text] if kind == TOP else contributions, kind, count, [seed, count, text]
                )
                for text, contributions in enumerate(before.contributions)
            ]
            pairs: RemovedFeatures = [
                [(each.layer_index, each.feature) for each in features] for features in chosen
            ]
            after = scorer.read(encoded, 0, pairs).log_odds
            predicted = np.array([sum(each.log_odds for each in features) for features in chosen])
            changes[kind] = Changes(before.log_odds, after, predicted)
            progress.advance(1)
        rows += [
            _row(kind, count, changes, groups, seed, draws, confidence)
            for kind in (TOP, STRONGEST, RANDOM)
        ]
    return pd.DataFrame(rows, columns=list(registry.EXPLANATIONS))


def _named(
    contributions: Sequence[FeatureContribution], layers: Sequence[int], meanings: Meanings
) -> Iterator[FeatureContribution]:
    """The contributions of features with a meaning, largest first."""
    return (each for each in contributions if meanings.of(layers[each.layer_index], each.feature))


def _chosen(
    contributions: Sequence[FeatureContribution], kind: str, count: int, seed: list[int]
) -> list[FeatureContribution]:
    """The features to ablate in one text.

    `contributions`: of all its active features, largest first.
    """
    if kind == RANDOM:
        order = np.random.default_rng(seed).permutation(len(contributions))[:count]
        return [contributions[index] for index in order]
    if kind == STRONGEST:
        return sorted(contributions, key=lambda each: -each.activation)[:count]
    return list(contributions[:count])


def _row(
    kind: str,
    count: int,
    changes: Mapping[str, Changes],
    groups: NDArray[np.int64],
    seed: int,
    draws: int,
    confidence: float,
) -> dict[str, object]:
    absolute, random = (
        np.abs(changes[name].after - changes[name].before) for name in (kind, RANDOM)
    )
    agrees = np.sign(changes[kind].before - changes[kind].after) == np.sign(
        changes[kind].contributions
    )
    names, code = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    weight = np.stack(
        [np.bincount(each, minlength=len(names))[code] for each in drawn]
    )  # (draws, texts)
    means = (weight @ np.stack([absolute, absolute - random], axis=1)) / weight.sum(
        axis=1, keepdims=True
    )
    change, beyond = (statistics.interval(column, confidence) for column in means.T)
    return {
        "removed": kind,
        "features": count,
        "n": len(absolute),
        "groups": len(names),
        "change": absolute.mean(),
        "change_low": change.low,
        "change_high": change.high,
        "beyond_random": (absolute - random).mean(),
        "beyond_random_low": beyond.low,
        "beyond_random_high": beyond.high,
        "agreement": agrees.mean(),
    }
