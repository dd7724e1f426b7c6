"""Read training statements of many kinds, and keep their pooled activations."""

from pathlib import Path

import torch

from ghosttrack.activations import limits, pooled_statements, run_model, statement_reading
from ghosttrack.facts.statement_kinds import build_kinds
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    weights: Path,
    check: Path,
    statements: Path,
    pooled: Path,
    manifest: Path,
    layers: list[int],
    site: Site,
    texts_per_kind: int,
    seed: int,
    batch: int,
    threads: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write the statements by sentence, their pooled activations and outputs, and the digests of both."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    frame = statement_reading.by_sentence(build_kinds(seed, texts_per_kind))
    model, identity = run_model.load(weights.parent, check, inference, gpu)
    chosen = statement_reading.chosen_layers(layers)
    reader = statement_reading.StatementReader(
        model,
        models.load_tokenizer(weights.parent),
        chosen,
        site=site,
        limit=models.max_context(weights.parent / "config.json"),
        batch=batch,
        packed=limits.read(check).packed,
    )
    read, _ = reader.read(frame["text"].tolist())
    with files.atomic_write(statements, "wb") as stream:
        frame.to_parquet(stream, index=False)
    pooled_statements.write(
        read,
        pooled,
        manifest,
        {
            "layers": chosen,
            "site": site,
            "model_precision": identity.precision,
            "model_sha256": identity.weights_sha256,
            "statements_sha256": files.sha256_file(statements),
        },
    )


if __name__ == "__main__":
    job.run(main, globals())
