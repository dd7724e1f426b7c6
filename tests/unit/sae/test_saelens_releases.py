"""Published releases, in small: SAELens's converters read a fake hub, and ours computes the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs where SAELens is installed. It writes the local cache of a hub in which a commit of each
# repository holds an SAE with small dimensions, in the format of the real release. Then it loads
# every SAE twice: with SAE.from_pretrained, and with our code.
PROGRAM = """
import hashlib, json, sys, warnings
from pathlib import Path

import huggingface_hub, numpy, safetensors.torch, torch
import sae_lens
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from ghosttrack.errors import UserError
from ghosttrack.inputs import pretrained
from ghosttrack.sae.conversion import convert, provenance
from ghosttrack.settings import SaeSettings

warnings.simplefilter("ignore")
HUB, COMMIT, OTHER = Path(sys.argv[1]), "a" * 40, "b" * 40
D, F, K = 8, 24, 3
releases = get_pretrained_saes_directory()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 2 * draw(400, D, seed=9) + draw(D, seed=8)
W_enc, W_dec, b_enc, b_dec = draw(D, F, seed=0), draw(F, D, seed=1), draw(F, seed=2), draw(D, seed=3)
threshold = draw(F, seed=4).abs()


def place(release, sae_id, commit=COMMIT):
    entry = releases[release]
    home = HUB / ("models--" + entry.repo_id.replace("/", "--"))
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(COMMIT)
    folder = home / "snapshots" / commit / entry.saes_map[sae_id]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def shapes_on_disk(repo, file):
    # The library's own function asks the network even for cached files.
    path = huggingface_hub.hf_hub_download(repo, file)
    return {name: list(each.shape) for name, each in safetensors.torch.load_file(path).items()}


loaders.get_safetensors_tensor_shapes = shapes_on_disk


def gemma_scope(folder, sign=1.0):
    folder.mkdir()
    arrays = {"w_enc": sign * W_enc, "w_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    numpy.savez(folder / "params.npz", **{name: each.numpy() for name, each in arrays.items()})


def gemma_scope_2(folder):
    folder.mkdir()
    arrays = {"w_enc": W_enc, "w_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    safetensors.torch.save_file(arrays, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}))


def llama_scope(folder, scale):
    (folder / "checkpoints").mkdir(parents=True)
    arrays = {"encoder.weight": W_enc.T, "decoder.weight": W_dec.T, "encoder.bias": b_enc, "decoder.bias": b_dec}
    arrays = {name: each.to(torch.bfloat16).contiguous() for name, each in arrays.items()}
    safetensors.torch.save_file(arrays, folder / "checkpoints" / "final.safetensors")
    about = {"d_model": D, "d_sae": F, "jump_relu_threshold": 0.4, "hook_point_in": "blocks.5.hook_resid_post",
             "dataset_average_activation_norm": {"in": D**0.5 / scale}}
    (folder / "hyperparams.json").write_text(json.dumps(about))


def sae_lens_5(folder, **cfg):
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "mps", **cfg}))
    arrays = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "scaling_factor": torch.ones(F)}
    safetensors.torch.save_file(arrays, folder / "sae_weights.safetensors")


def dictionary_learning(folder, dict_class, layer, model, **tensors):
    folder.mkdir()
    trainer = {"layer": layer, "dict_class": dict_class, "activation_dim": D, "dict_size": F, "lm_name": model, "k": K}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    torch.save(tensors, folder / "ae.pt")


def ours(source, layer, d_in=D, layer_norm=False, revision=None, site="resid_post"):
    settings = SaeSettings(source=source, revision=revision)
    checkpoint = pretrained.fetched(settings, layer, site, d_in)
    return convert(checkpoint, layer_norm=layer_norm), provenance(checkpoint, settings, layer)


def compare(release, sae_id, pattern, layer, x=X, layer_norm=False, least=0.02):
    theirs = sae_lens.SAE.from_pretrained(release, sae_id)
    found, origin = ours(f"saelens:{release}/{pattern}", layer, layer_norm=layer_norm)
    with torch.no_grad():
        code, mean = theirs.encode(x), (X - x)
        xhat = theirs.decode(code)
    torch.testing.assert_close(found.encode(X), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.decode(code), xhat, rtol=1e-5, atol=1e-5)
    assert least < float((code > 0).double().mean()) < 0.95, (release, float((code > 0).double().mean()))
    assert origin["pretrained"]["revision"] == COMMIT
    assert origin["pretrained"]["repository"] == releases[release].repo_id
    digests = origin["pretrained"]["sha256"]
    for file, digest in digests.items():
        home = HUB / ("models--" + releases[release].repo_id.replace("/", "--"))
        assert hashlib.sha256((home / "snapshots" / COMMIT / file).read_bytes()).hexdigest() == digest
    print("equal", release, theirs.cfg.architecture(), sorted(Path(file).name for file in digests))
    return origin


def refused(source, layer, words, **options):
    try:
        ours(source, layer, **options)
    except UserError as error:
        assert words in str(error) and "\\n" not in str(error), error
        print("refused", error)
    else:
        raise AssertionError(f"{source} was not refused")


# Gemma Scope (npz). The converter knows the real dimensions only; a release may override them.
releases["gemma-scope-2b-pt-res-canonical"].config_overrides = {"d_in": D, "d_sae": F}
for layer in (3, 4):
    gemma_scope(place("gemma-scope-2b-pt-res-canonical", f"layer_{layer}/width_16k/canonical"))
