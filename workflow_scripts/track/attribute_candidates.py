"""Attribute the logit difference of two candidate answers to SAE features, and track them."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from ghosttrack import sae
from ghosttrack.activations import limits, logit_gradients, run_model
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.inputs.token_text import TokenText
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings, TrackingSettings
from ghosttrack.tracks import candidate_run
from ghosttrack.tracks.tracking import TrackerOptions

log = logging.getLogger("ghosttrack")

# Prompts per pass, approximately. Not a resource: the null of random links draws once per pass.
PROMPTS = 32


def main(
    *,
    examples: Path,
    weights: Path,
    check: Path,
    saes: list[Path],
    random_decoders: list[Path],
    neighbours: list[Path],
    controls: Path,
    metrics: Path,
    completeness: Path,
    tracks: Path,
    tokens: Path,
    layers: list[int],
    site: Site,
    tracking: TrackingSettings,
    dataset: str,
    seed: int,
    threads: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write the controls without SAEs, the metrics of every variant, and tables for the explorer.

    `saes` and `random_decoders` have one weight file per layer of `layers`, `neighbours` one file
    for every layer but the last.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    frame = tables.read_parquet(examples)
    tokenizer = models.load_tokenizer(weights.parent)
    compared = logit_gradients.comparisons(
        frame, tokenizer, models.max_context(weights.parent / "config.json"), dataset
    )
    given = int((frame["other"] != "").sum())
    log.info(
        "%s: %d of %d texts have another candidate answer, %d of them with a token that differs; "
        "%d different prompts and pairs of answers",
        dataset,
        given,
        len(frame),
        int((compared.number >= 0).sum()),
        len(compared.distinct),
    )
    loaded = [[sae.load(path.parent) for path in paths] for paths in (saes, random_decoders)]
    trained, null = (
        candidate_run.Dictionary(
            group,
            {
                variant: candidate_run.plan_of(variant, layers, group, links, tracking, seed)
                for variant in variants
            },
        )
        for group, links, variants in zip(
            loaded,
            (neighbours, None),
            (("default", "untracked", "shuffled"), ("default",)),
            strict=True,
        )
    )
    passes: Iterable[logit_gradients.Gradients] = ()
    if compared.distinct:
        passes = logit_gradients.read(
            run_model.load(weights.parent, check, inference, gpu).model,
            compared.distinct,
            layers,
            site,
            batch=PROMPTS,
            packed=limits.read(check).packed,
        )
    result = candidate_run.measure(
        passes,
        compared,
        frame["id"].tolist(),
        layers,
        trained,
        null,
        TrackerOptions.from_settings(tracking),
        seed,
        TokenText(tokenizer).alone,
    )
    for path, table in (
        (controls, result.controls),
        (metrics, result.metrics),
        (tracks, result.tracks),
        (tokens, result.tokens),
    ):
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)
    with files.atomic_write(completeness) as text:
        tables.write_csv(result.completeness, text)


if __name__ == "__main__":
    job.run(main, globals())
