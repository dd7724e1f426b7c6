"""Compare SAELens's converters with ours on a hub on disk: `python saelens_releases.py HUB`.

Runs where SAELens is installed, with HF_HUB_CACHE=HUB and HF_HUB_OFFLINE=1. It writes the local
cache of a hub: a commit of each repository holds an SAE with small dimensions, in the format of the
real release. Then every SAE is loaded twice: with SAE.from_pretrained, and with our code.
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.inputs import pretrained, saelens
from ghosttrack.sae.conversion import convert, provenance
from ghosttrack.sae.model import Sae
from ghosttrack.settings import SaeSettings
from ghosttrack.settings.names import LibraryName

COMMIT, OTHER = "a" * 40, "b" * 40
D, F, K = 8, 24, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 2 * draw(400, D, seed=9) + draw(D, seed=8)
W_ENC, W_DEC, B_ENC, B_DEC = (
    draw(D, F, seed=0),
    draw(F, D, seed=1),
    draw(F, seed=2),
    draw(D, seed=3),
)
GEMMA = {
    "w_enc": W_ENC,
    "w_dec": W_DEC,
    "b_enc": B_ENC,
    "b_dec": B_DEC,
    "threshold": draw(F, seed=4).abs(),
}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def gemma_scope(folder: Path, sign: float = 1.0) -> None:
    folder.mkdir()
    weights = {**GEMMA, "w_enc": sign * W_ENC}
    arrays: dict[str, Any] = {name: each.numpy() for name, each in weights.items()}
    np.savez(folder / "params.npz", **arrays)


def gemma_scope_2(folder: Path) -> None:
    folder.mkdir()
    safetensors.torch.save_file(GEMMA, folder / "params.safetensors")
    about = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
    write_json(folder / "config.json", about)


def llama_scope(folder: Path, scale: float) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    arrays = {
        "encoder.weight": W_ENC.T,
        "decoder.weight": W_DEC.T,
        "encoder.bias": B_ENC,
        "decoder.bias": B_DEC,
    }
    half = {name: each.to(torch.bfloat16).contiguous() for name, each in arrays.items()}
    safetensors.torch.save_file(half, folder / "checkpoints" / "final.safetensors")
    about = {
        "d_model": D,
        "d_sae": F,
        "jump_relu_threshold": 0.4,
        "hook_point_in": "blocks.5.hook_resid_post",
        "dataset_average_activation_norm": {"in": D**0.5 / scale},
    }
    write_json(folder / "hyperparams.json", about)


def saelens_5(folder: Path, **cfg: Any) -> None:
    """As SAELens wrote it before version 6."""
    folder.mkdir()
    about = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "mps"}
    write_json(folder / "cfg.json", {**about, "model_name": "gpt2-small", **cfg})
    arrays = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
    safetensors.torch.save_file(
        {**arrays, "scaling_factor": torch.ones(F)}, folder / "sae_weights.safetensors"
    )


def dictionary_learning(folder: Path, kind: str, model: str, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    trainer = {"layer": 3, "dict_class": kind, "activation_dim": D, "dict_size": F, "k": K}
    about = {"trainer": {**trainer, "lm_name": model}, "buffer": {"ctx_len": 128}}
    write_json(folder / "config.json", about)
    weights = {"decoder.weight": W_DEC.T.contiguous(), "encoder.weight": W_ENC.T.contiguous()}
    torch.save({**weights, **tensors}, folder / "ae.pt")


DICTIONARY_LEARNING = (
    (
        "sae_bench_pythia70m_sweep_gated_ctx128_0730",
        "GatedAutoEncoder",
        {
            "decoder_bias": B_DEC,
            "mag_bias": B_ENC,
            "gate_bias": draw(F, seed=5),
            "r_mag": draw(F, seed=6),
        },
    ),
    (
        "sae_bench_pythia70m_sweep_topk_ctx128_0730",
        "AutoEncoderTopK",
        {"encoder.bias": B_ENC, "b_dec": B_DEC, "threshold": torch.tensor(0.7)},
    ),
    (
        "sae_bench_pythia70m_sweep_standard_ctx128_0712",
        "AutoEncoder",
        {"encoder.bias": B_ENC, "bias": B_DEC},
    ),
    (
        "qwen2.5-7b-instruct-andyrdt",
        "BatchTopKSAE",
        {"encoder.bias": B_ENC, "b_dec": B_DEC, "threshold": torch.tensor(0.7)},
    ),
)


def ours(
    source: str, layer: int, *, d_in: int = D, site: str = "resid_post", **options: Any
) -> tuple[Sae, dict[str, Any]]:
    """The SAE by our code, and what it says about its origin."""
    settings = SaeSettings(source=source, revision=options.get("revision"))
    checkpoint = pretrained.fetched(settings, layer, site, d_in)
    found = convert(checkpoint, layer_norm=options.get("layer_norm", False))
    return found, provenance(checkpoint, settings, layer)


def refused(source: str, layer: int, words: str, **options: Any) -> None:
    """Check that our code refuses an SAE in one line with these words."""
    said = ""
    try:
        ours(source, layer, **options)
    except UserError as error:
        said = str(error)
    assert words in said, said or f"{source} was not refused"
    assert "\n" not in said, said
    print("refused", said)


class Comparison:
    """The installed SAELens, and a hub that is a local cache."""

    def __init__(self, hub: Path) -> None:
        import sae_lens
        from sae_lens.loading import pretrained_sae_loaders as loaders
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        def shapes(repository: str, file: str) -> dict[str, list[int]]:
            path = huggingface_hub.hf_hub_download(repository, file)
            return {
                name: list(each.shape) for name, each in safetensors.torch.load_file(path).items()
            }

        # The library's function asks the network even for cached files.
        loaders.get_safetensors_tensor_shapes = shapes
        self.library: Any = sae_lens
        self.hub, self.releases = hub, get_pretrained_saes_directory()

    def home(self, release: str) -> Path:
        """The cache of a release's repository."""
        repository = str(self.releases[release].repo_id)
        return self.hub / ("models--" + repository.replace("/", "--"))

    def place(self, release: str, sae_id: str, commit: str = COMMIT) -> Path:
        """The folder of an SAE, not yet made."""
        home = self.home(release)
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(COMMIT)
        folder = home / "snapshots" / commit / str(self.releases[release].saes_map[sae_id])
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def equal(
        self, release: str, sae_id: str, layer: int, pattern: str = "", *, centred: bool = False
    ) -> dict[str, Any]:
        """Check codes, reconstructions and origin; returns what our code says about the origin."""
        theirs = self.library.SAE.from_pretrained(release, sae_id)
        source = f"saelens:{release}/{pattern or sae_id}"
        found, about = ours(source, layer, layer_norm=centred)
        with torch.no_grad():
            code = theirs.encode(X - X.mean(1, keepdim=True) if centred else X)
            xhat = theirs.decode(code)
        torch.testing.assert_close(found.encode(X), code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.decode(code), xhat, rtol=1e-5, atol=1e-5)
        assert 0.02 < float((code > 0).double().mean()) < 0.95, release
        origin = about["pretrained"]
        assert origin["revision"] == COMMIT
        assert origin["repository"] == self.releases[release].repo_id
        assert origin["centred"] is centred
        for file, digest in origin["sha256"].items():
            content = (self.home(release) / "snapshots" / COMMIT / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest, file
        read = sorted(Path(file).name for file in origin["sha256"])
        print("equal", release, theirs.cfg.architecture(), *read)
        return about

    def gemma(self) -> None:
        release, middle = "gemma-scope-2b-pt-res-canonical", "width_16k/canonical"
        # The converter knows the real dimensions only; a release may override them.
        self.releases[release].config_overrides = {"d_in": D, "d_sae": F}
        source = f"saelens:{release}/layer_{{layer}}/{middle}"
        for layer in (3, 4):
            gemma_scope(self.place(release, f"layer_{layer}/{middle}"))
            self.equal(release, f"layer_{layer}/{middle}", layer, f"layer_{{layer}}/{middle}")
        gemma_scope(self.place(release, f"layer_4/{middle}", OTHER), sign=-1.0)
        newest, (pinned, about) = ours(source, 4)[0], ours(source, 4, revision=OTHER)
        torch.testing.assert_close(pinned.W_enc, -newest.W_enc)
        assert about["pretrained"]["revision"] == OTHER
        refused(source, 4, "d_in is 8, but the model's width is 2304", d_in=2304)
        refused(source, 4, "expected mlp_out of layer 4", site="mlp_out")
        refused(source.replace("{layer}", "3"), 4, "trained on resid_post of layer 3")
        refused(source.replace("canonical/", "canonic/"), 4, f"knows no release {release[:-2]};")
        refused(source.replace("16k", "17k"), 4, "layer_4/width_17k/canonical; most similar of 58")
        refused(source, 5, "the hub cannot be reached")  # not in the cache
        release = "gemma-scope-2-270m-pt-res"
        sae_id = next(name for name in self.releases[release].saes_map if "layer_9_" in name)
        gemma_scope_2(self.place(release, sae_id))
        self.equal(release, sae_id, 9, sae_id.replace("layer_9_", "layer_{layer}_"))

    def llama(self) -> None:
        release, sae_id = "llama_scope_lxr_8x", "l5r_8x"
        entry = self.releases[release]
        llama_scope(self.place(release, sae_id), entry.norm_scaling_factor[sae_id])
        about = self.equal(release, sae_id, 5, "l{layer}r_8x")
        assert about["l0"] == entry.expected_l0[sae_id] > 0
        entry.norm_scaling_factor.clear()
        refused(f"saelens:{release}/{sae_id}", 5, "SAELens knows no scale")

    def gpt2(self) -> None:
        release, hook = "gpt2-small-res-jb", "blocks.8.hook_resid_pre"
        saelens_5(self.place(release, hook), hook_point=hook, normalize_activations=False)
        self.equal(release, hook, 7, "blocks.{next_layer}.hook_resid_pre", centred=True)
        release, hook = "gpt2-small-resid-post-v5-32k", "blocks.8.hook_resid_post"
        saelens_5(self.place(release, hook), hook_point=hook, normalize_activations="layer_norm")
        refused(f"saelens:{release}/{hook}", 8, "scales every token by a factor")

    def dictionaries(self) -> None:
        for release, kind, tensors in DICTIONARY_LEARNING:
            entry = self.releases[release]
            sae_id = next(iter(entry.saes_map))
            dictionary_learning(self.place(release, sae_id), kind, entry.model, tensors)
            self.equal(release, sae_id, 3)

    def registry(self) -> None:
        """Every release can be looked up by its lines in the registry."""
        path = saelens.registry()
        assert path is not None
        for release, entry in self.releases.items():
            ids = list(entry.saes_map)
            found = saelens.look_up(LibraryName(release, ids[0]), path)
            assert (found.repository, found.model) == (entry.repo_id, entry.model), release
            assert list(found.l0) == ids, release
        print("releases", len(self.releases))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    comparison = Comparison(Path(sys.argv[1]))
    comparison.gemma()
    comparison.llama()
    comparison.gpt2()
    comparison.dictionaries()
    comparison.registry()
