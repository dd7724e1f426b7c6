"""Generate the model's answers to the questions of a data set, and judge them."""

import functools
import logging
from pathlib import Path

import torch

from ghosttrack.activations import generation as answering
from ghosttrack.activations import limits, run_model
from ghosttrack.activations.decoding import complete
from ghosttrack.inputs import chat, models
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, GenerationSettings, InferenceSettings

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
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write the judged greedy answers as examples, counts of verdicts, and all answers."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    chosen = answering.choose_questions(tables.read_parquet(questions), generation.questions, seed)
    in_chat = chat.is_asked(chosen)
    prompts = chosen["prompt_ids" if in_chat else "prompt"].tolist()
    model, _ = run_model.load(weights.parent, check, inference, gpu)
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
    judged = answering.judge_answers(chosen, [one.text for one in greedy], dataset)
    with files.atomic_write(examples, "wb") as stream:
        judged.examples.to_parquet(stream, index=False)
    files.write_json(labels, judged.counts)
    table = answering.sample_table(chosen, greedy, drawn)
    with files.atomic_write(samples, "wb") as stream:
        table.to_parquet(stream, index=False)
    fractions = {
        name: f"{counts['wrong']} of {counts['correct'] + counts['wrong']}"
        for name, counts in judged.counts["by_relation"].items()
    }
    log.info(
        "%s: %d questions, %d of %d judged answers wrong (%s); left out: %d ambiguous, %d empty",
        dataset,
        len(chosen),
        int(judged.examples["label"].sum()),
        len(judged.examples),
        ", ".join(f"{name} {fraction}" for name, fraction in fractions.items()),
        judged.counts["ambiguous"],
        judged.counts["empty"],
    )


if __name__ == "__main__":
    job.run(main, globals())
