"""Read the texts of a data set without their contexts, and keep the model's output."""

from pathlib import Path

import torch

from ghosttrack.activations import limits, run_model
from ghosttrack.activations import without_context as reading
from ghosttrack.inputs import models
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    examples: Path,
    weights: Path,
    check: Path,
    without_context: Path,
    dataset: str,
    batch: int,
    threads: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write without_context.parquet: statistics of the answer tokens, one row per token."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    table = reading.read(
        *run_model.load(weights.parent, check, inference, gpu),
        models.load_tokenizer(weights.parent),
        tables.read_parquet(examples),
        limit=models.max_context(weights.parent / "config.json"),
        batch=batch,
        packed=limits.read(check).packed,
        dataset=dataset,
    )
    with files.atomic_write(without_context, "wb") as stream:
        table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
