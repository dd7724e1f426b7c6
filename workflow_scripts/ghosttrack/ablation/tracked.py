"""Tracks of an arm and their metrics, for every data set in turn; the tracks themselves are not kept."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.runtime import files, tables
from ghosttrack.sae import Sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import clusters as semantic
from ghosttrack.tracks import neighbour_run, neighbours, track_run
from ghosttrack.tracks.signals import measure_examples
from ghosttrack.tracks.track_table import Reader
from ghosttrack.tracks.tracking import Options

log = logging.getLogger("ghosttrack")


class Stores(NamedTuple):
    """Activation stores and their manifests, one of each analysed layer."""

    stores: Sequence[Path]
    manifests: Sequence[Path]


class Tracker:
    """How an arm follows features: its autoencoders, links and options, the same for every data set."""

    def __init__(
        self,
        saes: Sequence[Sae],
        layers: Sequence[int],
        links: Sequence[Path],
        tracking: TrackingSettings,
        variant: str,
        seed: int,
    ) -> None:
        self._saes, self._layers, self._variant, self._seed = saes, layers, variant, seed
        self._plan = track_run.plan_links(
            variant,
            layers,
            links,
            saes,
            kind=tracking.links,
            count=tracking.neighbours,
            quantile=tracking.gate_quantile,
            seed=seed,
        )
        self._options = Options(
            tracking.top_k, tracking.second_association, tracking.coast, tracking.activation_weight
        )

    def measure(
        self, found: Stores, outputs: Path, errors: Path, clusters: pd.DataFrame
    ) -> pd.DataFrame:
        """Metrics of one data set, a row an example, with its `id`."""
        opened = [
            ActivationStore.open([store], [manifest])
            for store, manifest in zip(*found, strict=True)
        ]
        require_same_rows(opened)
        examples = tables.read_parquet(outputs, columns=["id", "row_start", "row_count"])
        start, count = (examples[name].to_numpy("int64") for name in ("row_start", "row_count"))
        with tempfile.TemporaryDirectory(prefix="ghosttrack_arm_") as scratch:
            directory, manifest = Path(scratch) / "tracks.zarr", Path(scratch) / "tracks.json"
            about = track_run.track(
                opened,
                self._saes,
                self._layers,
                self._plan,
                self._options,
                self._variant,
                self._seed,
                directory,
            )
            files.write_json(manifest, about)
            reader = Reader(directory, manifest)
            lookup = semantic.lookup(clusters, reader.layers)
            left = tables.read_parquet(errors).to_numpy("float32")
            table = measure_examples(reader, start, count, lookup, left).signals
        log.info(
            "%s: %d examples, %.1f links per token",
            outputs.parent.name,
            len(table),
            _links_per_token(about),
        )
        table.insert(0, "id", examples["id"].to_numpy())
        return table


def compare_anew(
    folder: Path,
    layers: Sequence[int],
    weights: Sequence[Path],
    heldout: Stores,
    tracking: TrackingSettings,
    seed: int,
) -> list[Path]:
    """Write the links of every layer but the last to `folder`, as `tracking` says; the paths.

    Args:
        heldout: of every layer where links are correlations of held-out activations, else empty.
    """
    paths = []
    for position, layer in enumerate(layers[:-1]):
        window = slice(position, position + 3)
        similarities = neighbour_run.similarities(
            layers[window], weights[window], heldout.stores[window], heldout.manifests[window], seed
        )
        found = [
            neighbour_run.compare_as(
                tracking.links, each, tracking.neighbours, tracking.gate_quantile
            )
            for each in similarities
        ]
        paths.append(folder / f"layer_{layer:02d}.npz")
        neighbours.save(paths[-1], layers[window], found)
    return paths


def _links_per_token(about: dict[str, object]) -> float:
    counts = about["counts"]
    assert isinstance(counts, dict)
    links = float(np.sum(counts["adjacent"]) + np.sum(counts["coasted"]))
    return links / max(int(counts["tracked_tokens"]), 1)
