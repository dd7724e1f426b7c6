"""Find each feature's nearest neighbours in the next layers, and the gate that a null sets."""

import logging
from pathlib import Path

import torch

from ghosttrack.runtime import job
from ghosttrack.runtime.run_paths import layer_of
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import neighbour_run
from ghosttrack.tracks.neighbours import save

log = logging.getLogger("ghosttrack")


def main(
    *,
    weights: list[Path],
    stores: list[Path],
    manifests: list[Path],
    neighbours: Path,
    layer: int,
    tracking: TrackingSettings,
    seed: int,
    threads: int,
) -> None:
    """Compare the features of a layer with those of the next two layers.

    `weights` are those of this layer, of the next analysed layer, and of the one after it if there
    is one. For links by correlation, `stores` and `manifests` are the held-out activations of the
    same layers.
    """
    torch.set_num_threads(threads)
    layers = [layer, *(layer_of(path.parent) for path in weights[1:])]
    similarities = neighbour_run.similarities(layers, weights, stores, manifests, seed)
    comparisons = []
    for upper, similarity in zip(layers[1:], similarities, strict=True):
        comparison = neighbour_run.compare_as(
            tracking.links, similarity, tracking.neighbours, tracking.gate_quantile
        )
        comparisons.append(comparison)
        log.info(
            "layers %d to %d: gate %.3f, median best match %.3f (null %.3f), "
            "%.1f %% of features above the gate, %.1f %% mutual%s",
            layer,
            upper,
            comparison.gate,
            float(torch.from_numpy(comparison.best).median()),
            float(torch.from_numpy(comparison.null_best).median()),
            100 * (comparison.best > comparison.gate).mean(),
            100 * comparison.mutual.mean(),
            ""
            if comparison.covered
            else "; lists are too short to reach the gate, raise tracking.neighbours",
        )
    save(neighbours, layers, comparisons)


if __name__ == "__main__":
    job.run(main, globals())
