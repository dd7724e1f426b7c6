"""The null of a random decoder: it learns an encoder of the same L0, and no directions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_fakes import SMALL, MemoryBatches, MemoryRows, planted

from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime import files
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.random_decoder import null_settings
from ghosttrack.sae.rows import blocks
from ghosttrack.sae.training import Dictionary, TrainedSae, TrainingLayer, train
from ghosttrack.settings import SaeSettings
from sae import fit_random_decoder

STORE, _ = planted(rows=4096, d_model=16, features=32, active=3.0, seed=0)


def fitted(folder: Path, *, frozen: bool, epochs: int = 6) -> TrainedSae:
    folder.mkdir()
    settings = SMALL.model_copy(update={"epochs": epochs, "k": 6})
    layer = TrainingLayer(STORE, MemoryBatches(STORE, settings.batch))
    dictionary = Dictionary(settings, 5, folder, frozen_decoder=frozen)
    ((trained,),) = train([layer], [dictionary], micro_batch=64)
    return trained


def fvu(sae: Sae, store: MemoryRows) -> float:
    x = torch.cat(list(blocks(store)))
    error = (x - sae.decode(sae.encode(x))).pow(2).sum()
    return float(error / (x - x.mean(0)).pow(2).sum())


def test_a_frozen_decoder_keeps_its_directions_and_the_encoder_learns(tmp_path: Path) -> None:
    trained = fitted(tmp_path / "frozen", frozen=True)
    start = Parameters.tied(16, SMALL.d_sae, torch.Generator().manual_seed(5))
    directions = torch.nn.functional.normalize(trained.sae.W_dec, dim=1)
    torch.testing.assert_close(directions, start.W_dec, rtol=1e-5, atol=1e-6)
    x = torch.cat(list(blocks(STORE)))
    assert float((trained.sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(6, abs=0.01)
    assert trained.history[-1].fvu < 0.8 * trained.history[0].fvu


def test_learned_directions_reconstruct_better_than_random_ones(tmp_path: Path) -> None:
    learned, frozen = (
        fvu(fitted(tmp_path / str(each), frozen=each, epochs=12).sae, STORE)
        for each in (False, True)
    )
    assert learned < 0.7 * frozen


def test_the_null_has_the_size_and_the_l0_of_the_trained_sae() -> None:
    zeros = torch.zeros
    trained = Sae(zeros(4, 9), zeros(9), zeros(9, 4), zeros(4), zeros(9))
    settings = null_settings(
        SMALL.model_copy(update={"architecture": "jumprelu"}), trained, 3.6, 40
    )
    assert (settings.d_sae, settings.k, settings.batch) == (9, 4, 40)
    assert settings.architecture == "batchtopk"
    assert null_settings(SMALL, trained, 80.0, 10**6).k == 8
    assert np.isclose(settings.learning_rate or 0.0, SMALL.learning_rate or 0.0)


def null_of(folder: Path, layer: int, settings: SaeSettings) -> torch.Tensor:
    """Decoder rows of the null of a layer, (features, width), from the script; same activations."""
    folder.mkdir(parents=True)
    d_model = 256
    values = np.random.default_rng(0).standard_normal((512, d_model)).astype(np.float32)
    store, manifest = folder / "rows.zarr", folder / "rows.json"
    header = Header("tiny", "w" * 64, layer, "resid_post", 32, "t" * 64)
    with StoreWriter(store, manifest, header, rows=512, d_model=d_model) as writer:
        writer.append(to_block(values))
    trained, trained_cfg = folder / "trained.safetensors", folder / "trained.json"
    zeros = torch.zeros
    blank = Sae(zeros(d_model, 48), zeros(48), zeros(48, d_model), zeros(d_model), zeros(48))
    sae_model.save(blank, trained, trained_cfg, hook_name="h", model_name="tiny")
    quality = folder / "quality.json"
    files.write_json(quality, {"l0": 4.0})
    weights, cfg = folder / "sae_weights.safetensors", folder / "cfg.json"
    fit_random_decoder.main(
        stores=[store],
        manifests=[manifest],
        trained=trained,
        trained_cfg=trained_cfg,
        quality=quality,
        weights=weights,
        cfg=cfg,
        history=folder / "history.csv",
        sae=settings,
        seed=0,
        layer=layer,
        threads=1,
        micro_batch=64,
        resident_mb=64,
        state=folder / "state",
        model="tiny",
    )
    return sae_model.load_files(weights, cfg).W_dec


@pytest.mark.parametrize("dictionaries", ["independent", "shared_init", "warm_start", "shared"])
def test_directions_of_two_layers_are_unrelated(tmp_path: Path, dictionaries: str) -> None:
    settings = SMALL.model_copy(update={"dictionaries": dictionaries, "epochs": 1})
    lower, upper, again = (
        torch.nn.functional.normalize(null_of(tmp_path / name, layer, settings), dim=1)
        for name, layer in (("a", 2), ("b", 4), ("c", 2))
    )
    # The cosine of two random directions has the standard deviation 1 / 16.
    assert float((lower @ upper.T).abs().max()) < 0.4
    torch.testing.assert_close(lower, again)
