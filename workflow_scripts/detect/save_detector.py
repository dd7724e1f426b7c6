"""Fit the default detector on all text-controlled data sets together and save it for user texts."""

from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from ghosttrack import sae
from ghosttrack import scores as registry
from ghosttrack.detection import audit, saved, saved_fit
from ghosttrack.facts import remarks
from ghosttrack.inputs import chat
from ghosttrack.runtime import files, job, libraries, tables
from ghosttrack.settings import DetectionSettings


def main(
    *,
    audits: list[Path],
    examples: list[Path],
    outputs: list[Path],
    weights: list[Path],
    cfgs: list[Path],
    source: Path,
    detector: Path,
    about: Path,
    token_scores: Path,
    effects: Path,
    datasets: list[str],
    layers: list[int],
    site: str,
    positions: str,
    detection: DetectionSettings,
    seed: int,
    threads: int = 1,
) -> None:
    """Write the detector, its scores of all answer tokens, and its feature effects.

    `audits`, `examples` and `outputs` are in the order of `datasets`, `weights` and `cfgs` of
    `layers`.
    """
    sources = {
        name: saved_fit.DatasetSource(
            tables.read_parquet(examples_path),
            tables.read_parquet(outputs_path),
            outputs_path.parent,
        )
        for name, examples_path, outputs_path in zip(datasets, examples, outputs, strict=True)
    }
    checks = pd.concat([registry.read(path, audit.COLUMNS) for path in audits], ignore_index=True)
    # Conflict sets only where no other data set can be fitted on: user texts have no remarks.
    plain = [name for name in datasets if not remarks.has_remarks(sources[name].examples)]
    chosen = saved_fit.training_sets(
        checks[checks["dataset"].isin(plain)]
    ) or saved_fit.training_sets(checks)
    saes = {layer: sae.load(path.parent) for layer, path in zip(layers, weights, strict=True)}
    with threadpool_limits(threads):
        fitted = saved_fit.fit(sources, chosen, saes, detection.folds, seed)
    reason = fitted.quality.pop("reason", "")
    described: dict[str, Any] = {
        "reason": reason,
        "model": files.read_object(source)["files_sha256"],
        "layers": layers,
        "site": site,
        "model_precision": sources[datasets[0]].open(layers[0]).attributes["model_precision"],
        "positions": positions,
        "prompt": "chat"
        if chosen and all(chat.is_asked(sources[name].examples) for name in chosen)
        else "plain",
        "saes": {
            str(layer): {path.name: files.sha256_file(path) for path in pair}
            for layer, pair in zip(layers, zip(weights, cfgs, strict=True), strict=True)
        },
        "quality": fitted.quality,
        "seed": seed,
        "folds": detection.folds,
        "libraries": dict(libraries.versions()),
    }
    saved.save(fitted.weights, described, detector, about)
    for path, table in ((token_scores, fitted.tokens), (effects, fitted.effects)):
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
