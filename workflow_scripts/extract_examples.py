"""Read the activations of every answer token of a data set, and the model's own opinion of each."""

from pathlib import Path

import torch

from ghosttrack import files, frames, job
from ghosttrack.activations import example_extraction, example_tokens, extraction
from ghosttrack.inputs import models
from ghosttrack.memory import keep_freed_memory


def main(
    *, examples: Path, weights: Path, stores: list[Path], manifests: list[Path], embedding: Path,
    embedding_manifest: Path, tokens: Path, outputs: Path, site: extraction.Site,
    dataset: str, batch: int, threads: int,
) -> None:  # fmt: skip
    """Write one store a layer, one of the token embedding, and the tables of tokens and outputs."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    frame = frames.read_parquet(examples)
    tokenizer = models.load_tokenizer(weights.parent)
    limit = models.max_context(weights.parent / "config.json")
    encoded = example_tokens.encode(frame, tokenizer, limit, dataset)
    found = example_extraction.extract_examples(
        models.load_model(weights.parent, extraction.best_device()),
        extraction.origin(weights.parent),
        encoded,
        [extraction.layer_of(store) for store in stores],
        [extraction.StoreFiles(*pair) for pair in zip(stores, manifests, strict=True)],
        extraction.StoreFiles(embedding, embedding_manifest),
        site=site,
        batch=batch,
    )
    found.tokens.insert(3, "text", [tokenizer.decode([token]) for token in found.tokens["token"]])
    found.outputs.insert(0, "id", frame["id"].to_numpy())
    for path, table in ((tokens, found.tokens), (outputs, found.outputs)):
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
