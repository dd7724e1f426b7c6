"""Extract activations and token statistics of a data set's answer tokens, or other tokens."""

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
    p_true,
    pmi_baseline,
    remark_answers,
    run_model,
)
from ghosttrack.activations import lookback as attention
from ghosttrack.activations.store import smallest_float
from ghosttrack.facts import remarks
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.runtime.run_paths import layer_name, layer_of
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    examples: Path,
    weights: Path,
    check: Path,
    stores: list[Path],
    manifests: list[Path],
    embedding: Path,
    embedding_manifest: Path,
    counterfactual_mean: Path,
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
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
    lookback: Path | None = None,
) -> None:
    """Write the activation stores of a data set, and what the same passes give.

    There is one store per layer and one of the token embedding. `counterfactual_mean` gets the
    counterfactual-prompt means, `prompt_states` the inputs of the bilinear probe, `lookback` the
    attention to what precedes the answers, for texts with hallucinated spans.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    frame = tables.read_parquet(examples)
    tokenizer = models.load_tokenizer(weights.parent)
    exact = limits.read(check)
    packed = exact.packed
    limit = models.max_context(weights.parent / "config.json")
    layers = [layer_of(store) for store in stores]
    model, identity = run_model.load(weights.parent, check, inference, gpu)
    pairs = pmi_baseline.choose_pairs(frame, prompts, seed)
    texts = pd.concat([frame, pairs], ignore_index=True)
    encoded = example_tokens.encode(texts, tokenizer, limit, dataset, positions=positions)
    baseline = pmi_baseline.PmiBaseline(
        pairs, encoded[len(frame) :], len(layers), model.config.get_text_config().hidden_size
    )
    own = encoded[: len(frame)]
    compared = candidates.Candidates(model, own, remarks.strata(frame))
    attended = attention.Lookback(model, own if "spans" in frame else [])
    token_table, output_table = example_extraction.extract_examples(
        model,
        identity,
        own,
        layers,
        [extraction.StoreFiles(*pair) for pair in zip(stores, manifests, strict=True)],
        extraction.StoreFiles(embedding, embedding_manifest),
        site=site,
        batch=batch,
        packed=packed,
        cached=exact.cached if "context" in frame else 0,
        scales=limits.scales(check, [None, *layers]),
        pmi_baseline=baseline,
        candidates=compared,
        lookback=attended if attended.tokens else None,
    )
    token_table.insert(3, "text", [tokenizer.decode([token]) for token in token_table["token"]])
    if "spans" in frame:
        token_table = token_table.assign(**example_tokens.span_columns(frame, own))
    means = baseline.means(frame)
    output_table = example_extraction.compared_outputs(output_table, frame, means, compared)
    if "context" in frame:
        output_table["dropped_tokens"] = [one.dropped for one in own]
    if whether_true:
        output_table["p_true"] = p_true.measure(
            model, tokenizer, frame, limit=limit, batch=batch, packed=packed
        )
    if remarks.has_remarks(frame):
        asserted = remark_answers.read(
            model,
            identity,
            tokenizer,
            frame,
            limit=limit,
            batch=batch,
            packed=packed,
            dataset=dataset,
        )
        output_table = pd.concat([output_table, asserted], axis=1)
    activations: dict[str, Any] = {
        layer_name(layer): smallest_float(mean)
        for layer, mean in zip(layers, means.activation, strict=True)
    }
    with files.atomic_write(counterfactual_mean, "wb") as stream:
        np.savez(stream, **activations)
    with files.atomic_write(prompt_states, "wb") as stream:
        candidates.write(stream, compared.states())
    if lookback:
        attention.write(lookback, attended.ratios())
    for path, table in ((tokens, token_table), (outputs, output_table)):
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
