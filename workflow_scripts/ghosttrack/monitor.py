"""How far a run is, from its files alone: no locks, no Snakemake, no Slurm, nothing written.

A job counts as done when its outputs stand; whether Snakemake would remake them, a dry run tells.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.settings import DatasetSettings, Settings

# Rules of a default run, without model and wave, in the order of the pipeline.
PHASES = (
    "fetch_model", "fetch_corpus", "fetch_dataset", "fetch_questions", "generate_answers",
    "extract_activations", "extract_heldout", "extract_examples", "train_sae", "train_shared_sae",
    "evaluate_sae", "describe_features", "find_neighbours", "track_features", "measure_signals", "audit_dataset", "train_detectors",
    "evaluate_detectors", "check_results", "draw_figures", "write_report", "check_claims",
)  # fmt: skip


class Job(NamedTuple):
    """One job: its phase, its name among the phase's logs ("" for an only one), and whether its outputs stand."""

    phase: str
    name: str
    done: bool


class Layer(NamedTuple):
    """One layer: whole training stores on disk and jobs that write one, whether its SAE is trained and measured."""

    layer: int
    stores: int
    shards: int
    trained: bool
    measured: bool


class Disk(NamedTuple):
    """Bytes on disk; `training` counts unfinished stores, which are `partial`, too."""

    training: int
    partial: int
    heldout: int
    examples: int


def jobs(
    settings: Settings, waves: Sequence[Sequence[int]], datasets: Mapping[str, DatasetSettings], results: Path
) -> list[Job]:
    """Every job of one model's default run, phase by phase."""
    home = results / settings.model
    found = [
        Job(phase, name, all((home / path).exists() for path in outputs))
        for phase, name, outputs in _outputs(settings, datasets)
    ]
    # A store may be gone because its SAE is trained: then the job that wrote it is done.
    trained = {layer for layer in settings.layers if _trained(home, layer)}
    for wave, layers in enumerate(waves):
        for shard in range(settings.shards):
            done = all(layer in trained or _stored(home, layer, shard) for layer in layers)
            found.append(Job("extract_activations", f"wave_{wave:02d}_shard_{shard:04d}", done))
    return sorted(found, key=lambda job: PHASES.index(job.phase))


def layers(settings: Settings, results: Path) -> list[Layer]:
    """Where each analysed layer stands."""
    home = results / settings.model
    return [
        Layer(
            layer,
            sum(_stored(home, layer, shard) for shard in range(settings.shards)),
            settings.shards,
            _trained(home, layer),
            (home / "saes" / f"layer_{layer:02d}" / "quality.json").exists(),
        )
        for layer in settings.layers
    ]


def disk(model: str, results: Path) -> Disk:
    """What a model's activation stores take on disk now, in bytes."""
    home = results / model
    training, partial = _sizes(home / "activations")
    return Disk(training, partial, _sizes(home / "heldout")[0], _sizes(home / "examples")[0])


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes of all files below `folder`, and of those in `*.partial` folders; files may vanish meanwhile."""
    total = partial = 0
    for place, _, names in os.walk(folder):
        unfinished = ".partial" in place.removeprefix(str(folder))
        for name in names:
            try:
                size = (Path(place) / name).lstat().st_size
            except FileNotFoundError:
                continue
            total += size
            partial += size if unfinished else 0
    return total, partial


def _trained(home: Path, layer: int) -> bool:
    return (home / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors").exists()


def _stored(home: Path, layer: int, shard: int) -> bool:
    return (home / "activations" / f"layer_{layer:02d}" / f"shard_{shard:04d}.json").exists()


def _outputs(settings: Settings, datasets: Mapping[str, DatasetSettings]) -> Iterator[tuple[str, str, list[str]]]:
    """Rule, name and outputs, below the model's folder, of every job but those of `extract_activations`."""
    folders = [f"layer_{layer:02d}" for layer in settings.layers]
    variants = settings.tracking.variants
    yield "fetch_model", "", ["model/source.json", "model/model.safetensors"]
    yield "fetch_corpus", "", ["corpus/train.json", "corpus/heldout.json"]
    for name in settings.datasets:
        if datasets[name].mode == "generated":
            yield "fetch_questions", name, [f"datasets/{name}/questions.parquet"]
            yield "generate_answers", name, [f"datasets/{name}/examples.parquet", f"datasets/{name}/labels.json"]
        else:
            yield "fetch_dataset", name, [f"datasets/{name}/examples.parquet"]
    yield "extract_heldout", "", [f"heldout/{layer}.json" for layer in folders]
    if settings.sae.dictionaries == "shared":
        yield "train_shared_sae", "", [f"saes/{layer}/sae_weights.safetensors" for layer in folders]
    for layer in folders:
        if settings.sae.dictionaries != "shared":
            yield "train_sae", layer, [f"saes/{layer}/{name}" for name in ("sae_weights.safetensors", "cfg.json")]
        yield "evaluate_sae", layer, [f"saes/{layer}/quality.json"]
        yield "describe_features", layer, [f"features/{layer}.parquet"]
    for layer in folders[:-1]:
        yield "find_neighbours", layer, [f"neighbours/{layer}.npz"]
    for name in settings.datasets:
        yield "extract_examples", name, [f"examples/{name}/{layer}.json" for layer in [*folders, "embedding"]]
        yield "track_features", name, [f"tracks/{name}.{variant}.json" for variant in variants]
        yield "measure_signals", name, [f"signals/{name}.{variant}.parquet" for variant in variants]
        yield "audit_dataset", name, [f"detection/{name}/leak_audit.csv"]
        yield "train_detectors", name, [f"detection/{name}/scores.parquet"]
    yield "evaluate_detectors", "", ["evaluation/metrics.csv", "evaluation/ledger.csv"]
    yield "check_results", "", ["evaluation/checks.json"]
    yield "draw_figures", "", ["figures/auroc.png"]
    yield "write_report", "", ["report.html"]
    if settings.strict:
        yield "check_claims", "", ["evaluation/claims.json"]
