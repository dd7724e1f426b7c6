"""Let the model answer the questions of a data set, and mark its answers against the gold ones."""

from pathlib import Path

import torch

from ghosttrack import files, frames, job
from ghosttrack.activations import extraction
from ghosttrack.activations import generation as answering
from ghosttrack.inputs import models
from ghosttrack.settings import GenerationSettings


def main(
    *, questions: Path, weights: Path, examples: Path, labels: Path, generation: GenerationSettings, dataset: str,
    batch: int, threads: int, seed: int,
) -> None:  # fmt: skip
    """Write the judged answers as examples, and the counts of all verdicts."""
    torch.set_num_threads(threads)
    chosen = answering.choose_questions(frames.read_parquet(questions), generation.questions, seed)
    continuations = answering.complete(
        models.load_model(weights.parent, extraction.best_device()),
        models.load_tokenizer(weights.parent),
        chosen["prompt"].tolist(),
        max_new_tokens=generation.max_new_tokens,
        batch=batch,
        dataset=dataset,
    )
    marked = answering.mark(chosen, continuations, dataset)
    with files.atomic_write(examples, "wb") as stream:
        marked.examples.to_parquet(stream, index=False)
    files.write_json(labels, marked.counts)


if __name__ == "__main__":
    job.run(main, globals())
