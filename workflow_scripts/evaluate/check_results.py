"""Check the finished tables, so that a bad run fails here and not in a reader's hands."""

from pathlib import Path
from typing import Any

from ghosttrack import scores as registry
from ghosttrack.evaluation.checks import check_answers, check_metrics, check_quality, check_scores
from ghosttrack.evaluation.gates import judge
from ghosttrack.runtime import files, job, records, tables


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
    expected: dict[str, Any] | None = None,
) -> None:
    """Read every table, raise at the first thing that cannot be, and count what was checked.

    `expected`: this run's settings by section; every result must have been made with them.
    """
    records.check_lineage([metrics, *scores, *quality, answers, *examples], expected or {})
    table = registry.read(metrics, registry.METRICS)
    ids = {
        name: set(tables.read_parquet(path, columns=["id"])["id"].astype(str))
        for name, path in zip(datasets, examples, strict=True)
    }
    rows = check_metrics(metrics, table, datasets)
    scored = sum(check_scores(path, tables.read_parquet(path), table, ids) for path in scores)
    saes = {layer: files.read_json(path) for layer, path in zip(layers, quality, strict=True)}
    for path, found in zip(quality, saes.values(), strict=True):
        check_quality(path, found)
    check_answers(answers, registry.read(answers, registry.ANSWERS), datasets, layers)
    examples_of = {name: len(found) for name, found in ids.items()}
    files.write_json(
        checks,
        {
            "examples": examples_of,
            "metrics_rows": rows,
            "saes": len(quality),
            "scores": scored,
            "sae_gates": {str(layer): judge(found) for layer, found in saes.items()},
        },
    )


if __name__ == "__main__":
    job.run(main, globals())
