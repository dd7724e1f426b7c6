"""Folds: nothing shared, nothing split, and an error that names what would be."""

import numpy as np
import pytest

from ghosttrack.detection import splits
from ghosttrack.errors import UserError


def blocks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of `count` swap blocks of four rows."""
    return np.tile([0, 0, 1, 1], count), np.repeat(
        [f"block-{number:03d}" for number in range(count)], 4
    ).astype(object)


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
    found = splits.rounds(labels, units, fold, 4, seed=0)
    assert [step.number for step in found] == [0, 1, 2, 3, 4]
    for step in found:
        assert not set(units[step.train]) & set(units[step.test])
        assert set(fold[step.test]) == {step.number}
        assert len(step.inner) == len(step.train)
        for number in range(4):
            assert not set(units[step.train][step.inner == number]) & set(
                units[step.train][step.inner != number]
            )
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
            np.array([0, 0, 1]),
            ["a", "b", "c"],
            ["Same text.", "other", "same  TEXT."],
            ["x1", "x2", "x3"],
            "cities",
        )


def test_a_group_in_two_folds_is_an_error_that_names_its_rows() -> None:
    with pytest.raises(UserError, match=r"rows x1 \(fold 0\), x2 \(fold 1\) share a group"):
        splits.check_folds(np.array([0, 1]), ["a", "a"], ["one", "two"], ["x1", "x2"], "cities")


def test_clean_folds_pass() -> None:
    splits.check_folds(
        np.array([0, 0, 1]), ["a", "a", "b"], ["one", "two", "three"], ["x", "y", "z"], "cities"
    )


def test_too_few_groups_of_a_class_are_refused_with_the_numbers() -> None:
    labels, units = (
        np.array([1] * 37 + [0] * 3),
        np.array([f"g{row}" for row in range(40)], dtype=object),
    )
    reason = splits.refusal(labels, units, 5)
    assert reason == "3 of 40 texts are true, in 3 groups: 10 groups are needed for 5 folds"
    assert "14 groups are needed for 5 folds with 10 inner ones" in splits.refusal(
        labels, units, 5, 10
    )
    assert not splits.refusal(*blocks(10), 5)


def test_a_sample_takes_whole_units_up_to_its_limit() -> None:
    _, units = blocks(30)
    chosen = splits.sample_units(units, 50, seed=0)
    assert chosen.sum() == 48
    assert all(chosen[units == unit].all() for unit in set(units[chosen]))
    assert splits.sample_units(units, None, seed=0).all()
    with pytest.raises(
        UserError, match=r"detection\.max_statements: 1 is below the size of a group"
    ):
        splits.sample_units(units, 1, seed=0)


def test_near_duplicates_ignore_order_case_and_articles() -> None:
    assert splits.same_words("The Nile borders a sea.") == splits.same_words("a SEA borders Nile")
    assert splits.same_words("Paris is in France") != splits.same_words("Paris is in Spain")


@pytest.mark.parametrize(("shared", "more"), [(5, ""), (6, " and 1 more"), (9, " and 4 more")])
def test_an_error_names_five_rows_and_counts_the_others(shared: int, more: str) -> None:
    ids = [f"x{row}" for row in range(shared)]
    fold = np.arange(shared) % 2
    with pytest.raises(UserError) as caught:
        splits.check_folds(
            fold, ["a"] * shared, [f"text {row}" for row in range(shared)], ids, "cities"
        )
    named = ", ".join(
        f"{name} (fold {number})" for name, number in zip(ids[:5], fold, strict=False)
    )
    assert f"cities: rows {named}{more} share a group across folds" in str(caught.value)


@pytest.mark.parametrize(
    ("folds", "inner"), [(2, 2), (3, 2), (5, 2), (5, 4), (5, 9), (2, 3), (10, 3)]
)
@pytest.mark.parametrize("label", [0, 1])
def test_folds_are_refused_exactly_below_the_number_of_groups_that_they_need(
    folds: int, inner: int, label: int
) -> None:
    # Two groups of a class in each outer fold; one in each inner fold of what is left without one outer fold.
    needed = max(2 * folds, -(-inner * folds // (folds - 1)) + 1)
    for found, refused in ((needed - 1, True), (needed, False)):
        labels = np.array([label] * found + [1 - label] * 60)
        units = np.array([f"g{row}" for row in range(found + 60)], dtype=object)
        reason = splits.refusal(labels, units, folds, inner)
        assert bool(reason) == refused
        assert (
            not refused
            or f"in {found} groups: {needed} groups are needed for {folds} folds" in reason
        )
        if not refused:
            fold = splits.assign_folds(labels, units, folds, seed=0)
            for step in splits.rounds(labels, units, fold, inner, seed=0):
                for number in range(inner):
                    assert set(labels[step.train][step.inner != number]) == {0, 1}


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 8, 11, 12, 13])
def test_a_sample_is_as_many_whole_units_as_the_limit_allows_in_a_random_order(limit: int) -> None:
    _, units = blocks(3)
    if limit < 4:
        with pytest.raises(UserError, match=r"below the size of a group \(4 texts\)"):
            splits.sample_units(units, limit, seed=0)
        return
    assert splits.sample_units(units, limit, seed=0).sum() == min(12, limit // 4 * 4)
    first = {tuple(splits.sample_units(units, limit, seed=seed)) for seed in range(20)}
    assert len(first) == (1 if limit >= 12 else 3)


def test_groups_are_joined_through_chains_of_shared_texts_in_any_order() -> None:
    texts = np.array(["t0", "t1", "t1", "t2", "t2", "t3", "t3", "t0", "t4"])
    groups = np.array(["d", "d", "b", "b", "c", "c", "a", "e", "f"])  # d-b-c-a and e, f alone
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(groups))
        found = splits.split_units(list(groups[order]), list(texts[order]))
        assert found.tolist() == ["f" if group == "f" else "a" for group in groups[order]]
