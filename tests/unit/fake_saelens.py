"""A small stand-in for the SAELens library: its registry, one converter, and a hub on disk."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

COMMIT = "c" * 40
# One SAE has no known L0, as in the registry of SAELens.
REGISTRY = """\
# releases
tiny-res:
  conversion_func: null
  model: tiny-gpt2
  repo_id: owner/tiny-saes
  saes:
  - id: layer_0/width_32/canonical
    path: l0
    l0: 7.0
  - id: layer_1/width_32/canonical
    path: l1
  - id: layer_2/width_32/canonical
    path: l2
  - id: layer_3/width_32/canonical
    path: l3
  - id: layer_5/width_32/canonical
    path: l5
    l0: 4.0

other-res:
  model: owner/other
  repo_id: owner/other-saes
  saes:
    - id: layer_1
      path: l1
"""
LIBRARY = """\
import json

from sae_lens.loading import pretrained_sae_loaders as loaders

__version__ = "6.54.12"


class Loaded:
    def __init__(self, cfg, tensors):
        self.cfg, self.tensors = self, tensors
        self.to_dict, self.state_dict = lambda: dict(cfg), lambda: dict(tensors)


class SAE:
    @classmethod
    def from_pretrained_with_cfg_and_sparsity(cls, release, sae_id, device, dtype):
        assert (device, dtype) == ("cpu", "float32")
        import safetensors.torch

        home, file = "owner/tiny-saes", "weights.safetensors"
        about = loaders.hf_hub_download(home, f"{sae_id}/cfg.json", force_download=False)
        with open(about) as stream:
            cfg = json.load(stream)
        weights = loaders.hf_hub_download(repo_id=home, filename=file, subfolder=sae_id)
        shapes = loaders.get_safetensors_tensor_shapes(home, f"{sae_id}/{file}")
        assert shapes["W_dec"] == [cfg["d_sae"], cfg["d_in"]], shapes
        loaders.hf_hub_download("owner/tiny-saes", f"{sae_id}/sparsity.safetensors")
        return Loaded(cfg, safetensors.torch.load_file(weights)), cfg, None
"""
LOADERS = """\
from pathlib import Path


def hf_hub_download(repo_id, filename, subfolder=None, revision=None, force_download=False):
    path = Path(__file__).parents[2] / "hub" / str(revision) / (subfolder or "") / filename
    if not path.exists():
        raise FileNotFoundError(f"no {filename}")
    return str(path)


def get_safetensors_tensor_shapes(repo_id, filename):
    raise AssertionError("asks the network, whatever the commit")
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "6.54.12") -> Path:
    """Put the stand-in on the import path; returns its hub, where `publish` writes SAEs."""
    import huggingface_hub

    write(folder, version)
    monkeypatch.syspath_prepend(folder)
    for name in ("sae_lens", "sae_lens.loading", "sae_lens.loading.pretrained_sae_loaders"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is taken out after the test
        del sys.modules[name]

    def about(*_: Any, revision: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(sha=revision or COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", about)
    return folder / "hub"


def write(folder: Path, version: str = "6.54.12") -> None:
    """Write the package."""
    package = folder / "sae_lens"
    (package / "loading").mkdir(parents=True)
    (package / "__init__.py").write_text(LIBRARY.replace("6.54.12", version))
    (package / "loading" / "__init__.py").touch()
    (package / "loading" / "pretrained_sae_loaders.py").write_text(LOADERS)
    (package / "pretrained_saes.yaml").write_text(REGISTRY)


def publish(
    hub: Path,
    sae_id: str,
    cfg: dict[str, Any],
    weights: "dict[str, Tensor]",
    revision: str = COMMIT,
) -> Path:
    """Write an SAE to the hub at a commit; returns its folder."""
    import safetensors.torch

    folder = hub / revision / sae_id
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (folder / "sparsity.safetensors").touch()
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    return folder
