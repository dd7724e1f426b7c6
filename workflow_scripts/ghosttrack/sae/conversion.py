"""Convert a pretrained SAELens or sparsify checkpoint to this workflow's autoencoder.

Scales, centring and gates are folded into the weights.
"""

from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.inputs.pretrained import SCALER, Pretrained, read_object
from ghosttrack.runtime import files
from ghosttrack.sae.model import Sae
from ghosttrack.settings import SaeSettings

# sparsify's tensor names and ours. sparsify stores its encoder with one row per feature.
_SPARSIFY = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# One factor per feature, in files of SAELens before version 6.
_FINETUNED = {"scaling_factor", "finetuning_scaling_factor"}


def convert(checkpoint: Pretrained, *, layer_norm: bool) -> Sae:
    """The autoencoder on raw activations of the Hugging Face model.

    The computation is float64, the weights of the result float32.

    Args:
        checkpoint: the pretrained checkpoint.
        layer_norm: whether the model's norms subtract each token's mean; TransformerLens centres
            the weights of such models only.
    Raises:
        UserError: a tensor is missing, unknown, not finite, or has another shape; the message names
            the file and the tensor.
    """
    weights = _read(checkpoint)
    if not checkpoint.cfg.get("apply_b_dec_to_input", True):
        # pre = x W_enc + b_enc, rewritten as (x - b_dec) W_enc + (b_enc + b_dec W_enc)
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if checkpoint.cfg.get("rescale_acts_by_decoder_norm"):
        _rescale(weights)
    if (scale := _scale(checkpoint)) is not None:
        # It was trained on scale * x. Codes and thresholds do not change.
        weights |= {
            "W_enc": weights["W_enc"] * scale,
            "W_dec": weights["W_dec"] / scale,
            "b_dec": weights["b_dec"] / scale,
        }
    if layer_norm and checkpoint.centred:
        _centre(weights)
    single = {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}
    return Sae(**single, metadata={}, k=checkpoint.k)


def _read(checkpoint: Pretrained) -> dict[str, Tensor]:
    """The tensors of an Sae, float64."""
    stored = _stored(checkpoint)
    if checkpoint.form == "sparsify":
        stored = {_SPARSIFY.get(name, name): tensor for name, tensor in stored.items()}
        if "W_enc" in stored:
            stored["W_enc"] = stored["W_enc"].T
    for name in _FINETUNED & set(stored):
        if not torch.allclose(stored[name], torch.ones_like(stored[name])):
            raise UserError(
                f"{checkpoint.weights}: {name} is not 1 everywhere; fine-tuned scales cannot be "
                "read"
            )
    shapes = {
        "W_enc": (checkpoint.d_in, checkpoint.d_sae),
        "b_enc": (checkpoint.d_sae,),
        "W_dec": (checkpoint.d_sae, checkpoint.d_in),
        "b_dec": (checkpoint.d_in,),
        **({"threshold": (checkpoint.d_sae,)} if checkpoint.architecture == "jumprelu" else {}),
        **({"topk_threshold": ()} if checkpoint.architecture == "batchtopk" else {}),
    }
    if checkpoint.architecture == "gated":
        del shapes["b_enc"]
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (checkpoint.d_sae,))
    if unknown := sorted(set(stored) - set(shapes) - _FINETUNED):
        raise UserError(
            f"{checkpoint.weights}: the tensor {unknown[0]} belongs to no "
            f"{checkpoint.architecture} autoencoder, expected {', '.join(shapes)}; check "
            f"architecture in {checkpoint.folder.name}/cfg.json"
        )
    for name, shape in shapes.items():
        shown = tuple(stored[name].shape) if name in stored else "no such tensor"
        if shown != shape:
            raise UserError(
                f"{checkpoint.weights}: {name} should be {shape} according to "
                f"{checkpoint.folder.name}/cfg.json, found {shown}"
            )
        if not bool(torch.isfinite(stored[name]).all()):
            raise UserError(
                f"{checkpoint.weights}: {name} holds NaN or infinity, expected numbers; the file "
                "is damaged or its training diverged: download it again and compare its SHA-256 "
                "with the published one, or choose another checkpoint"
            )
    weights = {name: stored[name].to(torch.float64) for name in shapes}
    if checkpoint.architecture == "gated":
        _ungate(weights)
    # relu and topk have a threshold of 0. A batchtopk training folder has one inference threshold.
    weights.setdefault(
        "threshold",
        torch.zeros(checkpoint.d_sae, dtype=torch.float64) + weights.pop("topk_threshold", 0.0),
    )
    return weights


