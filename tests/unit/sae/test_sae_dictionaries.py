"""Index-aligned dictionaries: a warm start from another layer's autoencoder, and one dictionary
for several layers.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_fakes import SMALL, MemoryBatches, MemoryRows, planted, train_one

from ghosttrack import sae
from ghosttrack.errors import UserError
from ghosttrack.sae import Sae
from ghosttrack.sae.export import fold_normalisation
from ghosttrack.sae.initialisation import WarmStart, seed_of, unfold_normalisation
from ghosttrack.sae.model import save
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.quality import measure
from ghosttrack.sae.rows import Normaliser, fit_normaliser
from ghosttrack.sae.training import Dictionary, TrainedSae, TrainingLayer, train
from ghosttrack.settings import SaeSettings

NOWHERE = Path(os.devnull)  # never written: no checkpoint falls due
LEARNING = SaeSettings(d_sae=96, k=3, batch=256, epochs=10, learning_rate=4e-3)


def two_layers(count: int = 8192, turn: float = 0.3) -> tuple[MemoryRows, MemoryRows]:
    """Rows of a planted dictionary, and of a rotated one with another mean and scale."""
    rows, directions = planted(rows=count, d_model=32, features=48, active=2.5, seed=1)
    generator = np.random.default_rng(5)
    turned, signs = np.linalg.qr(
        np.eye(32) + turn / np.sqrt(32) * generator.standard_normal((32, 32))
    )
    turned *= np.sign(np.diag(signs))
    code = generator.uniform(1.0, 2.0, (count, 48)) * (generator.random((count, 48)) < 2.5 / 48)
    return rows, MemoryRows(7.0 * (code @ directions @ turned) - 20.0)


def trained(
    rows: MemoryRows,
    settings: SaeSettings = LEARNING,
    warm_start: WarmStart | None = None,
    seed: int = 0,
) -> Sae:
    batches = MemoryBatches(rows, settings.batch)
    return train_one(
        rows, batches, settings, seed=seed, state=NOWHERE, micro_batch=256, warm_start=warm_start
    ).sae


def same_number(one: Sae, other: Sae) -> np.ndarray:
    """Cosine of the decoder rows of one number."""
    return torch.nn.functional.cosine_similarity(one.W_dec, other.W_dec, dim=1).numpy()


def with_thresholds(each: Sae, value: float) -> Sae:
    return replace(each, threshold=torch.full((each.d_sae,), value))


def random_parameters(seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    tied = Parameters.tied(16, 48, generator)
    return tied._replace(
        W_enc=0.3 * tied.W_enc,
        b_enc=torch.randn(48, generator=generator),
        b_dec=torch.randn(16, generator=generator),
    )


def test_unfolding_an_export_gives_back_the_training_form(tmp_path: Path) -> None:
    parameters, normaliser = random_parameters(), Normaliser(torch.randn(16) * 5, 0.037)
    folded = replace(
        fold_normalisation(parameters, normaliser), metadata={"activation_scale": normaliser.scale}
    )
    save(
        folded,
        tmp_path / "sae_weights.safetensors",
        tmp_path / "cfg.json",
        hook_name="blocks.0.hook",
        model_name="tiny",
    )
    found = unfold_normalisation(sae.load(tmp_path))
    for name, tensor in parameters._asdict().items():
        assert torch.allclose(getattr(found.parameters, name), tensor, atol=2e-5), name
    assert found.fingerprint() == unfold_normalisation(sae.load(tmp_path)).fingerprint()
    assert found.fingerprint() != found._replace(threshold=found.threshold + 1).fingerprint()


def test_layers_share_random_directions_unless_they_are_independent() -> None:
    assert (
        seed_of(7, 3, "shared_init")
        == seed_of(7, 5, "shared_init")
        == seed_of(7, 5, "warm_start")
        == 7
    )
    assert (
        len(
            {
                seed_of(7, 3, "independent"),
                seed_of(7, 5, "independent"),
                seed_of(8, 3, "independent"),
                7,
            }
        )
        == 4
    )


def test_an_autoencoder_without_mean_and_scale_cannot_be_a_warm_start(tmp_path: Path) -> None:
    folded = replace(
        fold_normalisation(random_parameters(), Normaliser(torch.zeros(16), 1.0)), mean=None
    )
    save(
        folded,
        tmp_path / "sae_weights.safetensors",
        tmp_path / "cfg.json",
        hook_name="blocks.0.hook",
        model_name="tiny",
    )
    assert sae.load(tmp_path).mean is None
    with pytest.raises(UserError, match="does not say which mean and scale"):
        unfold_normalisation(sae.load(tmp_path))


def test_after_a_warm_start_another_mean_and_scale_change_no_code() -> None:
    rows, _ = two_layers()
    first = trained(rows, SMALL.model_copy(update={"d_sae": 96}))
    moved = MemoryRows(4.0 * rows.values.astype(np.float64) - 11.0)
    begun = fold_normalisation(unfold_normalisation(first).parameters, fit_normaliser(moved))
    x, y = (torch.from_numpy(each.values[:500].astype(np.float32)) for each in (rows, moved))
    expected, found = with_thresholds(first, 0.2).encode(x), with_thresholds(begun, 0.2).encode(y)
    assert float((found - expected).abs().max()) < 0.05 * float(
        expected.max()
    )  # the rows are float16


def test_a_warm_start_keeps_feature_indices_and_learns_its_own_layer() -> None:
    rows, moved = two_layers()
    first = trained(rows)
    begun, alone = trained(moved, warm_start=unfold_normalisation(first)), trained(moved, seed=1)
    used = (first.encode(torch.from_numpy(rows.values.astype(np.float32))) > 0).sum(0).numpy() > 50
    assert np.median(same_number(first, begun)[used]) > 0.85
    assert np.median(same_number(first, alone)[used]) < 0.5
    turned_rows = np.median(same_number(first, begun)[used])
    assert turned_rows < 0.999  # it followed the turn
    own, other = (measure(each, moved, k=3).reconstruction.fvu for each in (begun, alone))
    assert own < 1.1 * other


def test_a_warm_start_copies_learned_thresholds() -> None:
    rows, _ = two_layers()
    settings = LEARNING.model_copy(
        update={"architecture": "jumprelu", "epochs": 1, "learning_rate": 1e-9}
    )
    warm_start = WarmStart(random_parameters(), torch.linspace(0.1, 0.9, 48))
    narrow = MemoryRows(rows.values[:, :16])
    found = trained(narrow, settings.model_copy(update={"d_sae": 48}), warm_start)
    assert torch.allclose(found.threshold, warm_start.threshold, atol=1e-5)


def run_shared(state: Path, fail_at: int | None = None, seconds: float = 60.0) -> list[TrainedSae]:
    state.mkdir(exist_ok=True)
    layers = [
        TrainingLayer(rows, MemoryBatches(rows, share, fail_at if share == 31 else None))
        for rows, share in zip(two_layers(2048), (33, 31), strict=True)
    ]
    dictionary = Dictionary(SMALL, 0, state)
    (trained,) = train(layers, [dictionary], micro_batch=64, checkpoint_seconds=seconds)
    return trained


def content(trained: list[TrainedSae]) -> bytes:
    return b"".join(
        tensor.numpy().tobytes()
        for each in trained
        for tensor in (
            each.sae.W_enc,
            each.sae.b_enc,
            each.sae.W_dec,
            each.sae.b_dec,
            each.sae.threshold,
        )
    )


def test_one_dictionary_of_two_layers_has_the_same_features_in_both(tmp_path: Path) -> None:
    both = run_shared(tmp_path / "state")
    lower, upper = (each.sae for each in both)
    assert same_number(lower, upper) == pytest.approx(1.0, abs=1e-5)
    for rows, each in zip(two_layers(2048), both, strict=True):
        scale = each.sae.metadata["activation_scale"]
        assert fit_normaliser(rows).scale == pytest.approx(scale)
        assert torch.linalg.vector_norm(each.sae.W_dec * scale, dim=1) == pytest.approx(
            1.0, abs=1e-5
        )
        found = measure(each.sae, rows, k=SMALL.k)
        assert found.sparsity.l0 == pytest.approx(SMALL.k)  # each layer has its own threshold
        assert found.reconstruction.fvu < found.random_fvu
    assert lower.metadata["unique_tokens"] == 2 * 2048
    assert both[0].history[-1].tokens == SMALL.epochs * (2048 // 33) * SMALL.batch


def test_a_killed_run_on_two_layers_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = run_shared(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run_shared(tmp_path / "killed", fail_at=40, seconds=0.0)
    assert content(run_shared(tmp_path / "killed")) == content(whole)
