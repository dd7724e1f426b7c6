"""Tracks of an arm and their metrics, data set by data set; the tracks are not kept."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.runtime import files, tables
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.sae import Sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import clusters as semantic
from ghosttrack.tracks import neighbour_run, neighbours, track_run
from ghosttrack.tracks.track_metrics import measure_examples
from ghosttrack.tracks.track_table import TrackReader
from ghosttrack.tracks.tracking import TrackerOptions

log = logging.getLogger("ghosttrack")


class LayerStores(NamedTuple):
    """Activation stores and their manifests, one each per analysed layer."""

    stores: Sequence[Path]
    manifests: Sequence[Path]


class ArmTracker:
    """Tracks data sets with the SAEs, links and options of an arm."""

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
        self._options = TrackerOptions.from_settings(tracking)

    def measure(
        self, stores: LayerStores, outputs: Path, errors: Path, clusters: pd.DataFrame
    ) -> pd.DataFrame:
        """Track metrics of one data set, one row per example, with its `id`."""
        opened = [
            ActivationStore.open([store], [manifest])
            for store, manifest in zip(*stores, strict=True)
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
            reader = TrackReader(directory, manifest)
            lookup = semantic.lookup(clusters, reader.layers)
            row_errors = tables.read_parquet(errors).to_numpy("float32")
            table = measure_examples(reader, start, count, lookup, row_errors).metrics
        log.info(
            "%s: %d examples, %.1f links per token",
            outputs.parent.name,
            len(table),
            _links_per_token(about),
        )
        table.insert(0, "id", examples["id"].to_numpy())
        return table


def compute_links(
    folder: Path,
    layers: Sequence[int],
    weights: Sequence[Path],
    heldout: LayerStores,
    tracking: TrackingSettings,
    seed: int,
) -> list[Path]:
    """Compute and write the links of every layer but the last with `tracking`; return the paths.

    Args:
        folder: directory of the neighbour files.
        heldout: stores of every layer if links are correlations of held-out activations, else
            empty.
    """
    paths = []
    for position, layer in enumerate(layers[:-1]):
        window = slice(position, position + 3)
        similarities = neighbour_run.similarities(
            layers[window], weights[window], heldout.stores[window], heldout.manifests[window], seed
        )
        comparisons = [
            neighbour_run.compare_as(
                tracking.links, similarity, tracking.neighbours, tracking.gate_quantile
            )
            for similarity in similarities
        ]
        paths.append(folder / f"{layer_name(layer)}.npz")
        neighbours.save(paths[-1], layers[window], comparisons)
    return paths


def _links_per_token(about: dict[str, object]) -> float:
    counts = about["counts"]
    assert isinstance(counts, dict)
    links = float(np.sum(counts["adjacent"]) + np.sum(counts["coasted"]))
    return links / max(int(counts["tracked_tokens"]), 1)
