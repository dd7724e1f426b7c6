"""Grouped, stratified cross-validation folds, and the check that no fold leaks into another."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.facts.examples import same_text
from ghosttrack.statistics import codes_of

Ints = NDArray[np.int64]
Names = NDArray[np.object_]

# Groups of each class per outer fold. With one, an inner training part could hold a single class.
GROUPS_PER_FOLD = 2
# Number of rows that an error names.
_NAMED = 5


def same_words(text: str) -> str:
    """Key of near-duplicates: the same words without order, punctuation and articles."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(sorted(word for word in words if word not in ("a", "an", "the")))


def make_cv_groups(groups: Sequence[str], texts: Sequence[str]) -> Names:
    """Cross-validation groups: the given groups, joined where they share a verbatim text.

    All rows of a cross-validation group are in the same fold.

    Args:
        groups: (rows,).
        texts: (rows,).
    Returns:
        (rows,) names; joined groups take the name of their first group in alphabetical order.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for group, text in zip(groups, texts, strict=True):
        one, other = root(group), root(first.setdefault(same_text(text), group))
        parent[max(one, other)] = min(one, other)
    return np.array([root(group) for group in groups], dtype=object)


def sample_cv_groups(cv_groups: Names, limit: int | None, seed: int) -> NDArray[np.bool_]:
    """Sample whole groups in a random order, up to `limit` rows; None selects every row.

    A group that is larger than what is left is passed over, so that one large group does not end
    the sample early.

    Returns:
        (rows,) which rows are selected.
    Raises:
        UserError: no group is small enough.
    """
    if limit is None or len(cv_groups) <= limit:
        return np.ones(len(cv_groups), dtype=bool)
    names, code, size = codes_of(cv_groups)
    order = np.random.default_rng(seed).permutation(len(names))
    kept, left = list[int](), limit
    for number in order.tolist():
        if size[number] <= left:
            kept.append(number)
            left -= int(size[number])
    if not kept:
        raise UserError(
            f"detection.max_statements: {limit} is below the size of the smallest group "
            f"({size.min()} texts); raise it"
        )
    return np.isin(code, kept)


def infeasible_reason(labels: Ints, cv_groups: Names, folds: int, inner_folds: int = 2) -> str:
    """Why these rows cannot be split into these folds, or "".

    Each class needs GROUPS_PER_FOLD groups per outer fold, and one group per inner fold.
    """
    # Groups needed so that enough are left without one outer fold, which may hold one more than its
    # share.
    inner = -(-inner_folds * folds // (folds - 1)) + 1
    within = f" with {inner_folds} inner ones" if inner > GROUPS_PER_FOLD * folds else ""
    for label, name in ((0, "true"), (1, "hallucinated")):
        count, needed = len(set(cv_groups[labels == label])), max(GROUPS_PER_FOLD * folds, inner)
        if count < needed:
            rows = int((labels == label).sum())
            return (
                f"{rows} of {len(labels)} texts are {name}, in {count} groups: {needed} groups "
                f"are needed for {folds} folds{within}"
            )
    return ""


def assign_folds(labels: Ints, cv_groups: Names, folds: int, seed: int, least: int = 1) -> Ints:
    """Assign whole groups to folds, with classes balanced as well as the groups allow.

    The folds are balanced by texts, if this leaves `least` groups of each class outside each fold;
    a few large groups may prevent it. Then they are balanced by groups, which does, where
    `infeasible_reason` is "".

    The result depends on the arguments alone. The caller checks `infeasible_reason` first.

    Args:
        least: groups of each class that each training part needs, such as one per inner fold.
    Returns:
        (rows,) fold of each row.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    code = codes_of(cv_groups).code
    fold = np.full(len(labels), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(np.zeros(len(labels)), labels, code)):
        fold[held] = number
    if _fewest_left(labels, code, fold, folds) < least:
        fold = _dealt(labels, code, folds, seed)
    return fold


def _fewest_left(labels: Ints, code: Ints, fold: Ints, folds: int) -> int:
    """Number of groups of a class outside a fold, the smallest over classes and folds."""
    return min(
        len(np.unique(code[(labels == label) & (fold != number)]))
        for label in np.unique(labels)
        for number in range(folds)
    )


def _dealt(labels: Ints, code: Ints, folds: int, seed: int) -> Ints:
    """Folds with equally many groups of each class, give or take one, (rows,).

    Groups are dealt to the folds in turn, from a random order: those with both classes, then those
    with each class alone, which both go on where the first ended.
    """
    count = int(code.max()) + 1
    has = [np.bincount(code[labels == label], minlength=count) > 0 for label in (0, 1)]
    order = np.random.default_rng(seed).permutation(count)
    both = order[(has[0] & has[1])[order]]
    of_group = np.empty(count, dtype=np.int64)
    of_group[both] = np.arange(len(both)) % folds
    for mine, other in (has, has[::-1]):
        alone = order[(mine & ~other)[order]]
        of_group[alone] = (len(both) + np.arange(len(alone))) % folds
    return of_group[code]


def check_folds(
    fold: Ints, groups: Iterable[Any], texts: Sequence[str], ids: Sequence[str], name: str
) -> None:
    """Check that no group and no verbatim text is in two folds.

    Raises:
        UserError: two folds share one; the message names the data set `name` and the rows.
    """
    for what, keys in (("group", list(groups)), ("text", [same_text(text) for text in texts])):
        rows = shared_rows(fold, keys)
        if len(rows):
            named = ", ".join(f"{ids[row]} (fold {fold[row]})" for row in rows[:_NAMED])
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            raise UserError(
                f"{name}: rows {named}{more} share a {what} across folds, so a detector could "
                f"memorise its training rows. Expected every {what} in one fold: give these rows "
                "the same group in the data set's file"
            )


def shared_rows(fold: Ints, keys: Sequence[Any]) -> Ints:
    """Rows whose key also occurs in another fold; rows of the same key are adjacent."""
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    shared = [
        row for same in rows.values() if len({int(fold[each]) for each in same}) > 1 for row in same
    ]
    return np.array(shared, dtype=np.int64)


class OuterFold(NamedTuple):
    """One outer fold of nested cross-validation.

    train, test: row indices; inner_fold: inner fold of each training row.
    """

    number: int
    train: Ints
    test: Ints
    inner_fold: Ints


def outer_folds(
    labels: Ints, cv_groups: Names, fold: Ints, inner_folds: int, seed: int
) -> list[OuterFold]:
    """All outer folds with their inner folds, which keep groups whole as well."""
    result = []
    for number in range(int(fold.max()) + 1):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        inner = assign_folds(labels[train], cv_groups[train], inner_folds, seed + 1 + number)
        result.append(OuterFold(number, train, test, inner))
    return result
