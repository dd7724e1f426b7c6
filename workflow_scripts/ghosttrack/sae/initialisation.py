"""What an autoencoder begins with: random directions, or another layer's trained autoencoder."""

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


class Start(NamedTuple):
    """Weights in training form, on centred and scaled activations, and the thresholds that go with them (d_sae,)."""

    parameters: Parameters
    threshold: Tensor

    def require(self, d_sae: int, d_model: int) -> None:
        """Refuse, with a UserError, weights that are not (d_sae, d_model)."""
        if (shape := tuple(self.parameters.W_dec.shape)) != (d_sae, d_model):
            raise UserError(
                f"the autoencoder of the warm-start layer has {shape[0]} features of {shape[1]} dimensions, this layer needs {d_sae} of "
                f"{d_model}: delete the warm-start layer's folder under saes/ and run again"
            )

    def fingerprint(self) -> str:
        """A digest of the content."""
        content = {**self.parameters._asdict(), "threshold": self.threshold}
        saved = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in content.items()}
        )
        return hashlib.sha256(saved).hexdigest()


def seed_of(seed: int, layer: int, dictionaries: str) -> int:
    """Seed of a layer's random directions: the run's, unless the layers are to begin with different ones."""
    if dictionaries != "independent":
        return seed
    return int(np.random.SeedSequence([seed, layer]).generate_state(1)[0])


def following(settings: SaeSettings) -> SaeSettings:
    """Settings of a layer that begins with a warm start: `warm_start_epochs`, if given."""
    return settings.model_copy(update={"epochs": settings.warm_start_epochs or settings.epochs})


def unfold(sae: Sae) -> Start:
    """The training form of an exported autoencoder: `export.fold` undone.

    Its directions, gains and biases then act on the normalised activations of whatever layer trains on, which has
    a mean and a scale of its own.

    Raises:
        UserError: the autoencoder does not say which mean and scale it was trained with.
    """
    scale = sae.metadata.get("activation_scale")
    if sae.mean is None or not scale:
        raise UserError(
            "the autoencoder of the warm-start layer does not say which mean and scale it was trained with, as one trained here does: "
            "delete its folder under saes/ and run again"
        )
    W_dec = sae.W_dec.to(torch.float64) * scale
    b_dec = (sae.b_dec.to(torch.float64) - sae.mean.to(torch.float64)) * scale
    W_enc = (sae.W_enc.to(torch.float64) / scale).t()
    unit = W_dec / torch.linalg.vector_norm(
        W_dec, dim=1, keepdim=True
    )  # they are, but for rounding
    parts = (
        part.to(torch.float32).contiguous()
        for part in (W_enc, unit, sae.b_enc.to(torch.float64), b_dec)
    )
    return Start(Parameters(*parts), sae.threshold.clone())
