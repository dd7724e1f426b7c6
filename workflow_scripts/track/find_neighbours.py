"""Find each feature's neighbours in the following layers, and the gate that chance sets."""

import logging
from pathlib import Path

import torch

from ghosttrack.runtime import job
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
    """Compare the features of a layer with those of the next one and of the one after, and write the lists.

    `weights`: of this layer, the next analysed one, and the one after if there is one; with links by correlation,
    `stores` and `manifests` are the same layers' held-out activations.
    """
    torch.set_num_threads(threads)
    layers = [layer, *(int(path.parent.name.removeprefix("layer_")) for path in weights[1:])]
    similarities = neighbour_run.similarities(layers, weights, stores, manifests, seed)
    found = []
    for upper, similarity in zip(layers[1:], similarities, strict=True):
        pair = neighbour_run.compare_as(
            tracking.links, similarity, tracking.neighbours, tracking.gate_quantile
        )
        found.append(pair)
        log.info(
            "layers %d to %d: gate %.3f, median best match %.3f (null %.3f), %.1f %% of features above the gate, %.1f %% mutual%s",
            layer,
            upper,
            pair.gate,
            float(torch.from_numpy(pair.best).median()),
            float(torch.from_numpy(pair.null_best).median()),
            100 * (pair.best > pair.gate).mean(),
            100 * pair.mutual.mean(),
            "" if pair.covered else "; lists end above the gate, raise tracking.neighbours",
        )
    save(neighbours, layers, found)


if __name__ == "__main__":
    job.run(main, globals())
