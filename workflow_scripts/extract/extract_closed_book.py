"""Read the statements of a conflict set without their remarks, and keep the model's output."""

from pathlib import Path

import torch

from ghosttrack.activations import closed_book as reading
from ghosttrack.activations import limits, run_model
from ghosttrack.inputs import models
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    examples: Path,
    weights: Path,
    check: Path,
    closed_book: Path,
    prompts: int,
    dataset: str,
    batch: int,
    threads: int,
    seed: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write closed_book.parquet: the columns of outputs.parquet, one row per example."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    table = reading.read(
        *run_model.load(weights.parent, check, inference, gpu),
        models.load_tokenizer(weights.parent),
        tables.read_parquet(examples),
        prompts=prompts,
        limit=models.max_context(weights.parent / "config.json"),
        batch=batch,
        packed=limits.read(check).packed,
        dataset=dataset,
        seed=seed,
    )
    with files.atomic_write(closed_book, "wb") as stream:
        table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