def _stored(checkpoint: Pretrained) -> dict[str, Tensor]:
    """The tensors by their names in the checkpoint."""
    if checkpoint.loaded:
        return dict(checkpoint.loaded.tensors)
    try:
        stored: dict[str, Tensor] = safetensors.torch.load_file(checkpoint.weights)
    except SafetensorError as error:
        raise UserError(f"{checkpoint.weights} is not a valid safetensors file ({error})") from None
    return stored


def _ungate(weights: dict[str, Tensor]) -> None:
    """Write a gated encoder as a JumpReLU (arXiv 2404.16014, section 3.2).

    With y = (x - b_dec) W_enc, a feature's value is ReLU(m), m = y exp(r_mag) + b_mag, where
    y + b_gate > 0, that is, where m > b_mag - b_gate exp(r_mag); elsewhere it is 0.
    """
    gain, bias = weights.pop("r_mag").exp(), weights.pop("b_mag")  # (d_sae,)
    weights |= {
        "W_enc": weights["W_enc"] * gain,
        "b_enc": bias,
        "threshold": bias - weights.pop("b_gate") * gain,
    }


def _rescale(weights: dict[str, Tensor]) -> None:
    """Fold in the factor of the pre-activations: the norm of their decoder rows."""
    norm = torch.linalg.vector_norm(weights["W_dec"], dim=1)  # (d_sae,)
    safe = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    weights |= {
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / safe.unsqueeze(1),
    }


def _centre(weights: dict[str, Tensor]) -> None:
    """Fold in the centring x - mean(x) of the input, the mean over the d_in dimensions of a token.

    (x - mean(x) - b) W = (x - b) (W - mean of W's rows) - mean(b) sum of W's rows. The
    reconstruction does not change: it is that of x - mean(x), and a model with LayerNorm reads
    nothing else.
    """
    W_enc, b_dec = weights["W_enc"], weights["b_dec"]
    weights["b_enc"] = weights["b_enc"] - b_dec.mean() * W_enc.sum(0)
    weights["W_enc"] = W_enc - W_enc.mean(0, keepdim=True)


def _scale(checkpoint: Pretrained) -> float | None:
    """The factor on activations that is not yet in the weights, or None."""
    path = checkpoint.folder / SCALER
    if checkpoint.form != "saelens" or not path.is_file():
        return None
    content = read_object(path)
    if content.get("has_whitening"):
        raise UserError(f"{path}: whitened activations cannot be read")
    factor = content.get("scaling_factor")
    if factor is None or checkpoint.cfg.get("normalize_activations") in (None, False, "none"):
        return None  # already folded in
    if not isinstance(factor, float | int) or not factor > 0:
        raise UserError(f"{path}: scaling_factor is {factor!r}, expected a positive number")
    return float(factor)


def provenance(checkpoint: Pretrained, sae: SaeSettings, layer: int) -> dict[str, Any]:
    """Origin of a checkpoint, for cfg.json: names and hashes, without local directories."""
    carried = {
        key: checkpoint.metadata[key]
        for key in ("context_size", "dataset_path", "l0")
        if checkpoint.metadata.get(key) is not None
    }
    return carried | {
        "training_architecture": checkpoint.architecture,
        "pretrained": {
            "form": checkpoint.form,
            "source": sae.source_of(layer) if sae.revision else checkpoint.folder.name,
            "revision": sae.revision,
            "centred": checkpoint.centred,
            "sha256": {path.name: files.sha256_file(path) for path in checkpoint.files},
            **(checkpoint.loaded.origin if checkpoint.loaded else {}),
        },
        **({"k": checkpoint.k} if checkpoint.k else {}),
    }
