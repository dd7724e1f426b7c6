"""Read the activations of every answer token of a data set, or others, and the model's own opinion of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ghosttrack.activations import (
    candidates,
    example_extraction,
    example_tokens,
    extraction,
    limits,
    other_prompts,
    p_true,
)
from ghosttrack.activations.store import smallest_float
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory


def main(
    *,
    examples: Path,
    weights: Path,
    check: Path,
    stores: list[Path],
    manifests: list[Path],
    embedding: Path,
    embedding_manifest: Path,
    background: Path,
    prompt_states: Path,
    tokens: Path,
    outputs: Path,
    site: Site,
    positions: example_tokens.Positions,
    prompts: int,
    whether_true: bool,
    dataset: str,
    batch: int,
    threads: int,
    seed: int,
) -> None:
    """Write one store a layer, one of the token embedding, what answers are after other prompts, what prompts end in, and the tables."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    frame = tables.read_parquet(examples)
    tokenizer = models.load_tokenizer(weights.parent)
    together = limits.read(check).together
    limit = models.max_context(weights.parent / "config.json")
    layers = [extraction.layer_of(store) for store in stores]
    model = models.load_model(weights.parent, extraction.best_device())
    pairs = other_prompts.choose_pairs(frame, prompts, seed)
    every = pd.concat([frame, pairs], ignore_index=True)
    encoded = example_tokens.encode(every, tokenizer, limit, dataset, positions=positions)
    asked = other_prompts.Asked(
        pairs, encoded[len(frame) :], len(layers), model.config.get_text_config().hidden_size
    )
    among = candidates.Rivals(model, encoded[: len(frame)], frame["relation"].tolist())
    found = example_extraction.extract_examples(
        model,
        extraction.origin(weights.parent),
        encoded[: len(frame)],
        layers,
        [extraction.StoreFiles(*pair) for pair in zip(stores, manifests, strict=True)],
        extraction.StoreFiles(embedding, embedding_manifest),
        site=site,
        batch=batch,
        together=together,
        asked=asked,
        rivals=among,
    )
    found.tokens.insert(3, "text", [tokenizer.decode([token]) for token in found.tokens["token"]])
    found.outputs.insert(0, "id", frame["id"].to_numpy())
    baseline = asked.baseline(frame)
    for kind in ("sum", "mean", "first"):
        found.outputs[f"pmi_{kind}"] = found.outputs[f"logprob_{kind}"] - getattr(
            baseline, f"logprob_{kind}"
        )
    found.outputs["other_prompts"] = baseline.prompts
    measured = pd.concat([found.outputs, among.table()], axis=1)
    if whether_true:
        measured["p_true"] = p_true.measure(
            model, tokenizer, frame, limit=limit, batch=batch, together=together
        )
    means: dict[str, Any] = {
        f"layer_{layer:02d}": smallest_float(each)
        for layer, each in zip(layers, baseline.activation, strict=True)
    }
    with files.atomic_write(background, "wb") as stream:
        np.savez(stream, **means)
    with files.atomic_write(prompt_states, "wb") as stream:
        candidates.write(stream, among.states())
    for path, table in ((tokens, found.tokens), (outputs, measured)):
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
