"""Noise has a high AUROC under the random pair split, and nowhere else."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ghosttrack.errors import UserError
from ghosttrack.evaluation import leak_reproduction as leak
from ghosttrack.inputs import datasets
from ghosttrack.report import leak_figure
from ghosttrack.settings import DatasetSettings


def questions(count: int, false: int) -> pd.DataFrame:
    """One true and `false` false answers per question, in random words."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        for label in [0] + [1] * false:
            answer = " ".join("".join(rng.choice(list("bcdfglmnprstaeiou"), 5)) for _ in range(3))
            rows.append(
                (
                    f"q{number:03d}",
                    f"Question {number}?",
                    answer,
                    f"Question {number}? {answer}",
                    label,
                )
            )
    table = pd.DataFrame(rows, columns=["group", "question", "answer", "text", "label"])
    return table.assign(mode="given", prompt="")


def means(table: pd.DataFrame) -> pd.Series:
    return table.groupby(["split", "score"])["auroc"].mean()


def test_noise_looks_like_a_detector_under_the_pair_split_and_like_noise_under_the_grouped_one() -> (
    None
):
    found = leak.reproduce(questions(150, 4), "made", folds=5, seed=0, seeds=1)
    auroc = means(found)
    assert auroc[leak.RANDOM_PAIRS, leak.NOISE] > 0.9
    assert auroc[leak.RANDOM_PAIRS, leak.SEEN] > 0.9
    assert 0.42 < auroc[leak.GROUPED, leak.NOISE] < 0.58
    assert auroc[leak.GROUPED, leak.SEEN] == 0.5
    copied = found.set_index("split")[["copied_true", "copied_false"]]
    assert (copied.loc[leak.RANDOM_PAIRS, "copied_true"] > 0.9).all()
    assert (copied.loc[leak.RANDOM_PAIRS, "copied_false"] == 0).all()
    assert (copied.loc[leak.GROUPED] == 0).all(axis=None)


def test_without_repeated_texts_the_pair_split_gives_noise_nothing() -> None:
    auroc = means(leak.reproduce(questions(200, 1), "made", folds=5, seed=0, seeds=1))
    assert 0.35 < auroc[leak.RANDOM_PAIRS, leak.NOISE] < 0.65
    assert auroc[leak.RANDOM_PAIRS, leak.SEEN] == 0.5


def test_two_runs_give_the_same_table() -> None:
    table = questions(40, 2)
    pd.testing.assert_frame_equal(
        leak.reproduce(table, "made", 4, 3, seeds=1), leak.reproduce(table, "made", 4, 3, seeds=1)
    )


def test_a_text_with_both_labels_is_left_out() -> None:
    table = questions(40, 2)
    both = table.iloc[[0]].assign(label=1)
    pd.testing.assert_frame_equal(
        leak.reproduce(pd.concat([table, both], ignore_index=True), "made", 4, 0, seeds=1),
        leak.reproduce(table.drop(index=0).reset_index(drop=True), "made", 4, 0, seeds=1),
    )


def test_texts_that_come_in_no_pairs_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"made: 0 pairs .*group_column.*leave this one out"):
        leak.reproduce(
            questions(40, 2).assign(group=[f"g{row}" for row in range(120)]), "made", 4, 0, seeds=1
        )


def test_too_few_questions_for_the_inner_folds_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"made: 5 of 30 texts are true.* 7 groups are needed"):
        leak.reproduce(questions(5, 5), "made", folds=2, seed=0, seeds=1)


def test_the_figure_is_drawn_in_every_format(tmp_path: Path) -> None:
    paths = [tmp_path / f"leak_reproduction.{form}" for form in ("png", "pdf", "svg")]
    leak_figure.draw(leak.reproduce(questions(40, 2), "made", 4, 0, seeds=1), paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert b"<svg" in paths[2].read_bytes()


def test_noise_reaches_the_published_auroc_on_truthfulqa() -> None:
    data = os.environ.get("GHOSTTRACK_TEST_DATA")
    if not data:
        pytest.skip("GHOSTTRACK_TEST_DATA names no folder with the real data sets")
    settings = DatasetSettings(
        source="truthfulqa",
        path=str(Path(data) / "truthfulqa" / "TruthfulQA.csv"),
        max_examples=2000,
    )
    examples = datasets.load_examples(settings, 0)
    auroc = means(leak.reproduce(examples, "truthfulqa", folds=5, seed=0, seeds=1))
    assert auroc[leak.RANDOM_PAIRS, leak.NOISE] > 0.95
    assert 0.45 < auroc[leak.GROUPED, leak.NOISE] < 0.55
    assert auroc[leak.RANDOM_PAIRS, leak.TEXT] > 0.9 > auroc[leak.GROUPED, leak.TEXT]
