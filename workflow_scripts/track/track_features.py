"""Follow the features of every answer token across layers: the tracker, and each of its nulls."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.runtime import files, job
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run
from ghosttrack.tracks.token_errors import token_errors
from ghosttrack.tracks.tracking import Options

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
    """Encode the answer tokens, link their features by each variant's rule, and write the tracks and the errors.

    `stores`, `manifests` and `weights` go with `layers`, `neighbours` with all of them but the last;
    `tracks` and `tracks_manifests` go with `variants`.
    """
    torch.set_num_threads(threads)
    original = tracking.mode == "original"
    saes = track_run.load_saes(weights, decoders=original or "shuffled" in variants)
    opened = [
        ActivationStore.open([store], [manifest])
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    require_same_rows(opened)
    options = Options(
        tracking.top_k, tracking.second_association, tracking.coast, tracking.activation_weight
    )
    if original:  # it knows neither coasting nor rescue
        options = Options(
            tracking.top_k, rescue=1, coast=0, activation_weight=tracking.original.activation_weight
        )
    digests = track_run.input_digests(manifests=manifests, weights=weights, neighbours=neighbours)
    for variant, directory, manifest in zip(variants, tracks, tracks_manifests, strict=True):
        plan: track_run.Plan
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
        tell(variant, about["counts"])
    names = [f"layer_{layer:02d}" for layer in layers]
    with files.atomic_write(errors, "wb") as stream:
        pd.DataFrame(token_errors(opened, weights), columns=names).to_parquet(stream, index=False)


def tell(variant: str, counts: Mapping[str, Any]) -> None:
    """Put a variant's counts, as the manifest holds them, into the log."""
    tokens = max(counts["tracked_tokens"], 1)
    log.info(
        "%s: %d tokens, %.1f links per token (%.1f coasted), %.1f of %.1f detections rescued, %d of %d candidates needed the solver",
        variant,
        counts["tracked_tokens"],
        (sum(counts["adjacent"]) + sum(counts["coasted"])) / tokens,
        sum(counts["coasted"]) / tokens,
        sum(counts["rescued"]) / tokens,
        sum(counts["detections"]) / tokens,
        counts["hard_candidates"],
        counts["candidates"],
    )


if __name__ == "__main__":
    job.run(main, globals())
