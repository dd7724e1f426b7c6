"""Pooling of answer tokens: equal to a slow loop, without attention sinks.

Wrong spans are errors.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from ghosttrack.detection import representations
from ghosttrack.errors import UserError
from ghosttrack.sae import Sae


def outputs(counts: list[int]) -> pd.DataFrame:
    start = np.cumsum(counts) - counts
    return pd.DataFrame(
        {"id": [f"e{row}" for row in range(len(counts))], "row_start": start, "row_count": counts}
    )


def small_sae() -> Sae:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 15), (15,), (15, 6), (6,))
    W_enc, b_enc, W_dec, b_dec = (torch.randn(shape, generator=generator) for shape in shapes)
    return Sae(W_enc, b_enc, W_dec, b_dec, torch.full((15,), 0.3))


def test_pooled_blocks_equal_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "_ROWS", 4)  # several batches
    counts, rng, sae = [1, 3, 2, 5, 1], np.random.default_rng(0), small_sae()
    values = rng.standard_normal((sum(counts), 6)).astype(np.float16)
    massive = np.zeros(len(values), dtype=bool)
    massive[2] = True  # one of three tokens
    massive[11] = True  # the only token of its example
    counterfactual_mean = rng.standard_normal((5, 6)).astype(np.float16)
    counterfactual_mean[3] = np.nan  # missing: nothing is subtracted
    where = representations.spans(outputs(counts), 12, "x")
    found = representations.layer_blocks(values, massive, where, sae, counterfactual_mean)
    row = 0
    for example, count in enumerate(counts):
        rows = np.arange(row, row + count)
        row += count
        x = torch.from_numpy(values[rows].astype(np.float32))
        code = sae.encode(x)
        residual, kept = (x - sae.decode(code)).numpy(), ~massive[rows]
        mean = kept if kept.any() else ~kept
        np.testing.assert_allclose(
            found.raw[example], x.numpy()[mean].mean(0), rtol=1e-5, atol=1e-6
        )
        known = example != 3
        expected = torch.from_numpy(counterfactual_mean[[example]].astype(np.float32))
        expected_code = sae.encode(expected)[0].numpy() if known else 0
        missed = (expected - sae.decode(sae.encode(expected)))[0].numpy() if known else 0
        np.testing.assert_allclose(
            found.residual[example], residual[mean].mean(0) - missed, rtol=1e-4, atol=1e-5
        )
        centred = x.numpy()[mean].mean(0) - (expected[0].numpy() if known else 0)
        np.testing.assert_allclose(found.centred[example], centred, rtol=1e-5, atol=1e-6)
        active = code.numpy() * kept[:, None]
        pooled = np.concatenate([active[mean].mean(0) - expected_code, active.max(0)])
        np.testing.assert_allclose(found.code_max[example], active.max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.code[example], pooled, rtol=1e-4, atol=1e-5)


def test_spans_that_do_not_tile_the_store_are_refused() -> None:
    with pytest.raises(UserError, match="describes 5 answer tokens, the activation store holds 6"):
        representations.spans(outputs([2, 3]), 6, "cities")
    with pytest.raises(UserError, match="example e1 has no answer token"):
        representations.spans(outputs([2, 0]), 2, "cities")


def test_output_features_are_finite_even_for_certain_answers() -> None:
    names = (
        "logprob_sum",
        "logprob_mean",
        "logprob_min",
        "logprob_first",
        "entropy_mean",
        "entropy_first",
        "rank_first",
    )
    table = outputs([1, 1]).assign(input_tokens=5, **dict.fromkeys(names, 0.0))
    found = representations.output_features(table)
    assert np.isfinite(found.to_numpy()).all()
    assert not {"id", "row_start", "row_count", "input_tokens"} & set(found.columns)


def test_large_relations_get_features_standardised_within_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(representations, "RELATION_ROWS", 3)
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0, 10.0, 20.0, 60.0, 5.0], "same": 1.0})
    found = representations.by_relation(table, ["a"] * 3 + ["b"] * 3 + ["c"])
    assert list(found.columns) == ["x", "same", "x.a", "same.a", "x.b", "same.b"]
    np.testing.assert_allclose(found["x.a"], [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(found["x.b"][3:6].std(ddof=0), 1.0)
    assert (found[["same.a", "same.b"]] == 0).all(axis=None)
    assert representations.by_relation(table, ["a"] * 7).equals(table)


def test_an_answer_without_other_candidates_has_zeros_and_the_others_keep_their_columns() -> None:
    table = pd.DataFrame(
        {"lens_lead": [1.0, np.nan], "lens_rank": [np.nan, np.nan], "other": [1.0, 2.0]}
    )
    found = representations.lens_features(table)
    assert found.to_dict("list") == {"lens_lead": [1.0, 0.0]}
