"""Bring the pretrained autoencoder of one layer into the form of those that are trained here."""

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
    """Fetch or find the checkpoint that `sae.source` and `sae.revision` name, check it, and write a SAELens folder."""
    found = pretrained.read(pretrained.fetch(sae, layer, site), layer, site, d_model)
    if site != "resid_post":
        pretrained.require_sublayer(found, site, files.read_json(check)["sublayers"][layer][site])
    if warning := pretrained.require_model(found, model, source):
        log.warning("%s", warning)
    converted = conversion.convert(found, layer_norm=models.takes_out_means(model_config))
    metadata = conversion.provenance(found, sae, layer) | {"layer": layer, "site": site}
    hook_name = f"blocks.{layer}.hook_{site}"
    sae_model.save(
        replace(converted, metadata=metadata), weights, cfg, hook_name=hook_name, model_name=model
    )
    # What an autoencoder trained here before left is not this one's.
    weights.with_name("history.csv").unlink(missing_ok=True)


if __name__ == "__main__":
    job.run(main, globals())
