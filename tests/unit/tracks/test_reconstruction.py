"""Reconstruction errors of tokens, and their metrics over layers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ghosttrack.sae import Sae
from ghosttrack.sae.model import save
from ghosttrack.tracks.reconstruction import NAMES, measure
from ghosttrack.tracks.token_errors import token_errors


def test_metrics_worked_by_hand() -> None:
    values = measure(
        np.array([[0.1, 0.4, 0.2, 0.6, 0.5], [0.2, 0.2, np.nan, 0.2, 0.2]], np.float32)
    )
    assert dict(zip(NAMES, values[0], strict=True)) == pytest.approx(
        {
            "reconstruction_mean": 0.36,
            "reconstruction_std": np.std([0.1, 0.4, 0.2, 0.6, 0.5]),
            "reconstruction_max": 0.6,
            "reconstruction_min": 0.1,
            "reconstruction_final": 0.5,
            "reconstruction_growth": 0.4,
            "reconstruction_argmax": 0.75,
            "reconstruction_late_early": 0.55 / 0.25,
        },
        rel=1e-6,
    )
    assert np.isnan(values[1]).all()


def test_one_layer_has_no_growth() -> None:
    (values,) = measure(np.array([[0.25]], np.float32))
    assert values.tolist() == [0.25, 0.0, 0.25, 0.25, 0.25, 0.0, 0.0, 1.0]


class MemoryStore:
    def __init__(self, values: np.ndarray, massive: list[int]) -> None:
        self.values, self.rows, self.massive = (
            values.astype(np.float16),
            len(values),
            np.zeros(len(values), bool),
        )
        self.massive[massive] = True
        self.held = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        self.held += stop - start
        return self.values[start:stop]

    def release(self) -> None:
        self.held = 0


def test_the_error_is_the_unexplained_fraction(tmp_path: Path) -> None:
    # The SAE reconstructs the first of two coordinates, about a bias of (1, 2).
    bias = torch.tensor([1.0, 2.0])
    eye = torch.tensor([[1.0], [0.0]])
    sae = Sae(eye, torch.zeros(1), eye.T.clone(), bias, torch.zeros(1))
    for layer in ("layer_01", "layer_02"):
        (tmp_path / layer).mkdir()
        paths = [tmp_path / layer / name for name in ("sae_weights.safetensors", "cfg.json")]
        save(sae, *paths, hook_name="h", model_name="m")
    rows = np.array([[4.0, 2.0], [1.0, 5.0], [4.0, 6.0], [-2.0, 2.0]])
    weights = [tmp_path / layer / "sae_weights.safetensors" for layer in ("layer_01", "layer_02")]
    stores = [MemoryStore(rows, []), MemoryStore(rows[::-1].copy(), [1])]
    errors = token_errors(stores, weights)
    assert [store.held for store in stores] == [0, 0]
    # (3, 0) is reconstructed, (0, 3) is not; of (3, 4), 9 of 25 are. (-3, 0) is below the
    # threshold.
    expected = np.array([0.0, 1.0, 16 / 25, 1.0])
    assert errors[:, 0] == pytest.approx([0.0, np.nan, 16 / 25, 1.0], nan_ok=True)
    assert errors[[0, 2, 3], 1] == pytest.approx(expected[::-1][[0, 2, 3]])