gemma_scope(place("gemma-scope-2b-pt-res-canonical", "layer_4/width_16k/canonical", OTHER), sign=-1.0)
PATTERN = "layer_{layer}/width_16k/canonical"
compare("gemma-scope-2b-pt-res-canonical", "layer_3/width_16k/canonical", PATTERN, 3)
compare("gemma-scope-2b-pt-res-canonical", "layer_4/width_16k/canonical", PATTERN, 4)
source = "saelens:gemma-scope-2b-pt-res-canonical/" + PATTERN
main, at_commit = ours(source, 4)[0], ours(source, 4, revision=OTHER)
torch.testing.assert_close(at_commit[0].W_enc, -main.W_enc)
assert at_commit[1]["pretrained"]["revision"] == OTHER
refused(source, 4, "d_in is 8, but the model's width is 2304", d_in=2304)
refused(source, 4, "expected mlp_out of layer 4", site="mlp_out")
refused(source.replace("{layer}", "3"), 4, "trained on resid_post of layer 3")
refused(source.replace("canonical/", "canonic/"), 4, "knows no release gemma-scope-2b-pt-res-canonic;")
refused(source.replace("16k", "17k"), 4, "holds no SAE layer_4/width_17k/canonical; most similar of 58: layer_4/width_")
refused(source, 5, "the hub cannot be reached")  # not in the cache

# Gemma Scope 2 (safetensors), whose shapes the library asks the network for.
compare_id = "layer_9_width_16k_l0_small"
release = "gemma-scope-2-270m-pt-res"
compare_id = next(name for name in releases[release].saes_map if name.startswith("layer_9_"))
gemma_scope_2(place(release, compare_id))
compare(release, compare_id, compare_id.replace("layer_9_", "layer_{layer}_"), 9)

# Llama Scope: bfloat16, one threshold, a scale of the inputs that is in the registry.
llama_scope(place("llama_scope_lxr_8x", "l5r_8x"), releases["llama_scope_lxr_8x"].norm_scaling_factor["l5r_8x"])
origin = compare("llama_scope_lxr_8x", "l5r_8x", "l{layer}r_8x", 5)
assert origin["l0"] == releases["llama_scope_lxr_8x"].expected_l0["l5r_8x"] > 0

# GPT-2 in the format of SAELens before version 6: standard, centred by TransformerLens.
hook = "blocks.8.hook_resid_pre"
sae_lens_5(place("gpt2-small-res-jb", hook), hook_point=hook, model_name="gpt2-small", normalize_activations=False)
centred = X - X.mean(1, keepdim=True)
origin = compare("gpt2-small-res-jb", hook, "blocks.{next_layer}.hook_resid_pre", 7, centred, layer_norm=True)
assert origin["pretrained"]["centred"] is True
hook = "blocks.8.hook_resid_post"
sae_lens_5(place("gpt2-small-resid-post-v5-32k", hook), hook_point=hook, model_name="gpt2-small", normalize_activations="layer_norm")
refused("saelens:gpt2-small-resid-post-v5-32k/blocks.{layer}.hook_resid_post", 8, "scales every token by a factor")

# The formats of dictionary_learning: gated, topk, BatchTopK (a JumpReLU here) and standard.
dl = {"decoder.weight": W_dec.T.contiguous(), "encoder.weight": W_enc.T.contiguous()}
for release, dict_class, tensors in (
    ("sae_bench_pythia70m_sweep_gated_ctx128_0730", "GatedAutoEncoder",
     {**dl, "decoder_bias": b_dec, "mag_bias": b_enc, "gate_bias": draw(F, seed=5), "r_mag": draw(F, seed=6)}),
    ("sae_bench_pythia70m_sweep_topk_ctx128_0730", "AutoEncoderTopK",
     {**dl, "encoder.bias": b_enc, "b_dec": b_dec, "threshold": torch.tensor(0.7)}),
    ("sae_bench_pythia70m_sweep_standard_ctx128_0712", "AutoEncoder",
     {**dl, "encoder.bias": b_enc, "bias": b_dec}),
    ("qwen2.5-7b-instruct-andyrdt", "BatchTopKSAE",
     {**dl, "encoder.bias": b_enc, "b_dec": b_dec, "threshold": torch.tensor(0.7)}),
):
    sae_id = next(iter(releases[release].saes_map))
    dictionary_learning(place(release, sae_id), dict_class, 3, releases[release].model, **tensors)
    compare(release, sae_id, sae_id, 3)

# Without a scale in the registry, the scale of the inputs is unknown.
releases["llama_scope_lxr_8x"].norm_scaling_factor.clear()
refused("saelens:llama_scope_lxr_8x/l{layer}r_8x", 5, "SAELens knows no scale")

# Every release can be looked up by its lines in the registry.
from ghosttrack.inputs import saelens
from ghosttrack.settings.names import LibraryName

for release, entry in releases.items():
    found = saelens.look_up(LibraryName(release, next(iter(entry.saes_map))), saelens.registry())
    assert (found.repository, found.model, list(found.l0)) == (entry.repo_id, entry.model, list(entry.saes_map)), release
print("releases", len(releases))
"""


@pytest.mark.peers
@pytest.mark.skipif(
    "GHOSTTRACK_PEERS" not in os.environ, reason="GHOSTTRACK_PEERS: a Python that has sae_lens"
)
def test_releases_that_saelens_converts_compute_the_same_here(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], "-c", PROGRAM, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(root / "workflow_scripts"),
            "HF_HUB_CACHE": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal ") == 9
    assert done.stdout.count("refused ") == 8
    assert int(done.stdout.rpartition("releases ")[2]) >= 100
