"""Track the features of every answer token across layers, with the tracker and with its nulls."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.runtime import files, job
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run
from ghosttrack.tracks.token_errors import token_errors
from ghosttrack.tracks.tracking import TrackerOptions

log = logging.getLogger("ghosttrack")


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    neighbours: list[Path],
    tracks: list[Path],
    tracks_manifests: list[Path],
    errors: Path,
    layers: list[int],
    variants: list[str],
    tracking: TrackingSettings,
    seed: int,
    threads: int,
) -> None:
    """Encode the answer tokens, link their features by each variant, and write tracks and errors.

    `stores`, `manifests` and `weights` have one entry per layer of `layers`, `neighbours` one for
    every layer but the last; `tracks` and `tracks_manifests` have one per variant of `variants`.
    """
    torch.set_num_threads(threads)
    original = tracking.mode == "original"
    saes = track_run.load_saes(weights, decoders=original or "shuffled" in variants)
    opened = [
        ActivationStore.open([store], [manifest])
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    require_same_rows(opened)
    options = TrackerOptions.from_settings(tracking)
    digests = track_run.input_digests(manifests=manifests, weights=weights, neighbours=neighbours)
    for variant, directory, manifest in zip(variants, tracks, tracks_manifests, strict=True):
        plan: track_run.TrackingPlan
        if original:
            plan = track_run.plan_original(variant, saes, tracking.original, seed)
        else:
            plan = track_run.plan_links(
                variant,
                layers,
                neighbours,
                saes,
                kind=tracking.links,
                count=tracking.neighbours,
                quantile=tracking.gate_quantile,
                seed=seed,
            )
        about = track_run.track(opened, saes, layers, plan, options, variant, seed, directory)
        files.write_json(
            manifest, {**about, "mode": tracking.mode, "seed": seed, "inputs_sha256": digests}
        )
        log_counts(variant, about["counts"])
    names = [layer_name(layer) for layer in layers]
    with files.atomic_write(errors, "wb") as stream:
        pd.DataFrame(token_errors(opened, weights), columns=names).to_parquet(stream, index=False)


def log_counts(variant: str, counts: Mapping[str, Any]) -> None:
    """Log the counts of a variant, as in its manifest."""
    tokens = max(counts["tracked_tokens"], 1)
    log.info(
        "%s: %d tokens, %.1f links per token (%.1f coasted), "
        "%.1f of %.1f detections per token from the second association, "
        "%d of %d candidate links needed the solver",
        variant,
        counts["tracked_tokens"],
        (sum(counts["adjacent"]) + sum(counts["coasted"])) / tokens,
        sum(counts["coasted"]) / tokens,
        sum(counts["second_association"]) / tokens,
        sum(counts["detections"]) / tokens,
        counts["hard_candidates"],
        counts["candidates"],
    )


if __name__ == "__main__":
    job.run(main, globals())
