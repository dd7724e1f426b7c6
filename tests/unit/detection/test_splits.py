"""Folds keep groups and verbatim texts whole; errors name the rows that do not."""

import numpy as np
import pytest

from ghosttrack.detection import splits
from ghosttrack.errors import UserError


def blocks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of `count` minimal-pair blocks of four rows."""
    return np.tile([0, 0, 1, 1], count), np.repeat(
        [f"block-{number:03d}" for number in range(count)], 4
    ).astype(object)


def test_every_group_is_in_one_fold_and_every_row_in_some_fold() -> None:
    labels, cv_groups = blocks(23)
    fold = splits.assign_folds(labels, cv_groups, 5, seed=3)
    assert set(fold) == {0, 1, 2, 3, 4}
    assert all(len(set(fold[cv_groups == unit])) == 1 for unit in set(cv_groups))


def test_folds_depend_on_the_seed_alone() -> None:
    labels, cv_groups = blocks(20)
    first, again = (splits.assign_folds(labels, cv_groups, 5, seed=1) for _ in range(2))
    assert (first == again).all()
    assert (first != splits.assign_folds(labels, cv_groups, 5, seed=2)).any()


def test_inner_folds_cover_the_training_rows_and_keep_groups_whole() -> None:
    labels, cv_groups = blocks(20)
    fold = splits.assign_folds(labels, cv_groups, 5, seed=0)
    seen: list[int] = []
    found = splits.outer_folds(labels, cv_groups, fold, 4, seed=0)
    assert [outer.number for outer in found] == [0, 1, 2, 3, 4]
    for outer in found:
        assert not set(cv_groups[outer.train]) & set(cv_groups[outer.test])
        assert set(fold[outer.test]) == {outer.number}
        assert len(outer.inner_fold) == len(outer.train)
        for number in range(4):
            assert not set(cv_groups[outer.train][outer.inner_fold == number]) & set(
                cv_groups[outer.train][outer.inner_fold != number]
            )
            assert set(labels[outer.train][outer.inner_fold != number]) == {0, 1}
        seen.extend(outer.test)
    assert sorted(seen) == list(range(len(labels)))


def test_groups_that_share_a_text_become_one_cv_group() -> None:
    groups = ["c", "b", "a", "d", "d"]
    texts = [
        "Paris is in France.",
        "paris is  in france.",
        "Rome is in Italy.",
        "Rome is in Italy.",
        "Oslo is in Norway.",
    ]
    assert list(splits.make_cv_groups(groups, texts)) == ["b", "b", "a", "a", "a"]


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
    labels, cv_groups = (
        np.array([1] * 37 + [0] * 3),
        np.array([f"g{row}" for row in range(40)], dtype=object),
    )
    reason = splits.infeasible_reason(labels, cv_groups, 5)
    assert reason == "3 of 40 texts are true, in 3 groups: 10 groups are needed for 5 folds"
    assert "14 groups are needed for 5 folds with 10 inner ones" in splits.infeasible_reason(
        labels, cv_groups, 5, 10
    )
    assert not splits.infeasible_reason(*blocks(10), 5)


def test_a_sample_takes_whole_groups_up_to_its_limit() -> None:
    _, cv_groups = blocks(30)
    chosen = splits.sample_cv_groups(cv_groups, 50, seed=0)
    assert chosen.sum() == 48
    assert all(chosen[cv_groups == unit].all() for unit in set(cv_groups[chosen]))
    assert splits.sample_cv_groups(cv_groups, None, seed=0).all()
    with pytest.raises(
        UserError, match=r"detection\.max_statements: 1 is below the size of the smallest group"
    ):
        splits.sample_cv_groups(cv_groups, 1, seed=0)


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
    # Two groups of a class per outer fold, and one per inner fold without one outer fold.
    needed = max(2 * folds, -(-inner * folds // (folds - 1)) + 1)
    for found, refused in ((needed - 1, True), (needed, False)):
        labels = np.array([label] * found + [1 - label] * 60)
        cv_groups = np.array([f"g{row}" for row in range(found + 60)], dtype=object)
        reason = splits.infeasible_reason(labels, cv_groups, folds, inner)
        assert bool(reason) == refused
        assert (
            not refused
            or f"in {found} groups: {needed} groups are needed for {folds} folds" in reason
        )
        if not refused:
            fold = splits.assign_folds(labels, cv_groups, folds, seed=0)
            for outer in splits.outer_folds(labels, cv_groups, fold, inner, seed=0):
                for number in range(inner):
                    assert set(labels[outer.train][outer.inner_fold != number]) == {0, 1}


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 8, 11, 12, 13])
def test_a_sample_is_as_many_whole_groups_as_the_limit_allows_in_a_random_order(limit: int) -> None:
    _, cv_groups = blocks(3)
    if limit < 4:
        with pytest.raises(UserError, match=r"below the size of the smallest group \(4 texts\)"):
            splits.sample_cv_groups(cv_groups, limit, seed=0)
        return
    assert splits.sample_cv_groups(cv_groups, limit, seed=0).sum() == min(12, limit // 4 * 4)
    first = {tuple(splits.sample_cv_groups(cv_groups, limit, seed=seed)) for seed in range(20)}
    assert len(first) == (1 if limit >= 12 else 3)


@pytest.mark.parametrize(
    ("folds", "inner", "true", "hallucinated"),
    [
        (2, 2, (12, 59, 3, 4, 2, 2), (45, 2, 2, 2, 1)),
        (2, 2, (43, 1, 1, 1, 2), (31, 55, 3, 2, 2, 1)),
        (3, 3, (50, 50, 1, 1, 1, 1, 1, 1), (2, 2, 2, 1, 1, 1)),
        (5, 4, (90, 90, 90, 90, *[1] * 8), (*[1] * 10,)),
    ],
)
def test_large_groups_leave_both_classes_in_every_training_part(
    folds: int, inner: int, true: tuple[int, ...], hallucinated: tuple[int, ...]
) -> None:
    """Folds of equal size would put the large groups in one fold, and all others in another."""
    sizes = (*true, *hallucinated)
    labels = np.repeat([0] * len(true) + [1] * len(hallucinated), sizes)
    names = [f"g{number}" for number in range(len(sizes))]
    cv_groups = np.repeat(names, sizes).astype(object)
    assert not splits.infeasible_reason(labels, cv_groups, folds, inner)
    for seed in range(10):
        fold = splits.assign_folds(labels, cv_groups, folds, seed, least=inner)
        again = splits.assign_folds(labels, cv_groups, folds, seed, least=inner)
        assert (fold == again).all()
        assert all(len(set(fold[cv_groups == name])) == 1 for name in names)
        for outer in splits.outer_folds(labels, cv_groups, fold, inner, seed):
            assert set(outer.inner_fold) == set(range(inner))
            for number in range(inner):
                assert set(labels[outer.train][outer.inner_fold != number]) == {0, 1}


@pytest.mark.parametrize("large", [60, 90])
def test_a_large_group_does_not_end_a_sample_early(large: int) -> None:
    """`large` is below or above the limit of 80 texts; 100 groups of two texts fill it."""
    cv_groups = np.array(["large"] * large + [f"g{row // 2}" for row in range(200)], dtype=object)
    for seed in range(20):
        chosen = splits.sample_cv_groups(cv_groups, 80, seed=seed)
        assert chosen.sum() == 80
        assert all(chosen[cv_groups == unit].all() for unit in set(cv_groups[chosen]))


def test_groups_are_joined_through_chains_of_shared_texts_in_any_order() -> None:
    texts = np.array(["t0", "t1", "t1", "t2", "t2", "t3", "t3", "t0", "t4"])
    groups = np.array(["d", "d", "b", "b", "c", "c", "a", "e", "f"])  # d-b-c-a and e, f alone
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(groups))
        found = splits.make_cv_groups(list(groups[order]), list(texts[order]))
        assert found.tolist() == ["f" if group == "f" else "a" for group in groups[order]]


def test_the_fewest_groups_of_a_class_outside_a_fold() -> None:
    # Groups 0 to 3 are of class 0, groups 4 and 5 of class 1; group 1 has two rows.
    labels = np.array([0, 0, 0, 0, 0, 1, 1])
    code = np.array([0, 1, 1, 2, 3, 4, 5])
    fold = np.array([0, 0, 0, 1, 1, 0, 1])
    assert splits._fewest_left(labels, code, fold, 2) == 1  # class 1, either fold
    one_sided = np.array([0, 0, 0, 0, 1, 0, 1])
    assert splits._fewest_left(labels[:5], code[:5], one_sided[:5], 2) == 1  # outside fold 0
    assert splits._fewest_left(labels, code, np.zeros(7, dtype=np.int64), 2) == 0
    assert splits._fewest_left(labels, code, np.arange(7), 7) == 1
