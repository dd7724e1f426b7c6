"""Similarity of features: correlations against numpy's, their null, and index-aligned links."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.sae import Sae
from ghosttrack.sae.model import save as save_sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import similarity
from ghosttrack.tracks.neighbours import compare_by, index_aligned, links, load_links
from ghosttrack.tracks.similarity import ActivationCorrelation, DecoderCosine, codes_of
from track import find_neighbours

TOKENS = 2000


def codes(features: int, seed: int, density: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    fires = generator.random((features, TOKENS)) < density
    return (fires * generator.uniform(0.5, 2.0, (features, TOKENS))).astype(np.float32)


def correlation(lower: np.ndarray, upper: np.ndarray, seed: int = 0) -> ActivationCorrelation:
    return ActivationCorrelation(sparse.csr_array(lower), sparse.csr_array(upper), 16, [seed])


def whole(blocks: object) -> np.ndarray:
    return torch.cat(list(blocks)).numpy()  # type: ignore[call-overload]


def test_correlations_equal_numpys_in_both_directions_and_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarity, "BLOCK", 7)
    lower, upper = codes(20, 1), codes(30, 2)
    expected = np.corrcoef(lower, upper)[:20, 20:]
    correlations = correlation(lower, upper)
    assert whole(correlations.blocks(0)) == pytest.approx(expected, abs=1e-6)
    assert whole(correlations.back_blocks(0)) == pytest.approx(expected.T, abs=1e-6)


def test_the_null_shifts_the_upper_tokens_by_more_than_a_context() -> None:
    lower, upper = codes(5, 1), codes(6, 2)
    correlations = correlation(lower, upper, seed=3)
    for draw in (1, 2):
        shift = next(
            shift
            for shift in range(16, TOKENS - 15)
            if np.allclose(
                np.corrcoef(lower, np.roll(upper, shift, 1))[:5, 5:],
                whole(correlations.blocks(draw)),
                atol=1e-5,
            )
        )
        assert np.allclose(
            whole(correlations.back_blocks(draw)).T, whole(correlations.blocks(draw)), atol=1e-6
        )
        assert 16 <= shift <= TOKENS - 16
    assert not np.allclose(whole(correlations.blocks(1)), whole(correlations.blocks(2)))
    assert np.array_equal(
        whole(correlation(lower, upper, seed=3).blocks(2)), whole(correlations.blocks(2))
    )


def test_features_with_few_firings_have_similarity_minus_one() -> None:
    lower, upper = codes(3, 1), codes(3, 2)
    lower[1] = 0
    lower[1, : similarity.MIN_FIRINGS - 1] = upper[0, : similarity.MIN_FIRINGS - 1] = 1.0
    upper[2] = 0
    similarities = whole(correlation(lower, upper).blocks(0))
    assert (similarities[1] == -1).all()
    assert (similarities[:, 2] == -1).all()
    assert np.isfinite(similarities).all()
    assert (similarities[[0, 2]][:, :2] > -0.5).all()


def test_features_that_fire_together_are_linked_despite_their_directions() -> None:
    lower = codes(60, 1)
    order = np.random.default_rng(0).permutation(60)
    upper = lower[order] * np.random.default_rng(1).uniform(0.8, 1.2, lower.shape)
    comparison = compare_by(correlation(lower, upper), 8, 0.99)
    assert np.array_equal(order[comparison.real.target[:, 0]], np.arange(60))
    assert comparison.gate < 0.3
    assert comparison.mutual.all()
    unrelated = compare_by(correlation(lower, codes(60, 9)), 8, 0.99)
    assert np.mean(unrelated.best > unrelated.gate) < 0.1


def test_index_aligned_links_hold_where_the_directions_still_agree() -> None:
    lower = torch.nn.functional.normalize(
        torch.randn(200, 32, generator=torch.Generator().manual_seed(0)), dim=1
    )
    upper = lower + 0.05 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    upper[7] = -upper[7]  # moved away
    upper[[3, 4]] = upper[[4, 3]]  # swapped: cosine links them, their indices disagree
    both = DecoderCosine(lower, upper, [0])
    by_cosine = compare_by(both, 8, 0.999)
    comparison = index_aligned(by_cosine, both)
    table = links(comparison.real, comparison.gate)
    linked = np.repeat(np.arange(200), np.diff(table.start))
    assert np.array_equal(linked, table.target)
    assert set(range(200)) - set(linked.tolist()) == {3, 4, 7}
    assert table.surplus[0] == pytest.approx(
        float(torch.cosine_similarity(lower[0], upper[0], 0)) - comparison.gate, abs=1e-5
    )
    assert (comparison.gate, comparison.covered) == (by_cosine.gate, True)
    assert not comparison.mutual[[3, 4, 7]].any()
    assert len(links(comparison.permuted, comparison.gate).target) == 0


def test_index_aligned_links_need_dictionaries_of_equal_size() -> None:
    both = DecoderCosine(torch.randn(20, 8), torch.randn(30, 8), [0])
    with pytest.raises(
        UserError, match=r"tracking\.links: identity .* 20 and 30 features.*tuning\.links"
    ):
        index_aligned(compare_by(both, 4, 0.99), both)


def test_codes_are_those_of_the_included_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ENCODED_ROWS", 10)
    decoder = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    sae = Sae(
        decoder.T.contiguous(), torch.zeros(12), decoder, torch.zeros(6), torch.full((12,), 0.5)
    )
    values = np.random.default_rng(0).standard_normal((25, 6)).astype(np.float16)
    included = np.arange(25) % 3 > 0

    class Store:
        rows, d_model, excluded = 25, 6, ~included

        def read(self, start: int, stop: int) -> np.ndarray:
            return values[start:stop]

        def fingerprint(self) -> str:
            return ""

    expected = sae.encode(torch.from_numpy(values[included].astype(np.float32))).numpy().T
    assert codes_of(sae, Store(), included).toarray() == pytest.approx(expected, abs=1e-6)


def test_the_script_links_by_held_out_activations(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    rows = torch.randn(600, 16, generator=generator).numpy()
    paths: dict[str, list[Path]] = {"weights": [], "stores": [], "manifests": []}
    # The second layer is the first, rotated: all activations agree, no decoder direction does.
    for layer, directions, values in ((1, decoder, rows), (3, decoder @ turn, rows @ turn.numpy())):
        folder = tmp_path / f"layer_{layer:02d}"
        sae = Sae(
            directions.T.contiguous(),
            torch.zeros(24),
            directions,
            torch.zeros(16),
            torch.full((24,), 0.8),
        )
        paths["weights"].append(folder / "sae_weights.safetensors")
        save_sae(sae, paths["weights"][-1], folder / "cfg.json", hook_name="", model_name="tiny")
        paths["stores"].append(tmp_path / f"{layer}.zarr")
        paths["manifests"].append(tmp_path / f"{layer}.json")
        header = Header("tiny", "0" * 64, layer, "resid_post", 50, "1" * 64)
        with StoreWriter(
            paths["stores"][-1], paths["manifests"][-1], header, rows=600, d_model=16
        ) as out:
            out.append(to_block(values))
    path_of_links = tmp_path / "path_of_links.npz"
    settings = TrackingSettings(links="correlation", neighbours=8, gate_quantile=0.99)
    find_neighbours.main(
        **paths, neighbours=path_of_links, layer=1, tracking=settings, seed=0, threads=1
    )
    table = load_links(path_of_links, permuted=False)
    assert table.layers == [1, 3]
    best = [table.adjacent.target[start:][:50] for start in islice(table.adjacent.start, 24)]
    assert all(number in row for number, row in enumerate(best))
    with np.load(path_of_links) as stored:
        assert np.array_equal(stored["index"][:, 0], np.arange(24))
        assert stored["best"].min() > 0.9
    by_cosine = settings.model_copy(update={"links": "cosine"})
    find_neighbours.main(
        weights=paths["weights"],
        stores=[],
        manifests=[],
        neighbours=path_of_links,
        layer=1,
        tracking=by_cosine,
        seed=0,
        threads=1,
    )
    assert len(load_links(path_of_links, permuted=False).adjacent.target) < 4
