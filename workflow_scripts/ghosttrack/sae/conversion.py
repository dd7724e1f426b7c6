"""From a pretrained checkpoint of SAELens or sparsify to an autoencoder of ours, with whatever can be folded in folded in."""

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

# sparsify's names in ours; its encoder is stored a row per feature.
_SPARSIFY = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# One factor per feature, in SAELens before version 6 and in its files.
_FINETUNED = {"scaling_factor", "finetuning_scaling_factor"}


def convert(found: Pretrained, *, layer_norm: bool) -> Sae:
    """The autoencoder on raw activations of the model as Hugging Face has it.

    Sums run in double precision, weights come out as float32.

    Args:
        found: the checkpoint.
        layer_norm: whether the model's norms take out each token's mean; only then TransformerLens centres.
    Raises:
        UserError: naming the file and the tensor that is missing, of another shape, not finite, or not understood.
    """
    weights = _read(found)
    if not found.cfg.get(
        "apply_b_dec_to_input", True
    ):  # pre = x W_enc + b_enc, for (x - b_dec) W_enc + b_enc
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if found.cfg.get("rescale_acts_by_decoder_norm"):
        _rescale(weights)
    if (scale := _scale(found)) is not None:
        # It was trained on scale * x: codes stay as they are, thresholds too.
        weights |= {
            "W_enc": weights["W_enc"] * scale,
            "W_dec": weights["W_dec"] / scale,
            "b_dec": weights["b_dec"] / scale,
        }
    if layer_norm and found.centred:
        _centre(weights)
    single = {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}
    return Sae(**single, metadata={}, k=found.k)


def _read(found: Pretrained) -> dict[str, Tensor]:
    """Tensors of an Sae, float64."""
    try:
        stored: dict[str, Tensor] = safetensors.torch.load_file(found.weights)
    except SafetensorError as error:
        raise UserError(f"{found.weights} is not a valid safetensors file ({error})") from None
    if found.form == "sparsify":
        stored = {_SPARSIFY.get(name, name): tensor for name, tensor in stored.items()}
        if "W_enc" in stored:
            stored["W_enc"] = stored["W_enc"].T
    for name in _FINETUNED & set(stored):
        if not torch.allclose(stored[name], torch.ones_like(stored[name])):
            raise UserError(
                f"{found.weights}: {name} is not 1 everywhere; fine-tuned scales cannot be read"
            )
    shapes = {
        "W_enc": (found.d_in, found.d_sae),
        "b_enc": (found.d_sae,),
        "W_dec": (found.d_sae, found.d_in),
        "b_dec": (found.d_in,),
        **({"threshold": (found.d_sae,)} if found.architecture == "jumprelu" else {}),
        **({"topk_threshold": ()} if found.architecture == "batchtopk" else {}),
    }
    if unknown := sorted(set(stored) - set(shapes) - _FINETUNED):
        raise UserError(
            f"{found.weights}: the tensor {unknown[0]} belongs to no {found.architecture} autoencoder, expected "
            f"{', '.join(shapes)}; check architecture in {found.folder.name}/cfg.json"
        )
    for name, shape in shapes.items():
        shown = tuple(stored[name].shape) if name in stored else "no such tensor"
        if shown != shape:
            raise UserError(
                f"{found.weights}: {name} should be {shape} by {found.folder.name}/cfg.json, found {shown}"
            )
        if not bool(torch.isfinite(stored[name]).all()):
            raise UserError(
                f"{found.weights}: {name} holds NaN or infinity, expected numbers; the file is damaged or its training "
                "diverged: download it again and compare its SHA-256 with the published one, or choose another checkpoint"
            )
    weights = {name: stored[name].to(torch.float64) for name in shapes}
    # relu and topk are a threshold of 0; a batchtopk training folder keeps its one threshold for inference.
    weights.setdefault(
        "threshold",
        torch.zeros(found.d_sae, dtype=torch.float64) + weights.pop("topk_threshold", 0.0),
    )
    return weights


def _rescale(weights: dict[str, Tensor]) -> None:
    """Pre-activations were compared, and passed on, times the norm of their decoder rows, which is divided out again."""
    norm = torch.linalg.vector_norm(weights["W_dec"], dim=1)  # (d_sae,)
    safe = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    weights |= {
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / safe.unsqueeze(1),
    }


def _centre(weights: dict[str, Tensor]) -> None:
    """Encode x as it encoded x - mean(x), the mean over the d_in dimensions of a token.

    (x - mean(x) - b) W = (x - b) (W - mean of W's rows) - mean(b) sum of W's rows. The reconstruction stays what it
    was: of x - mean(x), which is all that a model with LayerNorm reads.
    """
    W_enc, b_dec = weights["W_enc"], weights["b_dec"]
    weights["b_enc"] = weights["b_enc"] - b_dec.mean() * W_enc.sum(0)
    weights["W_enc"] = W_enc - W_enc.mean(0, keepdim=True)


def _scale(found: Pretrained) -> float | None:
    """The one factor on activations that is not in the weights yet."""
    path = found.folder / SCALER
    if found.form != "saelens" or not path.is_file():
        return None
    content = read_object(path)
    if content.get("has_whitening"):
        raise UserError(f"{path}: whitened activations cannot be read")
    factor = content.get("scaling_factor")
    if factor is None or found.cfg.get("normalize_activations") in (None, False, "none"):
        return None  # folded in already
    if not isinstance(factor, float | int) or not factor > 0:
        raise UserError(f"{path}: scaling_factor is {factor!r}, expected a positive number")
    return float(factor)


def provenance(found: Pretrained, sae: SaeSettings, layer: int) -> dict[str, Any]:
    """Where a checkpoint came from, for cfg.json: names and hashes, and no folder of this machine's own."""
    carried = {
        key: found.metadata[key]
        for key in ("context_size", "dataset_path", "l0")
        if found.metadata.get(key) is not None
    }
    return carried | {
        "training_architecture": found.architecture,
        "pretrained": {
            "form": found.form,
            "source": sae.source_of(layer) if sae.revision else found.folder.name,
            "revision": sae.revision,
            "centred": found.centred,
            "sha256": {path.name: files.sha256_file(path) for path in found.files},
        },
        **({"k": found.k} if found.k else {}),
    }
