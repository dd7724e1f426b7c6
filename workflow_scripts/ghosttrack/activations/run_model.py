"""The model of a run, loaded in the precision that all jobs of the run share."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.activations import extraction, limits
from ghosttrack.inputs import model_precision, models
from ghosttrack.settings import InferenceSettings

log = logging.getLogger("ghosttrack")


class RunModel(NamedTuple):
    """A model in evaluation mode, and what the stores say about it."""

    model: Any
    identity: extraction.ModelIdentity


def load(directory: Path, check: Path, inference: InferenceSettings, gpus: int) -> RunModel:
    """Load the fetched model of a run on the accelerator if there is one, else on the CPU.

    Args:
        directory: of the fetched model.
        check: the run's model_check.json.
        inference: precision of the forward pass; `auto` depends on the device.
        gpus: over which the model is spread.
    Raises:
        UserError: the check ran in another precision, or the model cannot be loaded.
    """
    device = extraction.best_device()
    precision = model_precision.resolve(directory, device, inference)
    limits.require_precision(check, precision)
    log.info("the model runs in %s on %s", precision.name, device)
    return RunModel(
        models.load_model(directory, device, precision, gpus),
        extraction.model_identity(directory, precision),
    )
