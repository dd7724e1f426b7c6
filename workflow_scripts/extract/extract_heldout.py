"""Extract the activations of the held-out documents, for all layers in one pass."""

from pathlib import Path

import torch

from ghosttrack.activations import extraction, limits, run_model
from ghosttrack.inputs import corpus
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.runtime.run_paths import layer_of
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    heldout: Path,
    heldout_manifest: Path,
    weights: Path,
    check: Path,
    stores: list[Path],
    manifests: list[Path],
    site: Site,
    batch: int,
    threads: int,
    code: str,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write one store per layer with all held-out contexts."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    layers = [layer_of(store) for store in stores]
    extraction.extract_contexts(
        *run_model.load(weights.parent, check, inference, gpu),
        corpus.read_tokens(heldout, heldout_manifest).tokens,
        layers,
        [extraction.StoreFiles(*pair) for pair in zip(stores, manifests, strict=True)],
        extraction.Extraction(
            site,
            batch if limits.read(check).batched else 1,
            code=code,
            scales=limits.scales(check, layers),
        ),
    )


if __name__ == "__main__":
    job.run(main, globals())
