"""Progress of a run, read from its files: no locks, no Snakemake, no Slurm, nothing written.

A job counts as done if its outputs exist. Only a dry run tells whether Snakemake would run it
again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.planning import plan
from ghosttrack.runtime.run_paths import RunPaths, layer_name
from ghosttrack.settings import DatasetSettings, Settings

# Rules of a default run in pipeline order, without the model and the wave in their names.
PHASES = (
    "fetch_model",
    "check_model",
    "fetch_corpus",
    "fetch_dataset",
    "fetch_questions",
    "generate_answers",
    "extract_activations",
    "extract_heldout",
    "extract_examples",
    "extract_closed_book",
    "extract_without_context",
    "fetch_sae",
    "train_sae",
    "train_shared_sae",
    "evaluate_sae",
    "fit_random_decoder",
    "describe_features",
    "find_neighbours",
    "cluster_features",
    "track_features",
    "measure_signals",
    "attribute_candidates",
    "measure_answers",
    "audit_dataset",
    "train_detectors",
    "read_score_table",
    "fit_detector_class",
    "train_token_detectors",
    "evaluate_detectors",
    "evaluate_token_detectors",
    "save_detector",
    "read_statements",
    "save_statement_detector",
    "check_explanations",
    "check_results",
    "draw_figures",
    "write_report",
    "write_explorer",
    "summarise_costs",
    "check_claims",
)


class Job(NamedTuple):
    """A job of the run."""

    phase: str  # rule without the model and the wave
    name: str  # log name without the ending; "" if the phase has one job
    done: bool  # whether all outputs exist


class Layer(NamedTuple):
    """Progress of one layer."""

    layer: int
    stores: int  # complete training stores on disk
    shards: int  # training stores in all, one per extraction job
    trained: bool  # whether the SAE exists
    measured: bool  # whether the quality of the SAE is measured


class DiskUse(NamedTuple):
    """Bytes of activation stores on disk; `training` includes unfinished stores (`partial`)."""

    training: int
    partial: int
    heldout: int
    examples: int


def jobs(
    settings: Settings,
    waves: Sequence[Sequence[int]],
    datasets: Mapping[str, DatasetSettings],
    results: Path,
) -> list[Job]:
    """Every job of one model's default run, phase by phase."""
    home = results / settings.model
    run_jobs = [
        Job(phase, name, all((home / path).exists() for path in outputs))
        for phase, name, outputs in _outputs(settings, datasets)
    ]
    # A store may be deleted after its SAE is trained; the job that wrote the store is still done.
    trained = {layer for layer in settings.layers if _trained(home, layer)}
    for layers in waves:
        for shard in range(settings.shards):
            done = all(layer in trained or _stored(home, layer, shard) for layer in layers)
            run_jobs.append(
                Job("extract_activations", f"{plan.pass_name(layers)}_shard_{shard:04d}", done)
            )
    return sorted(run_jobs, key=lambda job: PHASES.index(job.phase))


def outputs(settings: Settings, datasets: Mapping[str, DatasetSettings]) -> list[str]:
    """Outputs of the run by which `jobs` decides, relative to the model's folder."""
    return [path for _, _, paths in _outputs(settings, datasets) for path in paths]


def layers(settings: Settings, results: Path) -> list[Layer]:
    """Progress of every analysed layer."""
    home = results / settings.model
    return [
        Layer(
            layer,
            sum(_stored(home, layer, shard) for shard in range(settings.shards)),
            settings.shards,
            _trained(home, layer),
            RunPaths(home).sae_quality(layer).exists(),
        )
        for layer in settings.layers
    ]


def promised_manifests(settings: Settings, results: Path) -> list[Path]:
    """Manifests of stores that must exist: results depend on them, and no budget deletes them."""
    home = results / settings.model
    trained = [layer for layer in settings.layers if _trained(home, layer)]
    manifests = []
    if settings.keeps_training_rows:
        manifests += [
            _manifest(home, layer, shard) for layer in trained for shard in range(settings.shards)
        ]
    names = [layer_name(layer) for layer in trained]
    manifests += [
        home / f"heldout/{name}.json"
        for name in names
        if (home / f"saes/{name}/quality.json").exists()
    ]
    for dataset in settings.datasets:
        if (home / f"examples/{dataset}/tokens.parquet").exists():
            manifests += [
                home / f"examples/{dataset}/{name}.json" for name in [*names, "embedding"]
            ]
    return manifests


