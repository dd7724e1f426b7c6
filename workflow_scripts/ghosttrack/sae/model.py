"""The exported sparse autoencoder: encode, decode, and a folder that SAELens can read.

The folder has `sae_weights.safetensors` and `cfg.json`. In SAELens' terms the exports are "topk",
or "jumprelu" for all architectures with a threshold at inference.
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
    """An autoencoder for inference on raw activations: centring and scale are in the weights.

    A feature is active above its threshold; with `k`, only if it is also among the k largest of its
    row. Shapes: W_enc (d_model, d_sae), b_enc (d_sae,), W_dec (d_sae, d_model), b_dec (d_model,),
    threshold (d_sae,), all float32. Codes have the scale of training (mean squared norm of the
    centred activations = d_model), so they are comparable across layers. `mean`, (d_model,), is the
    mean that training subtracted, which is a part of b_dec; None if it was not recorded.
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
        """Pre-activations of raw activations: x (rows, d_model) -> (rows, d_sae)."""
        return torch.addmm(self.b_enc, x.to(self.W_enc.dtype) - self.b_dec, self.W_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of raw activations: x (rows, d_model) -> (rows, d_sae), zero where silent."""
        pre = self.preactivations(x)
        if self.k is not None:
            pre = strongest(pre, self.k)
        return pre.relu_().mul_(pre > self.threshold)

    def decode(self, code: Tensor) -> Tensor:
        """Reconstruction in raw units: code (rows, d_sae) -> (rows, d_model)."""
        return torch.addmm(self.b_dec, code, self.W_dec)


def largest(pre: Tensor, k: int) -> Tensor:
    """`pre` (rows, n) with all but the k largest values of each row set to 0."""
    if k >= pre.shape[1]:
        return pre
    top = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter_(1, top.indices, top.values)


def strongest(pre: Tensor, k: int) -> Tensor:
    """`pre` (rows, n) with all but the positive ones of the k largest of each row set to 0."""
    return largest(pre, k).relu()


_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def save(sae: Sae, weights: Path, cfg: Path, *, hook_name: str, model_name: str) -> None:
    """Write the two files of a SAELens folder, atomically. Equal autoencoders give equal bytes."""
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
            # By default TransformerLens centres the weights that write to the residual stream, and
            # so changes it.
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
        mean = (opened.metadata() or {}).get(_MEAN)
    return None if mean is None else torch.tensor(json.loads(mean), dtype=torch.float32)


def _topk_cfg(sae: Sae) -> dict[str, Any]:
    if bool((sae.threshold != 0).any()):
        raise ValueError("SAELens supports k or a threshold, not both")
    # Codes keep the scale of training, where decoder rows have unit norm. Exported rows have not.
    return {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}


def load(directory: Path) -> Sae:
    """Read a SAELens folder.

    Raises:
        UserError: a file is missing, damaged, or does not match the other; the message names it.
    """
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
        shown = tuple(tensors[name].shape) if name in tensors else "no such tensor"
        if shown != shape:
            raise UserError(
                f"{weights_path}: {name} should be {shape} according to {cfg_path.name}, found "
                f"{shown}. The two files do not belong together: delete the folder and train this "
                "layer again"
            )
        if not tensors[name].is_floating_point():
            raise UserError(
                f"{weights_path}: {name} holds {tensors[name].dtype}, expected floating-point "
                "numbers: delete the folder and train this layer again"
            )
    weights = {name: tensors[name].to(torch.float32).contiguous() for name in shapes}
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{weights_path}: {name} holds NaN or infinity: delete the folder and train this "
                "layer again"
            )
    if not with_bias:
        # pre = x W_enc + b_enc, rewritten as (x - b_dec) W_enc + (b_enc + b_dec W_enc)
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if k:
        weights["threshold"] = torch.zeros(d_sae)
        if cfg.get("rescale_acts_by_decoder_norm"):
            _rescale(weights)
    return Sae(
        **weights, metadata=dict(cfg.get("metadata") or {}), k=k, mean=_read_mean(weights_path)
    )


def _rescale(weights: dict[str, Tensor]) -> None:
    """Fold in SAELens' optional factor of topk: pre-activations times their decoder row's norm."""
    norm = torch.linalg.vector_norm(weights["W_dec"], dim=1)  # (d_sae,)
    weights["W_enc"] = weights["W_enc"] * norm
    weights["b_enc"] = weights["b_enc"] * norm
    weights["W_dec"] = weights["W_dec"] / norm.clamp(min=torch.finfo(norm.dtype).tiny).unsqueeze(1)


def _check_cfg(cfg: Any, path: Path) -> tuple[int, int, bool, int | None]:
    if not isinstance(cfg, dict):
        raise UserError(
            f"{path}: expected a JSON object with architecture, d_in, d_sae and dtype, found "
            f"{type(cfg).__name__}"
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
                f"{path}: {key} is {cfg.get(key)!r}, only {' and '.join(map(repr, readable))} can "
                "be read"
            )
    if not isinstance(cfg.get("metadata") or {}, dict):
        raise UserError(f"{path}: metadata is {cfg['metadata']!r}, expected a JSON object")
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
        raise UserError(f"{path} is missing: run again to train it") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a valid safetensors file ({error}): delete it and run again"
        ) from None
    return tensors
