"""Initial weights of a dictionary: random directions, or another layer's trained autoencoder."""

import hashlib
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.settings import SaeSettings


class WarmStart(NamedTuple):
    """Trained weights in training form, for normalised activations, with their thresholds."""

    parameters: Parameters
    threshold: Tensor  # (d_sae,)

    def require(self, d_sae: int, d_model: int) -> None:
        """Raise a UserError unless the weights are (d_sae, d_model)."""
        if (shape := tuple(self.parameters.W_dec.shape)) != (d_sae, d_model):
            raise UserError(
                f"the warm start's autoencoder has {shape[0]} features of {shape[1]} dimensions, "
                f"this layer needs {d_sae} of {d_model}: delete the folder of the warm-start layer "
                "under saes/ and run again"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the content."""
        content = {**self.parameters._asdict(), "threshold": self.threshold}
        saved = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in content.items()}
        )
        return hashlib.sha256(saved).hexdigest()


def seed_of(seed: int, layer: int, dictionaries: str) -> int:
    """Seed of a layer's random directions: that of the run, or one per layer if `independent`."""
    if dictionaries != "independent":
        return seed
    return int(np.random.SeedSequence([seed, layer]).generate_state(1)[0])


def warm_start_settings(settings: SaeSettings) -> SaeSettings:
    """Settings of a layer with a warm start, which may train for another number of epochs."""
    return settings.model_copy(update={"epochs": settings.warm_start_epochs or settings.epochs})


def unfold_normalisation(sae: Sae) -> WarmStart:
    """Undo `export.fold_normalisation`: the training form of an exported autoencoder.

    Its directions, gains and biases then act on the normalised activations of the layer to train,
    which has its own mean and scale.

    Raises:
        UserError: the autoencoder does not record the mean and the scale of its training.
    """
    scale = sae.metadata.get("activation_scale")
    if sae.mean is None or not scale:
        raise UserError(
            "the warm start's autoencoder does not say which mean and scale it was trained with, "
            "unlike one that this workflow trains: delete its folder under saes/ and run again"
        )
    W_dec = sae.W_dec.to(torch.float64) * scale
    b_dec = (sae.b_dec.to(torch.float64) - sae.mean.to(torch.float64)) * scale
    W_enc = (sae.W_enc.to(torch.float64) / scale).t()
    # The rows have unit norm already, up to rounding.
    unit = W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    parts = (
        part.to(torch.float32).contiguous()
        for part in (W_enc, unit, sae.b_enc.to(torch.float64), b_dec)
    )
    return WarmStart(Parameters(*parts), sae.threshold.clone())
