"""Track features with the settings of one arm of an ablation, and measure every data set."""

import tempfile
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ghosttrack.ablation.tracked import ArmTracker, LayerStores, compute_links
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
    track_metrics: Path,
    layers: list[int],
    datasets: list[str],
    tracking: TrackingSettings,
    variant: str,
    recompute_links: bool,
    seed: int,
    threads: int,
) -> None:
    """Write the track metrics of every data set, one row per example.

    `stores` and `manifests` have one entry per pair of `layers` x `datasets`, `weights` one per
    layer, `outputs` and `errors` one per data set. `neighbours` are the run's neighbour files, for
    all layers but the last; with `recompute_links` new links replace them.
    """
    torch.set_num_threads(threads)
    store_of = dict(
        zip(product(layers, datasets), zip(stores, manifests, strict=True), strict=True)
    )
    table, parts = tables.read_parquet(clusters), []
    progress = Progress("tracking an arm", len(datasets), "data sets")
    with tempfile.TemporaryDirectory(prefix="ghosttrack_links_") as scratch:
        links = neighbours
        if recompute_links:
            heldout = LayerStores(heldout_stores, heldout_manifests)
            links = compute_links(Path(scratch), layers, weights, heldout, tracking, seed)
        saes = track_run.load_saes(weights, decoders=False)
        tracker = ArmTracker(saes, layers, links, tracking, variant, seed)
        for dataset, output, error in zip(datasets, outputs, errors, strict=True):
            of_dataset = [store_of[layer, dataset] for layer in layers]
            measured = tracker.measure(
                LayerStores(*map(list, zip(*of_dataset, strict=True))), output, error, table
            )
            measured.insert(0, "dataset", dataset)
            parts.append(measured)
            progress.advance(1)
    with files.atomic_write(track_metrics, "wb") as stream:
        pd.concat(parts, ignore_index=True).to_parquet(stream, index=False)


if __name__ == "__main__":
    job.run(main, globals())
