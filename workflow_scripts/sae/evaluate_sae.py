"""Measure one sparse autoencoder on held-out documents, alone and spliced into the model."""

import logging
from pathlib import Path

import torch

from ghosttrack import sae
from ghosttrack.activations import extraction, limits, run_model
from ghosttrack.inputs import corpus
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae.plausibility import warning
from ghosttrack.sae.quality import measure
from ghosttrack.sae.splicing import splice
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings

log = logging.getLogger("ghosttrack")


def main(
    *,
    weights: Path,
    cfg: Path,
    store: Path,
    manifest: Path,
    heldout: Path,
    heldout_manifest: Path,
    model_weights: Path,
    check: Path,
    quality: Path,
    layer: int,
    batch: int,
    threads: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write quality.json from a SAELens folder, a held-out store, its tokens and its model."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    trained = sae.load_files(weights, cfg)
    tokens = corpus.read_tokens(heldout, heldout_manifest).tokens
    rows = extraction.open_packed(store, manifest, layer, model_weights.parent, tokens)
    result = measure(trained, rows, trained.metadata.get("k"))
    if problem := warning(result, trained.metadata):
        log.warning("layer %s: %s", layer, problem)
    model, identity = run_model.load(model_weights.parent, check, inference, gpu)
    spliced = splice(model, trained, rows, tokens, batch, limits.read(check))
    files.write_json(
        quality,
        {
            **result.reconstruction._asdict(),
            **result.sparsity._asdict(),
            **spliced._asdict(),
            "pca_fvu": result.pca_fvu,
            "random_fvu": result.random_fvu,
            "rows": result.rows,
            "massive_rows": int(rows.massive.sum()),
            "excluded_rows": int(rows.excluded.sum()),
            "layer": layer,
            "site": rows.site,
            "d_sae": trained.d_sae,
            "k": result.k,
            "training_tokens": trained.metadata.get("training_tokens"),
            "unique_tokens": trained.metadata.get("unique_tokens"),
            "pretrained": trained.metadata.get("pretrained"),
            "model_precision": identity.precision,
            "storage": trained.metadata.get("storage"),
            "storage_error": trained.metadata.get("storage_error"),
            **({"warning": problem} if problem else {}),
        },
    )


if __name__ == "__main__":
    job.run(main, globals())
