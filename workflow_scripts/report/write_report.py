"""Write the report: one self-contained page, conclusion first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ghosttrack
from ghosttrack import scores as registry
from ghosttrack.report import link_summary, marked, misled
from ghosttrack.report.page import ReportInputs, render
from ghosttrack.runtime import files, job, tables


def main(
    *,
    metrics: Path,
    ledger: Path,
    leak_audit: Path,
    quality: list[Path],
    answers: Path,
    labels: list[Path],
    relations: Path,
    figures: list[Path],
    explanations: Path,
    kinds: Path,
    checks: Path,
    source: Path,
    report: Path,
    settings: dict[str, Any],
    model: str,
    layers: list[int],
    datasets: list[str],
    controls: list[str] | None = None,
    neighbours: list[Path] | None = None,
    remarked: Sequence[Path] = (),
    candidates: Sequence[Path] = (),
    token_metrics: list[Path] | None = None,
    token_claims: list[Path] | None = None,
    span_examples: Sequence[Path] = (),
    span_scores: Sequence[Path] = (),
    span_choices: Sequence[Path] = (),
    code: str = "not recorded",
) -> None:
    """Read the tables and figures of a run and write its page.

    `quality` is in the order of `layers`, `neighbours` in that of all but the last layer. A file of
    `labels` is in the folder of its data set. `remarked` and `candidates` are the examples and the
    controls of the data sets with remarks whose candidate answers are compared. `token_metrics` and
    `token_claims` are empty without data sets with spans; the examples, scores and choices of these
    sets are in the folders of their data sets. `controls` are the positive controls,
    `code` is the digest of the code.
    """
    checked = files.read_object(checks)
    neighbour_files = dict(zip(layers, neighbours or [], strict=False))
    inputs = ReportInputs(
        model=model,
        metrics=registry.read(metrics, registry.METRICS),
        ledger=registry.read(ledger, registry.LEDGER),
        leak_audit=registry.read(leak_audit, registry.LEAK_AUDIT),
        quality={
            layer: files.read_object(path) for layer, path in zip(layers, quality, strict=True)
        },
        answers=registry.read(answers, registry.ANSWERS),
        labels={path.parent.name: files.read_object(path) for path in labels},
        relations=registry.read(relations, registry.METRICS),
        figures=figures,
        source=files.read_object(source),
        settings=settings,
        datasets=datasets,
        controls=controls or [],
        pairs=link_summary.pairs(
            {layer: tables.read_npz(path) for layer, path in neighbour_files.items()}, layers
        ),
        explanations=registry.read(explanations, registry.EXPLANATIONS),
        kinds=tables.read_csv(kinds),
        followed=misled.prompts(
            (
                tables.read_parquet(examples),
                tables.read_parquet(compared, columns=["id", "compared", "difference"]),
            )
            for examples, compared in zip(remarked, candidates, strict=True)
        ),
        version=ghosttrack.__version__,
        code=code,
        libraries=checked["libraries"],
        shared_texts=checked["shared_texts"],
        tokens=[
            (tables.read_csv(metrics_of), tables.read_csv(claims_of))
            for metrics_of, claims_of in zip(token_metrics or [], token_claims or [], strict=True)
        ],
        marked_answers={
            scored.parent.name: marked.examples(
                tables.read_parquet(texts),
                marked.with_thresholds(tables.read_parquet(scored), tables.read_csv(chosen)),
            )
            for texts, scored, chosen in zip(span_examples, span_scores, span_choices, strict=True)
        },
    )
    with files.atomic_write(report) as stream:
        stream.write(render(inputs))


if __name__ == "__main__":
    job.run(main, globals())
