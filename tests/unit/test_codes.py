"""Group codes equal numpy's, with memory that does not grow with the longest name."""

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ghosttrack import statistics
from ghosttrack.detection import representations, splits, transfer
from ghosttrack.statistics import codes_of

ROWS = 400
LABELS = np.arange(ROWS) % 2
# As padded text, the groups take ROWS x 4 bytes x 50,000 characters: 80 MB per copy.
MOST = 20_000_000


@pytest.mark.parametrize(
    "values",
    [
        ["b", "a", "b", ""],
        ["10", "9", "1", "é", "z", "Z", "\U0001f600", "\uffff"],
        ["a b", "a", "ab", "a  b", " a"],
        [3, 10, 3, 1],
        [None, "None", float("nan"), "nan", 1.5],
        [],
    ],
)
def test_codes_are_those_of_the_padded_text(values: list[Any]) -> None:
    names, code, count = np.unique(
        np.array(values, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    found = codes_of(values)
    assert found.names.tolist() == names.tolist()
    assert found.code.tolist() == code.tolist()
    assert found.size.tolist() == count.tolist()
    assert found.code.dtype == np.int64


def test_codes_of_random_names_are_those_of_the_padded_text() -> None:
    generator = np.random.default_rng(0)
    letters = np.array(list("aAbé \u4e00\U0001f600"), dtype=object)
    values = [
        "".join(generator.choice(letters, generator.integers(1, 5))) + "." for _ in range(2000)
    ]
    names, code = np.unique(np.array(values), return_inverse=True)
    found = codes_of(values)
    assert found.names.tolist() == names.tolist()
    assert found.code.tolist() == code.tolist()


def in_own_units(cv_groups: Any) -> Any:
    found: Any = SimpleNamespace(relation=cv_groups, dataset=np.full(ROWS, "a", dtype=object))
    return transfer.standardise_by_relation(np.ones((ROWS, 2)), found)


@pytest.mark.parametrize(
    "work",
    [
        lambda cv_groups: statistics.bootstrap_auroc(
            LABELS, LABELS[None].astype(np.float64), cv_groups, 100, 0
        ),
        lambda cv_groups: splits.sample_cv_groups(cv_groups, 200, 0),
        lambda cv_groups: splits.assign_folds(LABELS, cv_groups, 3, 0),
        transfer.left_out,
        in_own_units,
        lambda cv_groups: representations.by_relation(pd.DataFrame({"a": LABELS}), list(cv_groups)),
    ],
    ids=["bootstrap", "sample", "folds", "left out", "own units", "by relation"],
)
def test_one_long_name_among_many_takes_no_memory_for_each_of_them(
    work: Callable[[Any], Any],
) -> None:
    cv_groups = np.array([f"group {row // 4}" for row in range(ROWS)], dtype=object)
    work(cv_groups)  # what is imported on the way
    cv_groups[:4] = "g" * 50_000
    tracemalloc.start()
    work(cv_groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST
