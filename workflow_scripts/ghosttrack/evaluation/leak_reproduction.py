"""Reproduce a leak: random numbers and the text alone as detectors, under two splits.

*random_pairs*: each false answer to a question is paired with its true answer, and pairs are split
at random into training (70 %) and test (15 %), as in the original system. A true text with several
false partners is in training and in test, so a model that memorises training texts wins.

*grouped*: distinct texts in grouped cross-validation. A fit without its group scores each text.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import controls, probes, splits
from ghosttrack.detection.splits import Ints, OuterFold
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import same_text
from ghosttrack.statistics import Floats, auroc

RANDOM_PAIRS, GROUPED = "random_pairs", "grouped"
NOISE, SEEN, TEXT = "noise", "seen_in_training", registry.TEXT_ONLY
COLUMNS = (
    "dataset",
    "split",
    "score",
    "seed",
    "train",
    "test",
    "copied_true",
    "copied_false",
    "auroc",
)
# Random numbers per text, as many as the original system's metrics, and its fractions of training
# and test pairs.
NOISE_COLUMNS = 26
TRAIN_SHARE, TEST_SHARE = 0.7, 0.15
TREES = 100
# Folds that choose the strength of the text model.
INNER_FOLDS = 3
# Number of seeds of the random numbers and of the split.
SEEDS = 3
# Minimum number of pairs.
LEAST_PAIRS = 20


class TrainTestSplit(NamedTuple):
    """Row indices of the training and the test texts; a row is repeated for each of its pairs."""

    train: Ints
    test: Ints


def reproduce(
    examples: pd.DataFrame, dataset: str, folds: int, seed: int, seeds: int = SEEDS
) -> pd.DataFrame:
    """AUROC of noise, of memorised training texts and of the text alone, under both splits.

    Args:
        examples: examples.parquet of given texts, in groups with true and false texts.
        folds: number of folds of the grouped split.
        seed: first of `seeds` seeds.
    Returns:
        One row per split, score and seed, columns COLUMNS. train, test: numbers of texts, with
        repetitions; copied_true, copied_false: fractions of true and of false test texts that are
        also training texts.
    Raises:
        UserError: too few pairs, or too few groups of a class.
    """
    texts = examples.assign(key=[same_text(text) for text in examples["text"]])
    # Drop texts with both labels, and repeated rows.
    texts = (
        texts[texts.groupby("key")["label"].transform("nunique") == 1]
        .drop_duplicates("key")
        .reset_index(drop=True)
    )
    labels = texts["label"].to_numpy(dtype=np.int64)
    pairs = pair_up(texts, dataset)
    cv_groups = splits.make_cv_groups(
        [str(group) for group in texts["group"]], [str(text) for text in texts["text"]]
    )
    if reason := splits.infeasible_reason(labels, cv_groups, folds, INNER_FOLDS):
        raise UserError(f"{dataset}: {reason}: use a larger data set, or lower detection.folds")
    rows: list[dict[str, Any]] = []
    for number in range(seed, seed + seeds):
        noise = np.random.default_rng([number, 26]).standard_normal((len(texts), NOISE_COLUMNS))
        fold = splits.assign_folds(labels, cv_groups, folds, number, least=INNER_FOLDS)
        grouped = [
            TrainTestSplit(np.flatnonzero(fold != held), np.flatnonzero(fold == held))
            for held in range(folds)
        ]
        for split, parts in ((RANDOM_PAIRS, [split_pairs(pairs, number)]), (GROUPED, grouped)):
            for score_name in (NOISE, SEEN, TEXT):
                scored = [_score(score_name, texts, labels, noise, part, number) for part in parts]
                test = np.concatenate([part.test for part in parts])
                rows.append(
                    {
                        "dataset": dataset,
                        "split": split,
                        "score": score_name,
                        "seed": number,
                        "train": len(parts[0].train),
                        "test": len(test),
                        **_copied(labels, parts),
                        "auroc": auroc(labels[test], np.concatenate(scored)),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def pair_up(texts: pd.DataFrame, dataset: str) -> NDArray[np.int64]:
    """Row indices of pairs, (pairs, 2): a group's first true text with each of its false texts."""
    pairs: list[tuple[int, int]] = []
    for _, rows in texts.groupby("group", sort=False):
        true, false = (rows.index[rows["label"] == label] for label in (0, 1))
        if len(true):
            pairs += [(int(true[0]), int(row)) for row in false]
    if len(pairs) < LEAST_PAIRS:
        raise UserError(
            f"{dataset}: {len(pairs)} pairs of a true and a false text of one group, expected at "
            f"least {LEAST_PAIRS}: name the group_column (or question_column) that joins the true "
            "and the false answers to a question, use a larger data set, or leave this one out of "
            "datasets"
        )
    return np.array(pairs, dtype=np.int64)


def split_pairs(pairs: NDArray[np.int64], seed: int) -> TrainTestSplit:
    """Split pairs at random into training and test; each pair contributes both texts."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    train, test = round(TRAIN_SHARE * len(pairs)), round(TEST_SHARE * len(pairs))
    return TrainTestSplit(pairs[order[:train]].ravel(), pairs[order[train : train + test]].ravel())


def _score(
    score_name: str,
    texts: pd.DataFrame,
    labels: Ints,
    noise: Floats,
    part: TrainTestSplit,
    seed: int,
) -> Floats:
    if score_name == NOISE:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=1).fit(
            noise[part.train], labels[part.train]
        )
        return np.asarray(forest.predict_proba(noise[part.test])[:, 1], dtype=np.float64)
    if score_name == SEEN:
        known = part.train[labels[part.train] == 0]
        return (~np.isin(part.test, known)).astype(np.float64)
    # The inner folds that choose the strength are split in the same way as the outer ones.
    repeated = len(set(part.train)) < len(part.train)
    names = np.arange(len(part.train)) if repeated else texts["group"].iloc[part.train]
    inner = splits.assign_folds(
        labels[part.train], np.asarray(names, dtype=object), INNER_FOLDS, seed
    )
    fit = controls.fit_text(
        controls.visible_text(texts), labels, OuterFold(0, part.train, part.test, inner)
    )
    return probes.probability(fit.test_log_odds)


def _copied(labels: Ints, parts: list[TrainTestSplit]) -> dict[str, float]:
    """Fractions of true and of false test texts that are also training texts."""
    copied = np.concatenate([np.isin(part.test, part.train) for part in parts])
    label = labels[np.concatenate([part.test for part in parts])]
    return {
        "copied_true": float(copied[label == 0].mean()),
        "copied_false": float(copied[label == 1].mean()),
    }


def summary(table: pd.DataFrame) -> list[str]:
    """Log lines: mean AUROC over the seeds under both splits, by data set and score."""
    means = table.pivot_table(
        index=["dataset", "score"], columns="split", values="auroc", sort=False
    )
    return [
        f"{dataset}: {score_name.replace('_', ' ')} reaches an AUROC of {row[RANDOM_PAIRS]:.3f} "
        f"when pairs are split at random, {row[GROUPED]:.3f} when groups stay whole"
        for (dataset, score_name), row in means.iterrows()
    ]
