"""Check the finished tables of a run."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from ghosttrack import scores as registry
from ghosttrack.evaluation.checks import (
    check_answers,
    check_metrics,
    check_quality,
    check_scores,
    shared_texts,
)
from ghosttrack.evaluation.gates import judge
from ghosttrack.facts.examples import as_read
from ghosttrack.runtime import files, job, records, tables

log = logging.getLogger(__name__)


def main(
    *,
    metrics: Path,
    scores: list[Path],
    quality: list[Path],
    answers: Path,
    examples: list[Path],
    checks: Path,
    layers: list[int],
    datasets: list[str],
    controls: list[str],
    expected: dict[str, Any] | None = None,
) -> None:
    """Raise an error at the first invalid value of a table; write the number of checked rows.

    `controls` names the positive controls. `expected`: the run's settings by section; every result
    must have been made with them.
    """
    lineage = records.check_lineage(
        [metrics, *scores, *quality, answers, *examples], expected or {}
    )
    for name, versions in lineage.libraries.items():
        if len(versions) > 1:
            log.warning(
                "the results were made with different versions of %s (%s): if they should all be "
                "of one version, delete the folder of the run and run the same command again",
                name,
                ", ".join(versions),
            )
    table = registry.read(metrics, registry.METRICS)
    ids = dict[str, set[str]]()
    texts = defaultdict[str, dict[str, list[str]]](dict)  # by mode and data set
    for name, path in zip(datasets, examples, strict=True):
        frame = tables.read_parquet(path)
        ids[name] = set(frame["id"].astype(str))
        if name not in controls:
            texts[str(frame["mode"].iloc[0])][name] = as_read(frame)
    rows = check_metrics(metrics, table, datasets)
    scored = sum(check_scores(path, tables.read_parquet(path), table, ids) for path in scores)
    saes = {layer: files.read_object(path) for layer, path in zip(layers, quality, strict=True)}
    for path, metrics_of_layer in zip(quality, saes.values(), strict=True):
        check_quality(path, metrics_of_layer)
    check_answers(answers, registry.read(answers, registry.ANSWERS), datasets, layers)
    examples_of = {name: len(known) for name, known in ids.items()}
    files.write_json(
        checks,
        {
            "examples": examples_of,
            "metrics_rows": rows,
            "saes": len(quality),
            "scores": scored,
            "libraries": lineage.libraries,
            "shared_texts": [pair for each in texts.values() for pair in shared_texts(each)],
            "sae_gates": {
                str(layer): judge(metrics_of_layer) for layer, metrics_of_layer in saes.items()
            },
        },
    )


if __name__ == "__main__":
    job.run(main, globals())
