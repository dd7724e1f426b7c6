"""The exported sparse autoencoder: encode, decode, and the folder that SAELens reads as it stands.

A folder holds `sae_weights.safetensors` and `cfg.json`. SAELens has two architectures for what is trained here:
"topk", and "jumprelu" for all whose rule is a threshold at inference.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

WEIGHTS_NAME, CFG_NAME = "sae_weights.safetensors", "cfg.json"


@dataclass(frozen=True)
class Sae:
    """An autoencoder for inference, on raw activations: centring and scale are in the weights.

    A feature is active above its threshold; with `k`, only where it is also among the k largest of its row. Shapes: W_enc (d_model, d_sae), b_enc (d_sae,), W_dec (d_sae, d_model), b_dec (d_model,),
    threshold (d_sae,), all float32. Codes are in the scale the autoencoder was trained in
    (mean squared norm of the centred activations = d_model), so they compare across layers.
    `mean`, (d_model,), is what training subtracted, and a part of b_dec; None where nobody wrote it down.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)
    k: int | None = None
    mean: Tensor | None = None

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def preactivations(self, x: Tensor) -> Tensor:
        """What is compared with the threshold: x (rows, d_model), raw activations -> (rows, d_sae)."""
        return torch.addmm(self.b_enc, x.to(self.W_enc.dtype) - self.b_dec, self.W_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations: x (rows, d_model), raw activations -> (rows, d_sae), zero where silent."""
        pre = self.preactivations(x)
        if self.k is not None:
            pre = strongest(pre, self.k)
        return pre.relu_().mul_(pre > self.threshold)

    def decode(self, code: Tensor) -> Tensor:
        """Reconstruction: code (rows, d_sae) -> (rows, d_model), in the units of the raw activations."""
        return torch.addmm(self.b_dec, code, self.W_dec)


def largest(pre: Tensor, k: int) -> Tensor:
    """`pre` (rows, n) where it is among the k largest of its row, else 0."""
    if k >= pre.shape[1]:
        return pre
    top = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter_(1, top.indices, top.values)


def strongest(pre: Tensor, k: int) -> Tensor:
    """`pre` (rows, n) where it is positive and among the k largest of its row, else 0."""
    return largest(pre, k).relu()


_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def save(sae: Sae, weights: Path, cfg: Path, *, hook_name: str, model_name: str) -> None:
    """Write the two files of a SAELens folder, atomically. Same autoencoder, same bytes."""
    names = [name for name in _TENSORS if sae.k is None or name != "threshold"]
    content = {name: getattr(sae, name).detach().contiguous() for name in names}
    with files.atomic_write(weights, "wb") as stream:
        stream.write(safetensors.torch.save(content, _header(sae)))
    described = {
        **({"architecture": "jumprelu"} if sae.k is None else _topk_cfg(sae)),
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": model_name,
            "hook_name": hook_name,
            "hook_head_index": None,
            "prepend_bos": True,
            # TransformerLens would otherwise centre the writing weights and so change the residual stream.
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
            **sae.metadata,
        },
    }
    files.write_json(cfg, described)


# Name in the header of the weight file, where readers of tensors pass it by.
_MEAN = "activation_mean"


def _header(sae: Sae) -> dict[str, str] | None:
    return None if sae.mean is None else {_MEAN: json.dumps(sae.mean.tolist())}


def _read_mean(path: Path) -> Tensor | None:
    with safetensors.safe_open(path, "pt") as opened:
        found = (opened.metadata() or {}).get(_MEAN)
    return None if found is None else torch.tensor(json.loads(found), dtype=torch.float32)


def _topk_cfg(sae: Sae) -> dict[str, Any]:
    if bool((sae.threshold != 0).any()):
        raise ValueError("SAELens knows k or a threshold, not both")
    # The codes keep the scale of training, in which decoder rows had unit norm; the exported rows have another.
    return {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}


def load(directory: Path) -> Sae:
    """Read a SAELens folder; a missing, damaged or ill-fitting file raises a UserError that names it."""
    return load_files(Path(directory) / WEIGHTS_NAME, Path(directory) / CFG_NAME)


def load_files(weights_path: Path, cfg_path: Path) -> Sae:
    """Read the two files of a SAELens folder; see `load`."""
    cfg = files.read_json(cfg_path)
    d_model, d_sae, with_bias, k = _check_cfg(cfg, cfg_path)
    tensors = _read_tensors(weights_path)
    shapes = {
        "W_enc": (d_model, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_model),
        "b_dec": (d_model,),
        **({} if k else {"threshold": (d_sae,)}),
    }
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
        if found != shape:
            raise UserError(
                f"{weights_path}: {name} should be {shape} by {cfg_path.name}, found {found}. "
                "The two files do not belong together: delete the folder and train this layer again"
            )
    weights = {name: tensors[name].to(torch.float32).contiguous() for name in shapes}
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{weights_path}: {name} holds NaN or infinity: delete the folder and train this layer again"
            )
    if (
        not with_bias
    ):  # pre = x W_enc + b_enc, rewritten as (x - b_dec) W_enc + (b_enc + b_dec W_enc)
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if k:
        weights["threshold"] = torch.zeros(d_sae)
        if cfg.get("rescale_acts_by_decoder_norm"):
            _rescale(weights)
    return Sae(
        **weights, metadata=dict(cfg.get("metadata") or {}), k=k, mean=_read_mean(weights_path)
    )


def _rescale(weights: dict[str, Tensor]) -> None:
    """Fold in what SAELens may do with topk: compare and pass on pre-activations times the norm of their decoder rows."""
    norm = torch.linalg.vector_norm(weights["W_dec"], dim=1)  # (d_sae,)
    weights["W_enc"] = weights["W_enc"] * norm
    weights["b_enc"] = weights["b_enc"] * norm
    weights["W_dec"] = weights["W_dec"] / norm.clamp(min=torch.finfo(norm.dtype).tiny).unsqueeze(1)


def _check_cfg(cfg: Any, path: Path) -> tuple[int, int, bool, int | None]:
    if not isinstance(cfg, dict):
        raise UserError(
            f"{path}: expected a JSON object with architecture, d_in, d_sae and dtype, found {type(cfg).__name__}"
        )
    missing = [key for key in ("architecture", "d_in", "d_sae", "dtype") if key not in cfg]
    if missing:
        raise UserError(
            f"{path}: no {', '.join(missing)}; expected the cfg.json of a SAELens folder"
        )
    expected = {
        "architecture": ("jumprelu", "topk"),
        "normalize_activations": ("none",),
        "reshape_activations": ("none",),
    }
    for key, readable in expected.items():
        if (cfg.get(key) or "none") not in readable:
            raise UserError(
                f"{path}: {key} is {cfg.get(key)!r}, only {' and '.join(map(repr, readable))} can be read"
            )
    numbers = ["d_in", "d_sae", *(["k"] if cfg["architecture"] == "topk" else [])]
    for key in numbers:
        if not isinstance(cfg.get(key), int) or cfg[key] < 1:
            raise UserError(f"{path}: {key} is {cfg.get(key)!r}, expected a positive whole number")
    return (
        cfg["d_in"],
        cfg["d_sae"],
        bool(cfg.get("apply_b_dec_to_input", True)),
        cfg["k"] if cfg["architecture"] == "topk" else None,
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run again, its job remakes it") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a valid safetensors file ({error}): delete it and run again"
        ) from None
    return tensors
