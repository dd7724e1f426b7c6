"""Follow the features of every answer token across layers."""

import logging
from pathlib import Path

import torch

from ghosttrack import files, job
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run
from ghosttrack.tracks.tracking import Options

log = logging.getLogger("ghosttrack")


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    neighbours: list[Path],
    tracks: Path,
    tracks_manifest: Path,
    layers: list[int],
    tracking: TrackingSettings,
    variant: str,
    seed: int,
    threads: int,
) -> None:
    """Encode the answer tokens, link their features by the variant's rule, and write the tracks.

    `stores`, `manifests` and `weights` go with `layers`, `neighbours` with all of them but the last.
    """
    torch.set_num_threads(threads)
    saes = track_run.load_saes(weights, variant)
    opened = [ActivationStore.open([store], [manifest]) for store, manifest in zip(stores, manifests, strict=True)]
    plan = track_run.plan_links(
        variant, layers, neighbours, saes, count=tracking.neighbours, quantile=tracking.gate_quantile, seed=seed
    )
    options = Options(tracking.top_k, tracking.rescue, tracking.coast, tracking.activation_weight)
    about = track_run.track(opened, saes, layers, plan, options, variant, seed, tracks)
    about["seed"] = seed
    about["inputs_sha256"] = track_run.input_digests(manifests=manifests, weights=weights, neighbours=neighbours)
    files.write_json(tracks_manifest, about)
    counts = about["counts"]
    log.info(
        "%d tokens, %.1f links per token (%.1f coasted), %.1f of %.1f detections rescued, %d of %d candidates needed the solver",
        counts["tracked_tokens"],
        (sum(counts["adjacent"]) + sum(counts["coasted"])) / max(counts["tracked_tokens"], 1),
        sum(counts["coasted"]) / max(counts["tracked_tokens"], 1),
        sum(counts["rescued"]) / max(counts["tracked_tokens"], 1),
        sum(counts["detections"]) / max(counts["tracked_tokens"], 1),
        counts["hard_candidates"],
        counts["candidates"],
    )


if __name__ == "__main__":
    job.run(main, globals())
