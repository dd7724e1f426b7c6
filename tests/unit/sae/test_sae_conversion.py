"""Pretrained checkpoints compute here what they compute at home."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import fake_saelens
import pytest
import safetensors.torch
import torch
from torch import Tensor

from fetch import fetch_sae
from ghosttrack import sae
from ghosttrack.errors import UserError
from ghosttrack.inputs import models, pretrained
from ghosttrack.runtime import files
from ghosttrack.sae.conversion import convert
from ghosttrack.settings import SaeSettings, SourceSettings

D_MODEL, D_SAE, K = 8, 24, 3
HOOK = "blocks.5.hook_resid_post"
CFG: dict[str, Any] = {
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "metadata": {"hook_name": HOOK},
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 2.0 * draw(500, D_MODEL, seed=9) + draw(D_MODEL, seed=8)
WEIGHTS = {
    "W_enc": draw(D_MODEL, D_SAE, seed=0),
    "b_enc": 0.1 * draw(D_SAE, seed=1),
    "W_dec": draw(D_SAE, D_MODEL, seed=2),
    "b_dec": draw(D_MODEL, seed=3),
}
THRESHOLD = draw(D_SAE, seed=4).abs()
# Weights of a gated SAE beside W_enc, W_dec and b_dec.
GATES = {name: draw(D_SAE, seed=seed) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"), 5)}


def put(
    folder: Path,
    cfg: dict[str, Any],
    weights: dict[str, Tensor],
    name: str = "sae_weights.safetensors",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(weights, folder / name)
    return folder


def converted(folder: Path, *, layer_norm: bool = False) -> sae.Sae:
    return convert(pretrained.read(folder, 5, "resid_post", D_MODEL), layer_norm=layer_norm)


def agrees(found: sae.Sae, code: Tensor, xhat: Tensor, x: Tensor = X) -> None:
    torch.testing.assert_close(found.encode(x), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.decode(code), xhat, rtol=1e-5, atol=1e-4)


def plain(x: Tensor = X) -> Tensor:
    return (x - WEIGHTS["b_dec"]) @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]


def decoded(code: Tensor) -> Tensor:
    return code @ WEIGHTS["W_dec"] + WEIGHTS["b_dec"]


def gated(x: Tensor) -> Tensor:
    """Gate and magnitude apart, as in the paper."""
    y = x @ WEIGHTS["W_enc"]
    open_gate = (y + GATES["b_gate"] > 0).to(y.dtype)
    return open_gate * (y * GATES["r_mag"].exp() + GATES["b_mag"]).relu()


def largest(pre: Tensor) -> Tensor:
    threshold = pre.topk(K, dim=1).values[:, -1:]
    return torch.where(pre >= threshold, pre, 0.0).relu()


@pytest.mark.parametrize("name", ["standard", "jumprelu", "topk", "batchtopk", "gated"])
@pytest.mark.parametrize("bias", [True, False])
def test_each_architecture_of_saelens(name: str, bias: bool, tmp_path: Path) -> None:
    cfg = {
        **CFG,
        "architecture": name,
        "apply_b_dec_to_input": bias,
        **({"k": K} if "topk" in name else {}),
    }
    extra = {
        "jumprelu": {"threshold": THRESHOLD},
        "batchtopk": {"topk_threshold": torch.tensor(1.5, dtype=torch.float64)},
    }
    weights = {**WEIGHTS, **extra.get(name, {})}
    if name == "gated":
        weights = {**{key: WEIGHTS[key] for key in ("W_enc", "W_dec", "b_dec")}, **GATES}
    folder = put(tmp_path, cfg, weights)
    pre = plain() if bias else X @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]
    code = {
        "standard": pre.relu(),
        "jumprelu": pre.relu() * (pre > THRESHOLD),
        "topk": largest(pre),
        "batchtopk": pre * (pre > 1.5),
        "gated": gated(X - WEIGHTS["b_dec"] if bias else X),
    }[name]
    agrees(converted(folder), code, decoded(code))
    assert 0.05 < float((code > 0).double().mean()) < 0.95


def test_pre_activations_times_the_decoder_norms_are_folded_in(tmp_path: Path) -> None:
    folder = put(
        tmp_path,
        {**CFG, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
        WEIGHTS,
    )
    norm = WEIGHTS["W_dec"].norm(dim=1)
    code = largest(plain() * norm)
    agrees(converted(folder), code, decoded(code / norm))


def test_the_one_scale_of_an_unfinished_saelens_run_is_folded_in(tmp_path: Path) -> None:
    cfg = {**CFG, "architecture": "jumprelu", "normalize_activations": "expected_average_only_in"}
    folder = put(tmp_path, cfg, {**WEIGHTS, "threshold": THRESHOLD})
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    pre = plain(0.25 * X)
    code = pre.relu() * (pre > THRESHOLD)
    agrees(converted(folder), code, decoded(code) / 0.25)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')  # folded in already
    code = plain().relu() * (plain() > THRESHOLD)
    agrees(converted(folder), code, decoded(code))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 1, "has_whitening": true}')
    with pytest.raises(UserError, match="whitened activations cannot be read"):
        converted(folder)


def test_activations_that_were_centred_are_centred_in_models_with_layer_norm_only(
    tmp_path: Path,
) -> None:
    metadata = {"hook_name": HOOK, "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = put(tmp_path, {**CFG, "architecture": "standard", "metadata": metadata}, WEIGHTS)
    code = plain(X - X.mean(1, keepdim=True)).relu()
    agrees(converted(folder, layer_norm=True), code, decoded(code))
    agrees(converted(folder, layer_norm=False), plain().relu(), decoded(plain().relu()))


def test_sparsify_computes_the_same_here(tmp_path: Path) -> None:
    cfg = {
        "d_in": D_MODEL,
        "num_latents": D_SAE,
        "k": K,
        "activation": "topk",
        "expansion_factor": 32,
    }
    weights = {
        "encoder.weight": WEIGHTS["W_enc"].T.contiguous(),
        "encoder.bias": WEIGHTS["b_enc"],
        "W_dec": WEIGHTS["W_dec"],
        "b_dec": WEIGHTS["b_dec"],
    }
    code = largest(plain())
    agrees(
        converted(put(tmp_path / "layers.5", cfg, weights, "sae.safetensors")), code, decoded(code)
    )


def test_half_precision_checkpoints_become_float32(tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in WEIGHTS.items()}
    found = converted(put(tmp_path, {**CFG, "architecture": "standard", "dtype": "bfloat16"}, half))
    assert found.W_enc.dtype == torch.float32
    assert torch.equal(found.W_dec, half["W_dec"].to(torch.float32))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"W_dec": None},
            r"W_dec should be \(24, 8\) according to .*cfg\.json, found no such tensor",
        ),
        (
            {"b_enc": torch.zeros(5)},
            r"b_enc should be \(24,\) according to .*cfg\.json, found \(5,\)",
        ),
        (
            {"b_dec": torch.full((D_MODEL,), float("nan"))},
            "b_dec holds NaN or infinity, expected numbers; .*download it again",
        ),
        (
            {"finetuning_scaling_factor": torch.full((D_SAE,), 2.0)},
            "finetuning_scaling_factor is not 1 everywhere",
        ),
        (
            {"W_skip": torch.zeros(D_MODEL, D_MODEL)},
            "the tensor W_skip belongs to no jumprelu autoencoder",
        ),
        ({"b_gate": torch.zeros(D_SAE)}, "the tensor b_gate belongs to no jumprelu autoencoder"),
        ({"scaling_factor": torch.full((D_SAE,), 2.0)}, "scaling_factor is not 1 everywhere"),
        ({"threshold": None}, "threshold should be"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    weights = {**WEIGHTS, "threshold": THRESHOLD, "scaling_factor": torch.ones(D_SAE), **change}
    folder = put(
        tmp_path,
        {**CFG, "architecture": "jumprelu"},
        {name: each for name, each in weights.items() if each is not None},
    )
    with pytest.raises(UserError, match=said):
        converted(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a valid safetensors file"):
        converted(folder)


def test_the_script_writes_a_folder_of_ours_that_says_where_it_came_from(tmp_path: Path) -> None:
    folder = put(
        tmp_path / "given" / HOOK,
        {**CFG, "architecture": "jumprelu"},
        {**WEIGHTS, "threshold": THRESHOLD},
    )
    (tmp_path / "config.json").write_text('{"rms_norm_eps": 1e-5}')
    out = tmp_path / "saes" / "layer_05"
    out.mkdir(parents=True)
    (out / "history.csv").write_text("of an earlier training")
    fetch_sae.main(
        weights=out / "sae_weights.safetensors",
        cfg=out / "cfg.json",
        model_config=tmp_path / "config.json",
        check=tmp_path / "model_check.json",
        layer=5,
        model="tiny",
        sae=SaeSettings(source=str(tmp_path / "given")),
        site="resid_post",
        d_model=D_MODEL,
        source=SourceSettings(kind="random"),
    )
    assert sorted(path.name for path in out.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    code = plain().relu() * (plain() > THRESHOLD)
    found = sae.load(out)
    agrees(found, code, decoded(code))
    assert found.metadata["hook_name"] == HOOK
    assert found.metadata["pretrained"] == {
        "form": "saelens",
        "source": HOOK,
        "revision": None,
        "centred": False,
        "sha256": {
            name: files.sha256_file(folder / name)
            for name in ("cfg.json", "sae_weights.safetensors")
        },
    }
    assert str(tmp_path) not in (out / "cfg.json").read_text()


def test_the_script_converts_an_sae_of_the_library_and_says_what_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = fake_saelens.install(tmp_path / "library", monkeypatch)
    metadata = {"hook_name": HOOK, "model_name": "tiny-gpt2"}
    cfg = {**CFG, "architecture": "gated", "apply_b_dec_to_input": False, "metadata": metadata}
    weights = {**{key: WEIGHTS[key] for key in ("W_enc", "W_dec", "b_dec")}, **GATES}
    fake_saelens.publish(hub, "layer_5/width_32/canonical", cfg, weights)
    (tmp_path / "config.json").write_text('{"rms_norm_eps": 1e-5}')
    fetch_sae.main(
        weights=tmp_path / "sae_weights.safetensors",
        cfg=tmp_path / "cfg.json",
        model_config=tmp_path / "config.json",
        check=tmp_path / "model_check.json",
        layer=5,
        model="tiny-gpt2",
        sae=SaeSettings(source="saelens:tiny-res/layer_{layer}/width_32/canonical"),
        site="resid_post",
        d_model=D_MODEL,
        source=SourceSettings(kind="random"),
    )
    found = sae.load(tmp_path)
    agrees(found, gated(X), decoded(gated(X)))
    assert found.metadata["l0"] == 4.0
    assert found.metadata["training_architecture"] == "gated"
    origin = found.metadata["pretrained"]
    assert origin["source"] == "saelens:tiny-res/layer_5/width_32/canonical"
    assert (origin["repository"], origin["revision"]) == ("owner/tiny-saes", fake_saelens.COMMIT)
    assert set(origin["sha256"]) == {
        f"layer_5/width_32/canonical/{name}" for name in ("cfg.json", "weights.safetensors")
    }
    assert str(tmp_path) not in (tmp_path / "cfg.json").read_text()


def test_the_script_logs_a_model_name_that_it_cannot_compare_and_refuses_one_that_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {"hook_name": HOOK, "model_name": "pythia-70m"}
    put(tmp_path / "given" / HOOK, {**CFG, "metadata": metadata}, WEIGHTS)
    (tmp_path / "config.json").write_text('{"rms_norm_eps": 1e-5}')
    given: dict[str, Any] = {
        "weights": tmp_path / "sae_weights.safetensors",
        "cfg": tmp_path / "cfg.json",
        "layer": 5,
        "model": "mine",
        "model_config": tmp_path / "config.json",
        "check": tmp_path / "model_check.json",
        "sae": SaeSettings(source=str(tmp_path / "given")),
        "site": "resid_post",
        "d_model": D_MODEL,
    }
    with pytest.raises(
        UserError, match="trained on the model pythia-70m, expected openai-community/gpt2"
    ):
        fetch_sae.main(**given, source=SourceSettings(kind="hub", id="openai-community/gpt2"))
    assert not given["cfg"].exists()
    fetch_sae.main(**given, source=SourceSettings(kind="directory", id="models/mine"))
    assert "a model named pythia-70m, and this run uses mine" in caplog.text
    assert given["cfg"].exists()


def test_norms_that_take_out_means_are_told_from_those_that_do_not(tmp_path: Path) -> None:
    for name, content, expected in (
        ("a", '{"layer_norm_epsilon": 1e-5}', True),
        ("b", '{"rms_norm_eps": 1e-5}', False),
    ):
        (tmp_path / name).write_text(content)
        assert models.uses_layer_norm(tmp_path / name) is expected


# A checkpoint of each kind, saved by SAELens as its runs save it, with SAELens' codes and
# reconstructions of X.
PEER = """
import json, sys, safetensors.torch, torch
from pathlib import Path
import sae_lens
from sae_lens import SAE, StandardSAE, StandardSAEConfig, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, GatedSAE, GatedSAEConfig
home = Path(sys.argv[1])
given = safetensors.torch.load_file(home / "given.safetensors")
x = given.pop("x")
common = dict(d_in=x.shape[1], d_sae=len(given["b_enc"]))
makers = {
    "standard": lambda: StandardSAE(StandardSAEConfig(**common)),
    "unbiased": lambda: StandardSAE(StandardSAEConfig(**common, apply_b_dec_to_input=False)),
    "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**common)),
    "gated": lambda: GatedSAE(GatedSAEConfig(**common)),
    "topk": lambda: TopKSAE(TopKSAEConfig(**common, k=3)),
    "rescaled": lambda: TopKSAE(TopKSAEConfig(**common, k=3, rescale_acts_by_decoder_norm=True)),
    "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**common, k=3)),
}
for name, make in makers.items():
    sae = make()
    state = {key: given[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if name == "gated":
        del state["b_enc"]
        state |= {key: given[key] for key in ("b_gate", "b_mag", "r_mag")}
    if name == "jumprelu":
        state["threshold"] = given["threshold"]
    if name == "batchtopk":
        state["topk_threshold"] = torch.tensor(1.5, dtype=torch.double)
    sae.load_state_dict(state)
    sae.cfg.metadata.hook_name = "blocks.5.hook_resid_post"
    folder = home / name
    folder.mkdir()
    if name == "batchtopk":
        sae.save_model(folder)
        (home / "inference").mkdir()
        sae.save_inference_model(home / "inference")
        sae = SAE.load_from_disk(home / "inference")
    else:
        sae.save_model(folder)
    with torch.no_grad():
        code = sae.encode(x)
        safetensors.torch.save_file({"code": code, "xhat": sae.decode(code)}, folder / "computed.safetensors")
"""


@pytest.mark.peers
@pytest.mark.skipif(
    "GHOSTTRACK_PEERS" not in os.environ, reason="GHOSTTRACK_PEERS: a Python that has sae_lens"
)
def test_checkpoints_that_saelens_wrote_compute_the_same_here(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {**WEIGHTS, **GATES, "threshold": THRESHOLD, "x": X}, tmp_path / "given.safetensors"
    )
    subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], "-c", PEER, str(tmp_path)], check=True, timeout=300
    )
    for name in ("standard", "unbiased", "jumprelu", "gated", "topk", "rescaled", "batchtopk"):
        theirs = safetensors.torch.load_file(tmp_path / name / "computed.safetensors")
        agrees(converted(tmp_path / name), theirs["code"], theirs["xhat"])
        assert (theirs["code"] > 0).any()
