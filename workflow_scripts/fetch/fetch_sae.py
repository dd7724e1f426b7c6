"""Convert the pretrained SAE of one layer to the format of SAEs trained by this workflow."""

import logging
from dataclasses import replace
from pathlib import Path

from ghosttrack.inputs import models, pretrained
from ghosttrack.runtime import files, job
from ghosttrack.sae import conversion
from ghosttrack.sae import model as sae_model
from ghosttrack.settings import SaeSettings, SourceSettings

log = logging.getLogger("ghosttrack")


def main(
    *,
    weights: Path,
    cfg: Path,
    model_config: Path,
    check: Path,
    layer: int,
    model: str,
    sae: SaeSettings,
    site: str,
    d_model: int,
    source: SourceSettings,
) -> None:
    """Fetch and check the checkpoint of `sae.source`, and write a SAELens folder."""
    checkpoint = pretrained.fetched(sae, layer, site, d_model)
    if site != "resid_post":
        pretrained.require_sublayer(
            checkpoint, site, files.read_object(check)["sublayers"][layer][site]
        )
    if warning := pretrained.require_model(checkpoint, model, source):
        log.warning("%s", warning)
    converted = conversion.convert(checkpoint, layer_norm=models.uses_layer_norm(model_config))
    metadata = conversion.provenance(checkpoint, sae, layer) | {"layer": layer, "site": site}
    hook_name = f"blocks.{layer}.hook_{site}"
    sae_model.save(
        replace(converted, metadata=metadata), weights, cfg, hook_name=hook_name, model_name=model
    )
    # A previous SAE that was trained here may have left its training history.
    weights.with_name("history.csv").unlink(missing_ok=True)


if __name__ == "__main__":
    job.run(main, globals())
