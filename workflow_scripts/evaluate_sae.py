"""Measure one sparse autoencoder on held-out documents."""

from pathlib import Path

import torch

from ghosttrack import files, job, sae
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.sae.quality import measure


def main(*, weights: Path, cfg: Path, store: Path, manifest: Path, quality: Path, layer: int, threads: int) -> None:
    """Read the SAELens folder and the held-out store, write quality.json."""
    torch.set_num_threads(threads)
    trained = sae.load_files(weights, cfg)
    rows = ActivationStore.open([store], [manifest], {"layer": layer})
    k = int(trained.metadata["k"])
    found = measure(trained, rows, k)
    files.write_json(
        quality,
        {
            **found.reconstruction._asdict(),
            **found.sparsity._asdict(),
            "pca_fvu": found.pca_fvu,
            "random_fvu": found.random_fvu,
            "rows": found.rows,
            "massive_rows": int(rows.massive.sum()),
            "excluded_rows": int(rows.excluded.sum()),
            "layer": layer,
            "site": rows.site,
            "d_sae": trained.d_sae,
            "k": k,
            "training_tokens": trained.metadata["training_tokens"],
            "unique_tokens": trained.metadata["unique_tokens"],
            "storage": trained.metadata.get("storage"),
            "storage_error": trained.metadata.get("storage_error"),
        },
    )


if __name__ == "__main__":
    job.run(main, globals())