def disk(model: str, results: Path) -> DiskUse:
    """Disk use of a model's activation stores, in bytes."""
    home = results / model
    training, partial = _sizes(home / "activations")
    return DiskUse(training, partial, _sizes(home / "heldout")[0], _sizes(home / "examples")[0])


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes of all files below `folder`, and of those in `*.partial` folders."""
    total = partial = 0
    for directory, _, names in os.walk(folder):
        unfinished = ".partial" in directory.removeprefix(str(folder))
        for name in names:
            try:
                size = (Path(directory) / name).lstat().st_size
            except FileNotFoundError:  # deleted since the folder was listed
                continue
            total += size
            partial += size if unfinished else 0
    return total, partial


def _trained(home: Path, layer: int) -> bool:
    return RunPaths(home).sae_weights(layer).exists()


def _stored(home: Path, layer: int, shard: int) -> bool:
    return _manifest(home, layer, shard).exists()


def _manifest(home: Path, layer: int, shard: int) -> Path:
    return RunPaths(home).manifest(layer, shard)


def _outputs(
    settings: Settings, datasets: Mapping[str, DatasetSettings]
) -> Iterator[tuple[str, str, list[str]]]:
    """Phase, name and outputs of all jobs except `extract_activations`.

    The outputs repeat those of the rules, relative to the model's folder.
    """
    folders = [layer_name(layer) for layer in settings.layers]
    variants = settings.tracking.variants
    compared = [
        name
        for name in settings.datasets
        if settings.tracking.compares(datasets[name].conflict is not None)
    ]
    yield "fetch_model", "", ["model/source.json", "model/model.safetensors"]
    yield "check_model", "", ["model_check.json", "model_check.csv"]
    yield "fetch_corpus", "", ["corpus/train.json", "corpus/heldout.json"]
    for name in settings.datasets:
        if datasets[name].mode == "generated":
            yield "fetch_questions", name, [f"datasets/{name}/questions.parquet"]
            yield (
                "generate_answers",
                name,
                [
                    f"datasets/{name}/examples.parquet",
                    f"datasets/{name}/labels.json",
                    f"datasets/{name}/samples.parquet",
                ],
            )
        else:
            yield "fetch_dataset", name, [f"datasets/{name}/examples.parquet"]
    yield "extract_heldout", "", [f"heldout/{layer}.json" for layer in folders]
    if settings.sae.shared:
        yield "train_shared_sae", "", [f"saes/{layer}/sae_weights.safetensors" for layer in folders]
    for layer in folders:
        if not settings.sae.shared:
            origin = "train_sae" if settings.sae.trained else "fetch_sae"
            yield (
                origin,
                layer,
                [f"saes/{layer}/{name}" for name in ("sae_weights.safetensors", "cfg.json")],
            )
        yield "evaluate_sae", layer, [f"saes/{layer}/quality.json"]
        yield "describe_features", layer, [f"features/{layer}.parquet"]
        if compared:
            folder = f"random_decoders/{layer}"
            yield (
                "fit_random_decoder",
                layer,
                [f"{folder}/{name}" for name in ("sae_weights.safetensors", "cfg.json")],
            )
    for layer in folders[:-1]:
        yield "find_neighbours", layer, [f"neighbours/{layer}.npz"]
    yield (
        "cluster_features",
        "",
        ["clusters.parquet", "cluster_labels.parquet", "neighbours/links.csv"],
    )
    for name in settings.datasets:
        yield (
            "extract_examples",
            name,
            [f"examples/{name}/{layer}.json" for layer in [*folders, "embedding"]],
        )
        if datasets[name].conflict:
            yield "extract_closed_book", name, [f"examples/{name}/closed_book.parquet"]
        if datasets[name].has_contexts:
            yield "extract_without_context", name, [f"examples/{name}/without_context.parquet"]
        if datasets[name].has_spans:
            yield (
                "train_token_detectors",
                name,
                [
                    f"detection/{name}/{file}"
                    for file in ("span_scores.parquet", "span_choices.csv")
                ],
            )
        yield "track_features", name, [f"tracks/{name}.{variant}.json" for variant in variants]
        yield "measure_signals", name, [f"signals/{name}.{variant}.parquet" for variant in variants]
        if name in compared:
            kinds = ("controls", "metrics", "tracks", "tokens")
            yield (
                "attribute_candidates",
                name,
                [f"candidates/{name}.{kind}.parquet" for kind in kinds],
            )
        yield "audit_dataset", name, [f"detection/{name}/leak_audit.csv"]
        yield "train_detectors", name, [f"detection/{name}/scores.parquet"]
        for chosen in settings.external.classes:
            yield (
                "fit_detector_class",
                f"{chosen.name}.{name}",
                [f"external/classes/{chosen.name}/{name}.parquet"],
            )
    for table in settings.external.tables:
        yield "read_score_table", table.name, [f"external/tables/{table.name}.parquet"]
    yield "measure_answers", "", ["saes/answers.csv"]
    yield "evaluate_detectors", "", ["evaluation/metrics.csv", "evaluation/ledger.csv"]
    if any(datasets[name].has_spans for name in settings.datasets):
        yield (
            "evaluate_token_detectors",
            "",
            [f"evaluation/{name}.csv" for name in ("token_metrics", "token_claims")],
        )
    yield "save_detector", "", ["detection/detector.safetensors", "detection/detector.json"]
    yield "read_statements", "", ["statements/pooled.safetensors", "statements/pooled.json"]
    yield (
        "save_statement_detector",
        "",
        ["detection/statements.safetensors", "detection/statements.json"],
    )
    yield "check_explanations", "", ["evaluation/explanations.csv"]
    yield "check_results", "", ["evaluation/checks.json"]
    yield "draw_figures", "", ["figures/auroc.png"]
    yield "write_report", "", ["report.html"]
    yield "write_explorer", "", ["explorer.html"]
    yield "summarise_costs", "", ["benchmarks/costs.html"]
    if settings.strict:
        yield "check_claims", "", ["evaluation/claims.json"]
