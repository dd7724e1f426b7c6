"""Decoder neighbours: planted pairs are found, the null sets the gate, files are reproducible."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ghosttrack.errors import UserError
from ghosttrack.tracks.neighbours import NeighbourLists, compare, links, load_links, save


def decoder(rows: int, d_model: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed))


def noisy_copy(original: torch.Tensor, order: np.ndarray, cosine: float, seed: int) -> torch.Tensor:
    """Row i is row order[i] of the original with noise, at a mean cosine of `cosine`, rescaled."""
    unit = torch.nn.functional.normalize(original, dim=1)[torch.from_numpy(order)]
    noise = torch.nn.functional.normalize(decoder(len(original), original.shape[1], seed), dim=1)
    copy: torch.Tensor = 3 * (cosine * unit + (1 - cosine**2) ** 0.5 * noise)
    return copy


def test_a_permuted_noisy_copy_is_recognised_feature_by_feature() -> None:
    lower = decoder(300, 64, 0)
    order = np.random.default_rng(0).permutation(300)
    comparison = compare(lower, noisy_copy(lower, order, 0.8, 1), 8, 0.999, [0, 1, 2])
    assert np.array_equal(order[comparison.real.target[:, 0]], np.arange(300))
    assert comparison.mutual.all()
    assert comparison.covered
    assert comparison.gate < 0.65
    assert (comparison.best > comparison.gate).all()
    table = links(comparison.real, comparison.gate)
    assert (np.diff(table.start) >= 1).all()


def test_lists_hold_the_largest_cosines_in_both_directions() -> None:
    lower, upper = decoder(50, 16, 2), decoder(70, 16, 3)
    comparison = compare(lower, upper, 5, 0.99, [0]).real
    similarity = (
        torch.nn.functional.normalize(lower, dim=1) @ torch.nn.functional.normalize(upper, dim=1).T
    ).numpy()
    for cosine, target, table in (
        (comparison.cosine, comparison.target, similarity),
        (comparison.back_cosine, comparison.back_target, similarity.T),
    ):
        assert np.allclose(cosine, -np.sort(-table, axis=1)[:, :5], atol=1e-6)
        assert np.allclose(cosine, np.take_along_axis(table, target, axis=1), atol=1e-6)


def test_links_are_the_pairs_above_the_gate_in_either_list() -> None:
    lists = NeighbourLists(
        target=np.array([[0, 1], [1, 0]], np.int32),
        cosine=np.array([[0.9, 0.5], [0.3, 0.2]], np.float32),
        back_target=np.array([[0, 1], [0, 1], [1, 0]], np.int32),
        back_cosine=np.array([[0.9, 0.2], [0.5, 0.3], [0.7, 0.6]], np.float32),
    )
    table = links(lists, 0.4)
    assert table.start.tolist() == [0, 3, 4]
    assert table.target.tolist() == [0, 1, 2, 2]
    assert table.surplus == pytest.approx([0.5, 0.1, 0.2, 0.3], abs=1e-6)


def test_unrelated_decoders_exceed_the_gate_as_often_as_the_quantile_allows() -> None:
    comparison = compare(decoder(400, 48, 4), decoder(400, 48, 5), 16, 0.99, [7])
    assert np.mean(comparison.null_best > comparison.gate) == pytest.approx(0.01, abs=0.002)
    assert np.mean(comparison.best > comparison.gate) < 0.04
    assert np.mean(comparison.permuted.cosine[:, 0] > comparison.gate) < 0.04


def test_lists_too_short_for_the_gate_are_not_covered() -> None:
    lower = decoder(60, 32, 6)
    same = torch.cat([lower, lower, lower])
    assert not compare(torch.cat([lower, lower, lower]), same, 2, 0.99, [0]).covered
    assert compare(lower, same, 3, 0.99, [0]).covered


def test_the_gate_depends_on_the_seed() -> None:
    lower, upper = decoder(80, 32, 8), decoder(80, 32, 9)
    assert compare(lower, upper, 4, 0.99, [1]).gate == compare(lower, upper, 4, 0.99, [1]).gate
    assert compare(lower, upper, 4, 0.99, [1]).gate != compare(lower, upper, 4, 0.99, [2]).gate


def test_a_file_is_read_back_as_links_and_has_deterministic_bytes(tmp_path: Path) -> None:
    lower, upper, third = (decoder(40, 16, seed) for seed in (1, 2, 3))
    pairs = [compare(lower, upper, 4, 0.9, [0, 1]), compare(lower, third, 4, 0.9, [0, 2])]
    save(tmp_path / "a.npz", [3, 5, 7], pairs)
    save(tmp_path / "b.npz", [3, 5, 7], pairs)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    # No time stamp: the file would be the same an hour later.
    assert {item.date_time for item in zipfile.ZipFile(tmp_path / "a.npz").infolist()} == {
        (1980, 1, 1, 0, 0, 0)
    }
    read_back = load_links(tmp_path / "a.npz", permuted=False)
    assert read_back.layers == [3, 5, 7]
    assert read_back.skip is not None
    for links_read, pair in ((read_back.adjacent, pairs[0]), (read_back.skip, pairs[1])):
        expected = links(pair.real, pair.gate)
        assert np.array_equal(links_read.start, expected.start)
        assert np.array_equal(links_read.target, expected.target)
        assert np.array_equal(links_read.surplus, expected.surplus)
    null = load_links(tmp_path / "a.npz", permuted=True).adjacent
    assert np.array_equal(null.target, links(pairs[0].permuted, pairs[0].gate).target)
    with np.load(tmp_path / "a.npz") as content:
        assert content["index"].shape == (40, 4)
        assert content["best"].shape == (40,)
        assert set(content["covered"].shape) == set()


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "layer_03.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"layer_03\.npz is not a neighbour file"):
        load_links(tmp_path / "layer_03.npz", permuted=False)
    with pytest.raises(UserError, match="find_neighbours writes it again"):
        load_links(tmp_path / "absent.npz", permuted=False)
