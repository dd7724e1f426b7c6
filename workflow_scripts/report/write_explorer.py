"""Write the explorer: one page with texts, their tokens, and the tracks of each token."""

from pathlib import Path

import ghosttrack
from ghosttrack.inputs import models
from ghosttrack.report.explorer import content, dictionary, page
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks.track_table import TrackReader


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
) -> None:
    """Read the tables of a run and write its page.

    Probe colours and contributions are left out where no detector could be fitted. `clusters` has the columns layer, feature, cluster. `examples`, `tokens`, `outputs`, `tracks` and `tracks_manifests` go with `datasets`, `features` with `layers`.
    """
    found = {
        name: content.DatasetTables(
            tables.read_parquet(own_examples),
            tables.read_parquet(own_tokens),
            tables.read_parquet(own_outputs),
            TrackReader(store, manifest),
        )
        for name, own_examples, own_tokens, own_outputs, store, manifest in zip(
            datasets, examples, tokens, outputs, tracks, tracks_manifests, strict=True
        )
    }
    described = {
        layer: tables.read_parquet(path, columns=dictionary.COLUMNS)
        for layer, path in zip(layers, features, strict=True)
    }
    explained = content.Explained(tables.read_parquet(token_scores), tables.read_parquet(effects))
    made = content.assemble(
        model,
        found,
        tables.read_parquet(scores),
        described,
        models.load_tokenizer(tokenizer.parent),
        report,
        None if explained.tokens.empty else explained,
        tables.read_parquet(clusters) if clusters else None,
    )
    with files.atomic_write(explorer) as stream:
        stream.write(page.render(made, ghosttrack.__version__))


if __name__ == "__main__":
    job.run(main, globals())
