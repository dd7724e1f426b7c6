"""Compute the track metrics of one data set, one row per example."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, job, tables
from ghosttrack.tracks import clusters as semantic
from ghosttrack.tracks.redundancy import rank, redundancy
from ghosttrack.tracks.track_metrics import NAMES, measure_examples
from ghosttrack.tracks.track_table import TrackReader

log = logging.getLogger("ghosttrack")


def main(
    *,
    tracks: list[Path],
    tracks_manifests: list[Path],
    outputs: Path,
    errors: Path,
    clusters: Path,
    track_metrics: list[Path],
    redundant: Path,
    variants: list[str],
) -> None:
    """Compute all metrics, average them per example, and list the redundant metrics.

    `tracks`, `tracks_manifests` and `track_metrics` have one entry per variant of `variants`.
    """
    examples = tables.read_parquet(outputs, columns=["id", "row_start", "row_count"])
    if examples.empty:
        raise UserError(
            f"{outputs} has no examples: add statements to the data set's file in config/datasets"
        )
    start, count = (examples[name].to_numpy("int64") for name in ("row_start", "row_count"))
    table, row_errors = (
        tables.read_parquet(clusters),
        tables.read_parquet(errors).to_numpy("float32"),
    )
    redundancies = []
    for variant, directory, manifest, path in zip(
        variants, tracks, tracks_manifests, track_metrics, strict=True
    ):
        reader = TrackReader(directory, manifest)
        measured = measure_examples(
            reader, start, count, semantic.lookup(table, reader.layers), row_errors
        )
        frame = measured.metrics
        repeated = redundancy(frame, NAMES).assign(variant=variant)
        redundancies.append(repeated)
        log.info(
            "%s: %d examples, %d metrics of rank %d; constant: %s; repeats: %s",
            variant,
            len(frame),
            len(NAMES),
            rank(frame, NAMES),
            ", ".join(repeated["metric"][repeated["constant"]]) or "none",
            ", ".join(
                f"{row.metric} = {row.repeats}" for row in repeated.itertuples() if row.repeats
            )
            or "none",
        )
        frame.insert(0, "id", examples["id"].to_numpy())
        # Stored in the metadata of the parquet file, under PANDAS_ATTRS.
        frame.attrs = {
            "layers": reader.layers,
            "rows": reader.rows,
            "track_lengths": measured.lengths.tolist(),
            "links": measured.links.tolist(),
        }
        with files.atomic_write(path, "wb") as stream:
            frame.to_parquet(stream, index=False)
    with files.atomic_write(redundant) as text:
        columns = ["variant", "metric", "family", "constant", "repeats", "correlation"]
        tables.write_csv(pd.concat(redundancies)[columns], text)


if __name__ == "__main__":
    job.run(main, globals())
