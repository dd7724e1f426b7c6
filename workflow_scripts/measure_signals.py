"""Turn the tracks of one data set into metrics, one row per example."""

import logging
from pathlib import Path

import pandas as pd

from ghosttrack import files, frames, job
from ghosttrack.errors import UserError
from ghosttrack.tracks import metrics
from ghosttrack.tracks.track_table import Reader

log = logging.getLogger("ghosttrack")


def main(
    *, tracks: list[Path], tracks_manifests: list[Path], outputs: Path, signals: list[Path], variants: list[str]
) -> None:
    """Measure every token, average over each example's answer tokens, and say which metrics carry nothing.

    `tracks`, `tracks_manifests` and `signals` go with `variants`.
    """
    examples = frames.read_parquet(outputs, columns=["id", "row_start", "row_count"])
    if examples.empty:
        raise UserError(f"{outputs} has no examples: check the data set in config/datasets")
    for variant, directory, manifest, path in zip(variants, tracks, tracks_manifests, signals, strict=True):
        table = measured(Reader(directory, manifest), examples)
        redundant = metrics.redundancy(table)
        log.info(
            "%s: %d examples, %d metrics of rank %d; constant: %s; repeats: %s",
            variant, len(table), len(metrics.NAMES), redundant.rank, ", ".join(redundant.constant) or "none",
            ", ".join(f"{name} = {of}" for name, of in redundant.repeats.items()) or "none",
        )  # fmt: skip
        # The parquet file's own metadata keeps it, under PANDAS_ATTRS.
        table.attrs = {"redundancy": redundant._asdict()}
        with files.atomic_write(path, "wb") as stream:
            table.to_parquet(stream, index=False)


def measured(tracks: Reader, examples: pd.DataFrame) -> pd.DataFrame:
    """One row per example: its id, and every metric averaged over its answer tokens."""
    start, count = (examples[name].to_numpy("int64") for name in ("row_start", "row_count"))
    table = pd.DataFrame(metrics.measure_examples(tracks, start, count), columns=list(metrics.NAMES))
    table.insert(0, "id", examples["id"].to_numpy())
    return table


if __name__ == "__main__":
    job.run(main, globals())
