"""Follow features as one arm of an ablation says, and measure the tracks of every data set."""

import tempfile
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ghosttrack.ablation.tracked import Stores, Tracker, compare_anew
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.progress import Progress
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    neighbours: list[Path],
    heldout_stores: list[Path],
    heldout_manifests: list[Path],
    outputs: list[Path],
    errors: list[Path],
    clusters: Path,
    signals: Path,
    layers: list[int],
    datasets: list[str],
    tracking: TrackingSettings,
    variant: str,
    relinked: bool,
    seed: int,
    threads: int,
) -> None:
    """Write the metrics of every data set, one row an example.

    `stores` and `manifests` go with `layers` x `datasets`, `weights` with `layers`, `outputs` and `errors` with `datasets`;
    `neighbours` are the run's, of all layers but the last. With `relinked` the links are compared anew.
    """
    torch.set_num_threads(threads)
    found = dict(zip(product(layers, datasets), zip(stores, manifests, strict=True), strict=True))
    table, parts = tables.read_parquet(clusters), []
    progress = Progress("tracking an arm", len(datasets), "data sets")
    with tempfile.TemporaryDirectory(prefix="ghosttrack_links_") as scratch:
        links = neighbours
        if relinked:
            heldout = Stores(heldout_stores, heldout_manifests)
            links = compare_anew(Path(scratch), layers, weights, heldout, tracking, seed)
        saes = track_run.load_saes(weights, decoders=False)
        tracker = Tracker(saes, layers, links, tracking, variant, seed)
        for dataset, output, error in zip(datasets, outputs, errors, strict=True):
            own = [found[layer, dataset] for layer in layers]
            measured = tracker.measure(
                Stores(*map(list, zip(*own, strict=True))), output, error, table
            )
            measured.insert(0, "dataset", dataset)
            parts.append(measured)
            progress.advance(1)
    with files.atomic_write(signals, "wb") as stream:
        pd.concat(parts, ignore_index=True).to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
