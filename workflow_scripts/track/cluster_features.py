"""Group the features of all layers into semantic clusters, and label each cluster."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import cluster_labels, cluster_run, clusters

log = logging.getLogger("ghosttrack")


def main(
    *,
    neighbours: list[Path],
    features: list[Path],
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    table: Path,
    labels: Path,
    links: Path,
    layers: list[int],
    tracking: TrackingSettings,
    seed: int,
    threads: int,
) -> None:
    """Build the graph of features, cluster and label it, and measure the links on held-out text.

    `features`, `stores`, `manifests` and `weights` have one entry per layer of `layers`,
    `neighbours` one for every layer but the last.
    """
    torch.set_num_threads(threads)
    opened = [
        ActivationStore.open([store], [manifest], {"layer": layer})
        for layer, store, manifest in zip(layers, stores, manifests, strict=True)
    ]
    require_same_rows(opened)
    joined = cluster_run.join_layers(
        layers,
        opened,
        (sae.load(path.parent) for path in weights),
        neighbours,
        quantile=tracking.gate_quantile,
        coactivation=tracking.cluster_coactivation,
        seed=seed,
    )
    adjacency = clusters.graph(joined.sizes, joined.edges)
    assigned = clusters.assign(layers, joined.sizes, adjacency, tracking.cluster_resolution)
    dictionaries = {
        layer: tables.read_parquet(path, columns=cluster_labels.DICTIONARY)
        for layer, path in zip(layers, features, strict=True)
    }
    described = cluster_labels.describe(assigned, dictionaries)
    for path, frame in ((table, assigned), (labels, described)):
        with files.atomic_write(path, "wb") as stream:
            frame.to_parquet(stream, index=False)
    with files.atomic_write(links) as text:
        tables.write_csv(joined.links, text)
    log_clusters(assigned, described)


def log_clusters(assigned: pd.DataFrame, described: pd.DataFrame) -> None:
    """Log the number and the sizes of the clusters."""
    several = described[described["features"] > 1]
    log.info(
        "%d features: %d clusters of two or more, %d isolated features; median size %.0f, "
        "largest %d; %.1f %% of the clusters span several layers; %.2f of the edge weight is "
        "within clusters",
        len(assigned),
        len(several),
        len(described) - len(several),
        several["features"].median() if len(several) else 0,
        described["features"].max(),
        100 * (several["layers"] > 1).mean() if len(several) else 0.0,
        float(np.average(assigned["inside"], weights=assigned["weight"]))
        if assigned["weight"].sum() > 0
        else 0.0,
    )


if __name__ == "__main__":
    job.run(main, globals())
