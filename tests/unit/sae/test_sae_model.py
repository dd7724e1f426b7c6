"""The export equals the training form, is a SAELens folder, and damaged files are refused."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sae_fakes import MemoryRows

from ghosttrack import sae
from ghosttrack.errors import UserError
from ghosttrack.sae import model
from ghosttrack.sae.export import calibrate, fold_normalisation
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.rows import Normaliser, blocks

D_MODEL, D_SAE, K = 12, 40, 5


def exported(seed: int = 0) -> tuple[sae.Sae, Parameters, Normaliser, MemoryRows]:
    generator = torch.Generator().manual_seed(seed)
    tied = Parameters.tied(D_MODEL, D_SAE, generator)
    biases = (0.1 * torch.randn(size, generator=generator) for size in (D_SAE, D_MODEL))
    parameters = Parameters(tied.W_enc * 0.7, tied.W_dec, *biases)
    normaliser = Normaliser(30.0 * torch.randn(D_MODEL, generator=generator), 0.25)
    values = normaliser.mean.numpy() + 4.0 * np.random.default_rng(seed).standard_normal(
        (9000, D_MODEL)
    )
    return fold_normalisation(parameters, normaliser), parameters, normaliser, MemoryRows(values)


def test_the_exported_form_encodes_and_decodes_as_the_training_form() -> None:
    found, (W_enc, W_dec, b_enc, b_dec), normaliser, store = exported()
    x = next(blocks(store))
    y = normaliser(x)
    code = ((y - b_dec) @ W_enc.t() + b_enc).relu()
    torch.testing.assert_close(found.encode(x), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        normaliser(found.decode(code)), code @ W_dec + b_dec, rtol=1e-4, atol=1e-4
    )


def test_the_threshold_gives_exactly_k_active_features_on_average() -> None:
    found, _, _, store = exported()
    calibrated = calibrate(found, store, K)
    active = sum(int((calibrated.encode(x) > 0).sum()) for x in blocks(store))
    assert active == K * store.rows
    assert len(set(calibrated.threshold.tolist())) == 1
    sampled = calibrate(found, store, K, at_most=4096)
    assert int((sampled.encode(next(blocks(store))) > 0).sum()) == K * 4096


def test_the_threshold_is_zero_when_too_few_preactivations_are_positive() -> None:
    found, _, _, store = exported()
    assert float(calibrate(found, store, D_SAE - 1).threshold.max()) == 0.0


def test_only_values_above_the_threshold_pass_and_they_pass_unchanged() -> None:
    eye, zero = torch.eye(3), torch.zeros(3)
    small = sae.Sae(eye, zero, eye, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
    code = small.encode(torch.tensor([[2.0, 2.0, 4.0], [0.0, 2.5, 3.0]]))
    assert code.tolist() == [[1.0, 0.0, 3.0], [0.0, 1.5, 0.0]]
    assert small.decode(code).tolist() == [[2.0, 1.0, 4.0], [1.0, 2.5, 1.0]]


def save(folder: Path, found: sae.Sae) -> None:
    model.save(
        found,
        folder / model.WEIGHTS_NAME,
        folder / model.CFG_NAME,
        hook_name="blocks.3.hook_resid_post",
        model_name="m",
    )


def test_with_k_only_the_k_largest_of_a_row_pass() -> None:
    eye, zero = torch.eye(4), torch.zeros(4)
    small = sae.Sae(eye, zero, eye, zero, zero, k=2)
    code = small.encode(
        torch.tensor([[4.0, 1.0, 2.0, 3.0], [-1.0, 5.0, -2.0, -3.0], [2.0, 2.0, 2.0, 2.0]])
    )
    assert code[:2].tolist() == [[4.0, 0.0, 0.0, 3.0], [0.0, 5.0, 0.0, 0.0]]
    assert sorted(code[2].tolist()) == [0.0, 0.0, 2.0, 2.0]


def test_a_topk_folder_says_so_and_comes_back(tmp_path: Path) -> None:
    found, _, _, store = exported()
    save(tmp_path, replace(found, k=K))
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"], cfg["rescale_acts_by_decoder_norm"]) == (
        "topk",
        K,
        False,
    )
    assert set(safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")) == {
        "W_enc",
        "b_enc",
        "W_dec",
        "b_dec",
    }
    loaded, x = sae.load(tmp_path), next(blocks(store))
    assert torch.equal(loaded.encode(x), replace(found, k=K).encode(x))
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "rescale_acts_by_decoder_norm": True}))
    norm = found.W_dec.norm(dim=1)
    rescaled = sae.load(tmp_path)
    expected = model.strongest(found.preactivations(x) * norm, K)  # as SAELens has it
    torch.testing.assert_close(rescaled.encode(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        rescaled.decode(expected), expected / norm @ found.W_dec + found.b_dec, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("k", [None, K])
@pytest.mark.peers
@pytest.mark.skipif(
    "GHOSTTRACK_PEERS" not in os.environ, reason="GHOSTTRACK_PEERS: a Python that has sae_lens"
)
def test_saelens_reads_the_folder_and_computes_the_same(k: int | None, tmp_path: Path) -> None:
    found, _, _, store = exported()
    found = replace(found, k=k) if k else calibrate(found, store, K)
    save(tmp_path, found)
    x = next(blocks(store))
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    program = """
import sys, safetensors.torch
from sae_lens import SAE
folder = sys.argv[1]
sae = SAE.load_from_disk(folder)
code = sae.encode(safetensors.torch.load_file(folder + "/x.safetensors")["x"])
safetensors.torch.save_file({"code": code.detach().to_dense(), "xhat": sae.decode(code).detach()}, folder + "/out.safetensors")
"""
    subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], "-c", program, str(tmp_path)], check=True, timeout=300
    )
    theirs = safetensors.torch.load_file(tmp_path / "out.safetensors")
    code = found.encode(x)
    torch.testing.assert_close(theirs["code"], code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs["xhat"], found.decode(code), rtol=1e-5, atol=1e-4)


def test_save_and_load_give_the_same_autoencoder_and_the_same_bytes(tmp_path: Path) -> None:
    found = exported()[0]
    save(tmp_path / "a", found)
    save(tmp_path / "b", found)
    loaded = sae.load(tmp_path / "a")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    for name in (model.WEIGHTS_NAME, model.CFG_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_folder_has_what_saelens_asks_for(tmp_path: Path) -> None:
    save(tmp_path, exported()[0])
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert {key: cfg[key] for key in ("architecture", "d_in", "d_sae", "dtype")} == {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
    }
    assert cfg["apply_b_dec_to_input"] is True
    assert cfg["normalize_activations"] == cfg["reshape_activations"] == "none"
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    tensors = safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "W_enc": ((D_MODEL, D_SAE), torch.float32),
        "b_enc": ((D_SAE,), torch.float32),
        "W_dec": ((D_SAE, D_MODEL), torch.float32),
        "b_dec": ((D_MODEL,), torch.float32),
        "threshold": ((D_SAE,), torch.float32),
    }


def test_a_folder_that_does_not_subtract_the_bias_from_the_input_is_read_as_meant(
    tmp_path: Path,
) -> None:
    found, _, _, store = exported()
    save(tmp_path, found)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "apply_b_dec_to_input": False}))
    x = next(blocks(store))
    expected = (x @ found.W_enc + found.b_enc).relu()
    torch.testing.assert_close(sae.load(tmp_path).encode(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "gated", "architecture is 'gated', only 'jumprelu' and 'topk'"),
        ("normalize_activations", "layer_norm", "normalize_activations is 'layer_norm'"),
        ("d_sae", "many", "d_sae is 'many'"),
        ("d_sae", 41, r"W_enc should be \(12, 41\) according to cfg.json, found \(12, 40\)"),
        ("dtype", None, "no dtype"),
    ],
)
def test_a_cfg_that_does_not_fit_is_named(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    save(tmp_path, exported()[0])
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg[key] = value
    if value is None:
        del cfg[key]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(UserError, match=message):
        sae.load(tmp_path)


def test_missing_damaged_and_infinite_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cfg\.json is missing"):
        sae.load(tmp_path)
    found = exported()[0]
    save(tmp_path, found)
    weights = tmp_path / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        sae.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"sae_weights\.safetensors is missing"):
        sae.load(tmp_path)
    found.b_dec[0] = float("nan")
    save(tmp_path, found)
    with pytest.raises(UserError, match="b_dec holds NaN"):
        sae.load(tmp_path)
