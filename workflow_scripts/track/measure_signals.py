"""Turn the tracks of one data set into metrics, one row per example."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, job, tables
from ghosttrack.tracks import clusters as semantic
from ghosttrack.tracks.redundancy import rank, redundancy
from ghosttrack.tracks.signals import NAMES, measure_examples
from ghosttrack.tracks.track_table import Reader

log = logging.getLogger("ghosttrack")


def main(
    *,
    tracks: list[Path],
    tracks_manifests: list[Path],
    outputs: Path,
    errors: Path,
    clusters: Path,
    signals: list[Path],
    redundant: Path,
    variants: list[str],
) -> None:
    """Measure every token, average over each example's answer tokens, and write down which metrics carry nothing.

    `tracks`, `tracks_manifests` and `signals` go with `variants`.
    """
    examples = tables.read_parquet(outputs, columns=["id", "row_start", "row_count"])
    if examples.empty:
        raise UserError(f"{outputs} has no examples: check the data set in config/datasets")
    start, count = (examples[name].to_numpy("int64") for name in ("row_start", "row_count"))
    table, left = tables.read_parquet(clusters), tables.read_parquet(errors).to_numpy("float32")
    found = []
    for variant, directory, manifest, path in zip(
        variants, tracks, tracks_manifests, signals, strict=True
    ):
        reader = Reader(directory, manifest)
        measured = measure_examples(
            reader, start, count, semantic.lookup(table, reader.layers), left
        )
        frame = measured.signals
        found.append(redundancy(frame, NAMES).assign(variant=variant))
        nothing = found[-1]
        log.info(
            "%s: %d examples, %d metrics of rank %d; constant: %s; repeats: %s",
            variant,
            len(frame),
            len(NAMES),
            rank(frame, NAMES),
            ", ".join(nothing["metric"][nothing["constant"]]) or "none",
            ", ".join(
                f"{row.metric} = {row.repeats}" for row in nothing.itertuples() if row.repeats
            )
            or "none",
        )
        frame.insert(0, "id", examples["id"].to_numpy())
        # The parquet file's own metadata keeps it, under PANDAS_ATTRS.
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
        tables.write_csv(pd.concat(found)[columns], text)


if __name__ == "__main__":
    job.run(main, globals())
