"""Measure every sparse autoencoder on the answer tokens of every data set."""

from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae.answers import measure_answers


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    answers: Path,
    layers: list[int],
    datasets: list[str],
    threads: int,
) -> None:
    """Write one row per layer and data set, and one per layer over all data sets.

    `stores` and `manifests` are in the order of `layers` x `datasets`.
    """
    torch.set_num_threads(threads)
    paths = dict(zip(product(layers, datasets), zip(stores, manifests, strict=True), strict=True))
    rows, progress = [], Progress("measuring", len(layers), "layers")
    for layer, sae_weights in zip(layers, weights, strict=True):
        opened = {}
        for dataset in datasets:
            store, manifest = paths[layer, dataset]
            opened[dataset] = ActivationStore.open([store], [manifest], {"layer": layer})
        rows += measure_answers(sae.load(sae_weights.parent), layer, opened)
        progress.advance(1)
    with files.atomic_write(answers) as stream:
        tables.write_csv(pd.DataFrame(rows), stream)


if __name__ == "__main__":
    job.run(main, globals())
