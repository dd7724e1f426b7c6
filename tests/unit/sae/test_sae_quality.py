"""Known answers for every quality number."""

import numpy as np
import pytest
import torch
from sae_fakes import MemoryRows

from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.quality import (
    Reconstruction,
    ReconstructionSums,
    measure,
    pca_fvu,
    random_fvu,
    sparsity,
)
from ghosttrack.sae.rows import mean_of


def reconstruction(x: torch.Tensor, xhat: torch.Tensor) -> Reconstruction:
    sums = ReconstructionSums(x.mean(0))
    for rows, estimate in zip(torch.split(x, 3), torch.split(xhat, 3), strict=True):
        sums.add(rows, estimate)
    return sums.result()


def test_the_worked_example_has_explained_variance_of_four_fifths() -> None:
    found = reconstruction(
        torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    )
    assert found.explained_variance == pytest.approx(0.8)
    assert found.fvu == pytest.approx(0.2)
    assert found.mse == pytest.approx(0.5)
    assert found.fvu_token_median == pytest.approx(1 / 5)
    assert found.cossim == pytest.approx((4 / (2 * 5**0.5) + 1) / 2)
    assert found.l2_ratio == pytest.approx((5**0.5 / 2 + 3 / 4) / 2)
    assert found.relative_reconstruction_bias == pytest.approx((5 + 9) / (4 + 12))


def test_predicting_the_mean_explains_nothing_and_a_copy_everything() -> None:
    x = (
        torch.randn(10, 4, generator=torch.Generator().manual_seed(0)) + 100.0
    )  # far from the origin
    assert reconstruction(x, x.mean(0).expand(10, 4)).explained_variance == pytest.approx(
        0.0, abs=1e-9
    )
    copy = reconstruction(x, x)
    assert (copy.fvu, copy.fvu_token_median, copy.mse) == (0.0, 0.0, 0.0)
    assert (copy.cossim, copy.l2_ratio, copy.relative_reconstruction_bias) == pytest.approx(
        (1.0, 1.0, 1.0)
    )


def test_a_shrunken_reconstruction_shows_as_ratio_and_bias() -> None:
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    found = reconstruction(x, 0.8 * x)
    assert found.l2_ratio == pytest.approx(0.8)
    assert found.relative_reconstruction_bias == pytest.approx(0.8)
    assert found.cossim == pytest.approx(1.0)


def test_rows_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(UserError, match=r"corpus\.heldout_tokens"):
        reconstruction(torch.ones(5, 3), torch.zeros(5, 3))


def test_sparsity_counts_dead_and_dense_features_and_percentiles_of_rows() -> None:
    row_l0 = torch.arange(101)
    fired = torch.tensor([0, 0, 1, 10, 11, 101, 5, 7])
    found = sparsity(row_l0, fired)
    assert (found.l0, found.l0_p5, found.l0_p50, found.l0_p95) == (50.0, 5.0, 50.0, 95.0)
    assert (found.dead_fraction, found.frac_alive) == (0.25, 0.75)
    assert found.dense_fraction == 0.25  # 11 and 101 of 101 rows are more than a tenth, 10 is less


def test_excluded_rows_count_nowhere() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5000, 6))
    excluded = rng.random(5000) < 0.2
    spoiled = values.copy()
    spoiled[excluded] = 1e4
    directions = torch.eye(6)
    autoencoder = Sae(directions, torch.zeros(6), directions, torch.zeros(6), torch.full((6,), 0.1))
    found = measure(autoencoder, MemoryRows(spoiled, excluded), k=3)
    expected = measure(autoencoder, MemoryRows(values[~excluded]), k=3)
    assert found.rows == int((~excluded).sum())
    # float16 rows and another chunking: equal to rounding
    np.testing.assert_allclose(
        np.hstack([*found.reconstruction]), np.hstack([*expected.reconstruction]), rtol=1e-9
    )
    assert found.sparsity == expected.sparsity
    assert found.random_fvu == pytest.approx(expected.random_fvu, rel=1e-6)
    assert found.pca_fvu == pytest.approx(expected.pca_fvu, rel=1e-6)


def test_an_exact_autoencoder_is_measured_as_one() -> None:
    values = np.random.default_rng(1).standard_normal((400, 5)).astype(np.float16)
    both_signs = torch.cat([torch.eye(5), -torch.eye(5)], dim=1)  # x = relu(x) - relu(-x)
    exact = Sae(
        both_signs, torch.zeros(10), both_signs.t().contiguous(), torch.zeros(5), torch.zeros(10)
    )
    found = measure(exact, MemoryRows(values), k=5)
    assert found.reconstruction.fvu == pytest.approx(0.0, abs=1e-12)
    assert found.sparsity.l0 == pytest.approx(5.0, abs=0.02)
    assert found.sparsity.dead_fraction == 0.0
    assert found.sparsity.dense_fraction == 1.0


def test_pca_explains_what_lies_in_k_dimensions_and_never_sees_the_rows_it_is_measured_on() -> None:
    rng = np.random.default_rng(2)
    plane = MemoryRows(rng.standard_normal((2000, 3)) @ rng.standard_normal((3, 20)) + 7.0)
    assert pca_fvu(plane, mean_of(plane), k=3) < 1e-4
    noise = MemoryRows(rng.standard_normal((600, 20)))
    # With no structure k of d directions explain about k/d, a little less on rows not fitted.
    assert 0.73 < pca_fvu(noise, mean_of(noise), k=5) < 0.80
    few = MemoryRows(rng.standard_normal((24, 20)))
    assert pca_fvu(few, mean_of(few), k=15) > 0.2  # fitted on the same rows it would be .00


def test_the_random_dictionary_lies_between_nothing_and_everything() -> None:
    rows = MemoryRows(np.random.default_rng(3).standard_normal((1000, 16)))
    mean = mean_of(rows)
    few, many = (random_fvu(rows, mean, 64, k) for k in (1, 16))
    assert 0.0 < many < few < 1.0
    # One direction of 64 per row: the squared cosine of the best match is what it explains.
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 16, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    x = torch.from_numpy(rows.values.astype(np.float32)) - mean.float()
    best = (x @ directions.t()).max(dim=1).values
    assert few == pytest.approx(1.0 - float(best.pow(2).sum() / x.pow(2).sum()), rel=1e-5)


def test_another_width_is_refused() -> None:
    eye = torch.eye(4)
    autoencoder = Sae(eye, torch.zeros(4), eye, torch.zeros(4), torch.zeros(4))
    with pytest.raises(UserError, match="5 dimensions, the autoencoder 4"):
        measure(autoencoder, MemoryRows(np.random.default_rng(0).standard_normal((10, 5))), k=2)
