"""Write the explorer: one page with texts, their tokens, and the tracks of every token."""

from collections.abc import Sequence
from pathlib import Path

import ghosttrack
from ghosttrack.inputs import models
from ghosttrack.report import marked
from ghosttrack.report.explorer import candidates as explorer_candidates
from ghosttrack.report.explorer import content, dictionary, page
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks.track_table import TrackReader

# Tables of rule attribute_candidates, as in explorer_candidates.Candidates.
KINDS = ("controls", "metrics", "tracks", "tokens")


def main(
    *,
    examples: list[Path],
    tokens: list[Path],
    outputs: list[Path],
    tracks: list[Path],
    tracks_manifests: list[Path],
    features: list[Path],
    scores: Path,
    tokenizer: Path,
    token_scores: Path,
    effects: Path,
    explorer: Path,
    report: ReportSettings,
    model: str,
    datasets: list[str],
    layers: list[int],
    clusters: Path | None = None,
    candidates: Sequence[Path] = (),
    span_scores: Sequence[Path] = (),
    span_choices: Sequence[Path] = (),
) -> None:
    """Read the tables of a run and write its explorer.

    `examples`, `tokens`, `outputs`, `tracks` and `tracks_manifests` are in the order of `datasets`,
    `features` in that of `layers`. `clusters` has the columns layer, feature, cluster.
    `candidates`: tables DATASET.KIND.parquet of the data sets whose candidates are compared.
    `span_scores` and `span_choices` are in the folders of their data sets.
    """
    spans = {
        scored.parent.name: marked.with_thresholds(
            tables.read_parquet(scored), tables.read_csv(chosen)
        )
        for scored, chosen in zip(span_scores, span_choices, strict=True)
    }
    by_dataset = {
        name: content.DatasetTables(
            tables.read_parquet(texts),
            tables.read_parquet(answer_tokens),
            tables.read_parquet(output_rows),
            TrackReader(store, manifest),
            _candidates(candidates, name, layers),
            spans.get(name),
        )
        for name, texts, answer_tokens, output_rows, store, manifest in zip(
            datasets, examples, tokens, outputs, tracks, tracks_manifests, strict=True
        )
    }
    by_layer = {
        layer: tables.read_parquet(path, columns=dictionary.COLUMNS)
        for layer, path in zip(layers, features, strict=True)
    }
    detector = content.DetectorTables(
        tables.read_parquet(token_scores), tables.read_parquet(effects)
    )
    contents = content.assemble(
        model,
        by_dataset,
        tables.read_parquet(scores),
        by_layer,
        models.load_tokenizer(tokenizer.parent),
        report,
        None if detector.tokens.empty else detector,
        tables.read_parquet(clusters) if clusters else None,
    )
    with files.atomic_write(explorer) as stream:
        stream.write(page.render(contents, ghosttrack.__version__))


def _candidates(
    paths: Sequence[Path], dataset: str, layers: list[int]
) -> explorer_candidates.Candidates | None:
    found = {
        kind: path for path in paths for kind in KINDS if path.name == f"{dataset}.{kind}.parquet"
    }
    if not found:
        return None
    frames = {
        kind: tables.read_parquet(
            found[kind],
            columns=explorer_candidates.metric_columns(layers) if kind == "metrics" else None,
        )
        for kind in KINDS
    }
    metrics = frames["metrics"]
    return explorer_candidates.Candidates(
        **{**frames, "metrics": metrics[metrics["variant"] == "default"]}
    )


if __name__ == "__main__":
    job.run(main, globals())
