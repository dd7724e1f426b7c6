"""How a split makes a detector out of nothing: random numbers and the text alone, under two splits of the same texts.

*random_pairs*: a question's true answer is paired with each of its false ones, and the pairs are drawn into
training (70 %) and test (15 %) at random, as the first system of this kind did. A true text with several false
partners stands in training and in test, so that whoever remembers training texts wins.
*grouped*: distinct texts, whole groups in one fold, every text scored by a fit that knows nothing of its group.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import controls, probes, splits
from ghosttrack.detection.splits import Ints, OuterFold
from ghosttrack.errors import UserError
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
# As many random numbers a text as the first system had metrics, and its share of pairs in training and test.
NOISE_COLUMNS = 26
TRAIN_SHARE, TEST_SHARE = 0.7, 0.15
TREES = 100
# Draws of the random numbers and of the split.
SEEDS = 3
# Fewer pairs would leave a handful in the test.
LEAST_PAIRS = 20


class TrainTestSplit(NamedTuple):
    """Rows of the text table to fit on and to score; a row stands as often as its pairs do."""

    train: Ints
    test: Ints


def reproduce(
    examples: pd.DataFrame, dataset: str, folds: int, seed: int, seeds: int = SEEDS
) -> pd.DataFrame:
    """AUROC of noise, of a memory of training texts, and of the text alone, under both splits.

    Args:
        examples: examples.parquet of a data set of given texts, in which groups hold true and false ones.
        folds: folds of the grouped split; seed: the first of `seeds` seeds.
    Returns:
        One row per split, signal and seed. `train` and `test` count texts, repeated ones as often as they stand;
        `copied_true` and `copied_false` are the shares of test texts that are training texts word for word.
    Raises:
        UserError: too few groups with texts of both labels.
    """
    texts = examples.assign(key=[splits.same_text(text) for text in examples["text"]])
    # A text with both labels has no right answer; of repeated rows one is enough.
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
    if reason := splits.infeasible_reason(labels, cv_groups, folds):
        raise UserError(f"{dataset}: {reason}; use a larger data set, or fewer detection.folds")
    rows: list[dict[str, Any]] = []
    for number in range(seed, seed + seeds):
        noise = np.random.default_rng([number, 26]).standard_normal((len(texts), NOISE_COLUMNS))
        fold = splits.assign_folds(labels, cv_groups, folds, number)
        grouped = [
            TrainTestSplit(np.flatnonzero(fold != each), np.flatnonzero(fold == each))
            for each in range(folds)
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
    """Rows of the true and the false text of each pair, (pairs, 2): a group's first true text with each false one."""
    pairs: list[tuple[int, int]] = []
    for _, rows in texts.groupby("group", sort=False):
        true, false = (rows.index[rows["label"] == label] for label in (0, 1))
        if len(true):
            pairs += [(int(true[0]), int(row)) for row in false]
    if len(pairs) < LEAST_PAIRS:
        raise UserError(
            f"{dataset}: {len(pairs)} pairs of a true and a false text of one group, expected {LEAST_PAIRS} at least; "
            "pair data have a group_column (or question_column) that joins the true and the false answers to one question"
        )
    return np.array(pairs, dtype=np.int64)


def split_pairs(pairs: NDArray[np.int64], seed: int) -> TrainTestSplit:
    """Pairs drawn into training and test at random; each brings both of its texts, repeated or not."""
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
    # The strength of the text's regression is chosen as carelessly, or as carefully, as the split itself.
    repeated = len(set(part.train)) < len(part.train)
    names = np.arange(len(part.train)) if repeated else texts["group"].iloc[part.train]
    inner = splits.assign_folds(labels[part.train], np.asarray(names, dtype=object), 3, seed)
    fit = controls.fit_text(
        controls.visible_text(texts), labels, OuterFold(0, part.train, part.test, inner)
    )
    return probes.probability(fit.test_log_odds)


def _copied(labels: Ints, parts: list[TrainTestSplit]) -> dict[str, float]:
    """Shares of true and of false test texts that stand in their training part."""
    copied = np.concatenate([np.isin(part.test, part.train) for part in parts])
    label = labels[np.concatenate([part.test for part in parts])]
    return {
        "copied_true": float(copied[label == 0].mean()),
        "copied_false": float(copied[label == 1].mean()),
    }


def summary(table: pd.DataFrame) -> list[str]:
    """One line per data set and signal for the log: mean AUROC over the seeds under either split."""
    means = table.pivot_table(
        index=["dataset", "score"], columns="split", values="auroc", sort=False
    )
    return [
        f"{dataset}: {score_name.replace('_', ' ')} reaches an AUROC of {row[RANDOM_PAIRS]:.3f} when pairs are split at "
        f"random, {row[GROUPED]:.3f} when groups stay whole"
        for (dataset, score_name), row in means.iterrows()
    ]
