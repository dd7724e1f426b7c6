"""Self-consistency and semantic entropy: known answers by hand."""

import numpy as np
import pandas as pd
import pytest

from ghosttrack.detection import agreement
from ghosttrack.errors import UserError


def drawn(**clusters: list[int]) -> pd.DataFrame:
    """Clusters of each question's answers, the greedy one first."""
    rows = [
        (name, number, cluster)
        for name, own in clusters.items()
        for number, cluster in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=["id", "sample", "cluster"])


def test_agreement_is_the_share_of_the_greedy_answer_and_the_entropy_of_the_sampled_ones() -> None:
    found = agreement.measure(
        drawn(a=[0, 0, 0, 0, 0], b=[0, 1, 1, 2, 0], c=[0, 1, 1, 1, 1]), ["b", "c", "a"], "samples"
    )
    np.testing.assert_allclose(found["self_consistency"], [0.25, 0.0, 1.0])
    np.testing.assert_allclose(found["semantic_entropy"], [1.5 * np.log(2), 0.0, 0.0], atol=1e-12)


def test_without_sampled_answers_there_is_no_column() -> None:
    found = agreement.measure(drawn(a=[0], b=[0]), ["a", "b"], "samples")
    assert len(found) == 2
    assert not len(found.columns)


def test_examples_with_too_few_sampled_answers_are_named() -> None:
    with pytest.raises(UserError, match=r"samples\.parquet: b has 1 sampled answers .* expected 2"):
        agreement.measure(drawn(a=[0, 0, 1], b=[0, 1]), ["a", "b"], "samples.parquet")
    with pytest.raises(UserError, match="z has 0 sampled answers"):
        agreement.measure(drawn(a=[0, 0, 1]), ["a", "z"], "samples.parquet")
