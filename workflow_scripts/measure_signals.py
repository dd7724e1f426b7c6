"""Turn the tracks of one data set into metrics, one row per example."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack import files, frames, job
from ghosttrack.errors import UserError
from ghosttrack.tracks import metrics
from ghosttrack.tracks.track_table import Reader

log = logging.getLogger("ghosttrack")


def main(*, tracks: Path, tracks_manifest: Path, outputs: Path, signals: Path) -> None:
    """Measure every token, average over each example's answer tokens, and say which metrics carry nothing."""
    examples = frames.read_parquet(outputs, columns=["id", "row_start", "row_count"])
    if examples.empty:
        raise UserError(f"{outputs} has no examples: check the data set in config/datasets")
    start, count = (examples[name].to_numpy("int64") for name in ("row_start", "row_count"))
    values = metrics.measure_examples(Reader(tracks, tracks_manifest), start, count)
    table = pd.DataFrame(values, columns=list(metrics.NAMES))
    table.insert(0, "id", examples["id"].to_numpy())
    redundant = metrics.redundancy(table)
    log.info(
        "%d examples, %d metrics of rank %d; constant: %s; repeats: %s",
        len(table), len(metrics.NAMES), redundant.rank, ", ".join(redundant.constant) or "none",
        ", ".join(f"{name} = {of}" for name, of in redundant.repeats.items()) or "none",
    )  # fmt: skip
    # The parquet file's own metadata keeps it, under PANDAS_ATTRS.
    table.attrs = {"redundancy": redundant._asdict()}
    with files.atomic_write(signals, "wb") as stream:
        table.to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
