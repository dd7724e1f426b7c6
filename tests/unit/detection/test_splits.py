"""Folds: nothing shared, nothing split, and an error that names what would be."""

import numpy as np
import pytest

from ghosttrack.detection import splits
from ghosttrack.errors import UserError


def blocks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of `count` swap blocks of four rows."""
    return np.tile([0, 0, 1, 1], count), np.repeat([f"block-{number:03d}" for number in range(count)], 4).astype(object)


def test_every_unit_is_in_one_fold_and_every_row_in_some_fold() -> None:
    labels, units = blocks(23)
    fold = splits.assign_folds(labels, units, 5, seed=3)
    assert set(fold) == {0, 1, 2, 3, 4}
    assert all(len(set(fold[units == unit])) == 1 for unit in set(units))


def test_folds_depend_on_the_seed_alone() -> None:
    labels, units = blocks(20)
    first, again = (splits.assign_folds(labels, units, 5, seed=1) for _ in range(2))
    assert (first == again).all()
    assert (first != splits.assign_folds(labels, units, 5, seed=2)).any()


def test_inner_folds_cover_the_training_rows_and_keep_units_whole() -> None:
    labels, units = blocks(20)
    fold = splits.assign_folds(labels, units, 5, seed=0)
    seen: list[int] = []
    for step in splits.rounds(labels, units, fold, 4, seed=0):
        assert not set(units[step.train]) & set(units[step.test])
        assert len(step.inner) == len(step.train)
        for number in range(4):
            assert not set(units[step.train][step.inner == number]) & set(units[step.train][step.inner != number])
            assert set(labels[step.train][step.inner != number]) == {0, 1}
        seen.extend(step.test)
    assert sorted(seen) == list(range(len(labels)))


def test_groups_that_share_a_text_become_one_unit() -> None:
    groups = ["c", "b", "a", "d", "d"]
    texts = [
        "Paris is in France.",
        "paris is  in france.",
        "Rome is in Italy.",
        "Rome is in Italy.",
        "Oslo is in Norway.",
    ]
    assert list(splits.split_units(groups, texts)) == ["b", "b", "a", "a", "a"]


def test_a_text_in_two_folds_is_an_error_that_names_its_rows() -> None:
    with pytest.raises(UserError, match=r"cities: rows x1 \(fold 0\), x3 \(fold 1\) share a text"):
        splits.check_folds(
            np.array([0, 0, 1]), ["a", "b", "c"], ["Same text.", "other", "same  TEXT."], ["x1", "x2", "x3"], "cities"
        )


def test_a_group_in_two_folds_is_an_error_that_names_its_rows() -> None:
    with pytest.raises(UserError, match=r"rows x1 \(fold 0\), x2 \(fold 1\) share a group"):
        splits.check_folds(np.array([0, 1]), ["a", "a"], ["one", "two"], ["x1", "x2"], "cities")


def test_clean_folds_pass() -> None:
    splits.check_folds(np.array([0, 0, 1]), ["a", "a", "b"], ["one", "two", "three"], ["x", "y", "z"], "cities")


def test_too_few_groups_of_a_class_are_refused_with_the_numbers() -> None:
    labels, units = np.array([1] * 37 + [0] * 3), np.array([f"g{row}" for row in range(40)], dtype=object)
    reason = splits.refusal(labels, units, 5)
    assert reason == "3 of 40 texts are true, in 3 groups: 10 groups are needed for 5 folds"
    assert "14 groups are needed for 5 folds with 10 inner ones" in splits.refusal(labels, units, 5, 10)
    assert not splits.refusal(*blocks(10), 5)


def test_a_sample_takes_whole_units_up_to_its_limit() -> None:
    _, units = blocks(30)
    chosen = splits.sample_units(units, 50, seed=0)
    assert chosen.sum() == 48
    assert all(chosen[units == unit].all() for unit in set(units[chosen]))
    assert splits.sample_units(units, None, seed=0).all()
    with pytest.raises(UserError, match=r"detection\.max_statements: 1 is below the size of a group"):
        splits.sample_units(units, 1, seed=0)


def test_near_duplicates_ignore_order_case_and_articles() -> None:
    assert splits.same_words("The Nile borders a sea.") == splits.same_words("a SEA borders Nile")
    assert splits.same_words("Paris is in France") != splits.same_words("Paris is in Spain")
