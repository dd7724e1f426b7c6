"""Let the model answer the questions of a data set, and mark its answers against the gold ones."""

import functools
import logging
from pathlib import Path

import torch

from ghosttrack.activations import extraction, limits
from ghosttrack.activations import generation as answering
from ghosttrack.activations.decoding import complete
from ghosttrack.inputs import chat, models
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import GenerationSettings

log = logging.getLogger("ghosttrack")


def main(
    *,
    questions: Path,
    weights: Path,
    check: Path,
    examples: Path,
    labels: Path,
    samples: Path,
    generation: GenerationSettings,
    dataset: str,
    batch: int,
    threads: int,
    seed: int,
) -> None:
    """Write the judged greedy answers as examples, the counts of all verdicts, and every answer with the drawn ones."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    chosen = answering.choose_questions(tables.read_parquet(questions), generation.questions, seed)
    in_chat = chat.is_asked(chosen)
    prompts = chosen["prompt_ids" if in_chat else "prompt"].tolist()
    model = models.load_model(weights.parent, extraction.best_device())
    tokenizer = models.load_tokenizer(weights.parent)
    decode = functools.partial(
        complete,
        model,
        tokenizer,
        limits=limits.read(check),
        stops=chat.answer_ends(tokenizer, model.generation_config) if in_chat else None,
        max_new_tokens=generation.max_new_tokens,
        batch=batch,
        dataset=dataset,
    )
    greedy = decode(prompts)
    drawn = []
    if generation.samples:
        repeated = [prompt for prompt in prompts for _ in range(generation.samples)]
        draws = answering.uniform_numbers(
            chosen["id"].tolist(), generation.samples, generation.max_new_tokens, seed
        )
        drawn = decode(repeated, draws=draws, temperature=generation.temperature)
    marked = answering.mark(chosen, [each.text for each in greedy], dataset)
    with files.atomic_write(examples, "wb") as stream:
        marked.examples.to_parquet(stream, index=False)
    files.write_json(labels, marked.counts)
    table = answering.sample_table(chosen, greedy, drawn)
    with files.atomic_write(samples, "wb") as stream:
        table.to_parquet(stream, index=False)
    shares = {
        name: f"{counts['wrong']} of {counts['correct'] + counts['wrong']}"
        for name, counts in marked.counts["by_relation"].items()
    }
    log.info(
        "%s: %d questions, %d of %d marked answers wrong (%s); left out: %d ambiguous, %d empty",
        dataset,
        len(chosen),
        int(marked.examples["label"].sum()),
        len(marked.examples),
        ", ".join(f"{name} {share}" for name, share in shares.items()),
        marked.counts["ambiguous"],
        marked.counts["empty"],
    )


if __name__ == "__main__":
    job.run(main, globals())
