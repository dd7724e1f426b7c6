"""`python -m ghosttrack.cli.status [--config KEY=VALUE ...]`: cost estimate and progress of a run.

It reads config/config.yaml and the files of the run, the processes of this machine and the queue of
Slurm, if there is one. It takes no lock and writes nothing, so it works beside a running Snakemake.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ghosttrack.errors import UserError
from ghosttrack.planning import (
    data_sizes,
    forecast,
    job_status,
    memory,
    plan,
    roofline,
    run_state,
    slurm,
)
from ghosttrack.planning.configuration import load, load_dataset, read_yaml
from ghosttrack.runtime import progress
from ghosttrack.runtime.progress import duration
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import DatasetSettings, Settings

HOME = Path(__file__).resolve().parents[3]


class Status(NamedTuple):
    """Plan and progress of one model."""

    settings: Settings
    waves: list[list[int]]
    kept: forecast.Kept
    extraction: forecast.Effort
    # At the batch of the settings, then at that of the original work if it differs.
    training: list[forecast.Training]
    jobs: list[run_state.Job]
    activities: list[job_status.Activity]  # in the order of `jobs`
    layers: list[run_state.Layer]
    disk: run_state.DiskUse
    results: Path  # folder of all results

    @property
    def started(self) -> bool:
        """Whether the run has any output or any job at work."""
        return any(job.state != "waiting" for job in self.activities) or self.disk.training > 0

    @property
    def phases(self) -> dict[str, tuple[int, int]]:
        """Finished and total number of jobs by phase."""
        counts: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            done, total = counts.get(job.phase, (0, 0))
            counts[job.phase] = (done + job.done, total + 1)
        return counts


def look(
    settings: Settings,
    datasets: Mapping[str, DatasetSettings],
    results: Path,
    seed_batch: int | None = None,
    queue: Sequence[slurm.SlurmJob] = (),
) -> Status:
    """Plan and progress of one model's run in `results`.

    Args:
        settings: of the run.
        datasets: settings of its data sets by name.
        results: folder of all results.
        seed_batch: SAE batch of the original work, whose cost is shown for comparison.
        queue: Slurm jobs of the workflow's folder.

    Raises:
        UserError: the disk budget is too small for one layer.
    """
    waves = plan.waves(settings)
    batches = dict.fromkeys((settings.sae.batch, seed_batch or settings.sae.batch))
    jobs = run_state.jobs(settings, waves, datasets, results)
    return Status(
        settings,
        waves,
        forecast.kept(settings, datasets, results),
        forecast.extraction(settings, waves, results),
        [forecast.training(settings, waves, results, batch) for batch in batches],
        jobs,
        job_status.look(settings.model, jobs, queue, results, waves),
        run_state.layers(settings, results),
        run_state.disk(settings.model, results),
        results,
    )


def datasets_of(settings: Settings) -> dict[str, DatasetSettings]:
    """Settings of the model's data sets by name."""
    return {name: load_dataset(name, HOME / "config") for name in settings.datasets}


# ---- for a person
def as_text(status: Status) -> str:
    """The plan and, once the run has started, its progress, as aligned lines."""
    lines = [*_plan_lines(status)]
    lines += (
        ["", *_progress_lines(status)]
        if status.started
        else ["", "Nothing of this run is on disk yet."]
    )
    return "\n".join(lines) + "\n"


def _plan_lines(status: Status) -> Iterator[str]:
    settings, kept, gpus = status.settings, status.kept, status.settings.plan.gpus
    layer, peak = plan.layer_bytes(settings), plan.peak_bytes(settings, status.waves)
    tokens = settings.contexts * settings.corpus.context
    estimated = (
        f", examples of {plan.counted(kept.estimated, 'data set')} estimated"
        if kept.estimated
        else ""
    )
    phases = status.phases
    if not settings.sae.trained:
        layers = plan.counted(len(settings.layers), "layer")
        yield (
            f"{settings.model}: {layers} with pretrained SAEs; no training and no training "
            "activations"
        )
        yield _line("jobs", f"{len(status.jobs)} in all")
        yield _line(
            "disk",
            f"held-out text {progress.amount(kept.heldout)}, examples "
            f"{progress.amount(kept.examples)}{estimated}",
        )
        return
    yield (
        f"{settings.model}: {plan.described_waves(status.waves)}, {tokens:,} tokens each, stored "
        f"as {settings.activations.storage}"
    )
    training_phase = "train_shared_sae" if "train_shared_sae" in phases else "train_sae"
    yield _line(
        "jobs",
        f"{phases['extract_activations'][1]} extract activations, {phases[training_phase][1]} "
        f"train SAEs, {len(status.jobs)} in all",
    )
    yield _line("disk", plan.described_peak(settings, status.waves))
    yield _line(
        "",
        f"{progress.amount(layer)} per layer; all layers at once would take "
        f"{progress.amount(layer * len(settings.layers))}",
    )
    yield _line(
        "",
        f"also kept: held-out text {progress.amount(kept.heldout)}, examples "
        f"{progress.amount(kept.examples)}{estimated}",
    )
    yield _line(
        "",
        f"{progress.amount(peak + kept.heldout + kept.examples)} of activations in total at the "
        "peak",
    )
    yield _line("forward cost", plan.described_cost(status.waves))
    yield _line(
        "GPUs busy",
        f"{plan.extraction_busy(settings):.1f} of {gpus} in extraction, "
        f"{plan.training_busy(settings, status.waves):.1f} of {gpus} in SAE training",
    )
    if settings.plan.device == "gpu":
        yield _line("GPU memory", _described_memory(status))
    yield _line("extraction", _described_effort(status.extraction, gpus))
    yield _line("", f"per token: {_described_bound(status.extraction.bound)}")
    for number, training in enumerate(status.training):
        name = f"at batch {training.batch}" if number else "SAE training"
        yield _line(name, _described_effort(training.effort, gpus))
        yield _line("", _described_steps(training, settings.warm_start_layer))
        yield _line("", f"per step: {_described_bound(training.bound)}")


def _described_effort(effort: forecast.Effort, gpus: int) -> str:
    rate = effort.rate
    origin = f"assumed: plan.{effort.bound.limit.setting}"
    if rate.jobs:
        origin = f"measured on {plan.counted(rate.jobs, 'job')}, {rate.slower:.3g} times the assumed time"
    return (
        f"{duration(effort.hours * 3600)} on {plan.counted(gpus, 'GPU')}, {effort.gpu_hours:.2g} "
        f"GPU-hours, at {rate.teraflops:.3g} TFLOP/s per GPU ({origin})"
    )


def _described_steps(training: forecast.Training, first: int | None) -> str:
    """As `48,830 steps of 4,096 tokens per layer, each ...`; `first`: the warm-start layer."""
    step, whose = training.step, "per layer"
    if training.later_steps != training.steps:
        whose = f"for layer {first} and {training.later_steps:,} for each other layer"
    return (
        f"{training.steps:,} steps of {training.batch:,} tokens {whose}, each "
        f"{step.operations / 1e9:.3g} GFLOP and "
        f"{step.traffic / 1e9:.2g} GB of memory traffic, at least "
        f"{_short(training.bound.seconds)}"
    )


def _described_bound(bound: roofline.Bound) -> str:
    """As `writing 34 us, arithmetic 2.7 us, copying 0.2 us: writing is the bottleneck`."""
    parts = sorted(bound.parts, key=lambda part: -part.seconds)
    listed = ", ".join(f"{part.name} {_short(part.seconds)}" for part in parts)
    return f"{listed}: {bound.name} is the bottleneck"


def _described_memory(status: Status) -> str:
    """Memory of one GPU in the two phases with most, and whether a layer's activations stay there."""
    settings, known = status.settings, data_sizes.model_numbers(status.settings, status.results)
    run = memory.Run(settings, settings.sae.d_sae, {}, *known, gpu=True)
    tokens = settings.contexts * settings.corpus.context
    resident = "once" if forecast.is_resident(settings) else "once per epoch"
    return (
        f"model {progress.amount(memory.device_model(run))}, SAE training "
        f"{progress.amount(memory.device_training(settings))}, of {settings.plan.gpu_memory_gb:g} GB "
        "(plan.gpu_memory_gb); the "
        f"{progress.amount(tokens * plan.row_bytes(settings))} of a layer are fed {resident}"
    )


def _short(seconds: float) -> str:
    """As `5.4 ms` or `34 us`."""
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def _progress_lines(status: Status) -> Iterator[str]:
    used, budget = status.disk, status.settings.activations.disk_budget_gb
    allowed = f" of {budget:g} GB" if budget else ""
    partial = f" ({progress.amount(used.partial)} of it unfinished)" if used.partial else ""
    yield _line(
        "disk now",
        f"training activations {progress.amount(used.training)}{partial} and held-out text "
        f"{progress.amount(used.heldout)}{allowed}; examples {progress.amount(used.examples)}",
    )
    yield ""
    states = job_status.counts(status.activities)
    yield f"  {'phase':<20} {'done':>5} {'of':>5} {'running':>8} {'queued':>7} {'failed':>7}"
    for phase, (done, total) in status.phases.items():
        numbers = [
            states[phase].get("running", 0),
            states[phase].get("queued", 0),
            _failed(states[phase]),
        ]
        yield (
            f"  {phase:<20} {done:>5} {total:>5} {numbers[0] or '-':>8} {numbers[1] or '-':>7} "
            f"{numbers[2] or '-':>7}"
        )
    yield ""
    yield f"  {'layer':>5} {'stores':>7} {'of':>4}  SAE"
    sae_jobs = {
        job.name: job
        for job in status.activities
        if job.phase in ("train_sae", "train_shared_sae", "fetch_sae")
    }
    for layer in status.layers:
        stores = "-" if layer.trained and not layer.stores else str(layer.stores)
        # With a shared dictionary, one job trains the SAE of all layers.
        sae_job = sae_jobs.get(layer_name(layer.layer)) or sae_jobs[""]
        yield f"  {layer.layer:>5} {stores:>7} {layer.shards:>4}  {_sae(layer, sae_job)}"
    # Queued jobs are many and alike; the table counts them.
    if shown := [job for job in job_status.at_work(status.activities) if job.state != "queued"]:
        yield ""
        yield from (_job_line(job) for job in shown)


def _failed(states: Mapping[str, int]) -> int:
    return states.get("failed", 0) + states.get("cut off", 0)


def _sae(layer: run_state.Layer, job: job_status.Activity) -> str:
    """State of a layer's SAE; `job` is the job that trains or fetches it."""
    if job.state == "running":
        doing = "fetching" if job.phase == "fetch_sae" else "training"
        return f"{doing}, {job.progress.done / job.progress.total:.0%}" if job.progress else doing
    if job.state in ("queued", "failed", "cut off"):
        return job.state
    return "measured" if layer.measured else "trained" if layer.trained else "-"


def _job_line(job: job_status.Activity) -> str:
    where = " ".join(
        filter(
            None, [job.slurm_job and f"Slurm job {job.slurm_job}", job.node and f"on {job.node}"]
        )
    )
    words = [f"  {job.phase} {job.name}".ljust(44), f"{job.state:<8}", where]
    if done := job.progress:
        left = f", {done.left} left" if done.left else ""
        rate = f"{done.rate:,.0f}" if done.rate >= 10 else f"{done.rate:.1f}"
        words.append(f"{done.done:,}/{done.total:,} {done.unit}, {rate}/s{left}")
    if gpu := job.gpu:
        words.append(
            f"GPU {gpu.utilisation:.0f} %, {gpu.memory_used / 1024:.1f} of "
            f"{gpu.memory_total / 1024:.1f} GiB"
        )
    if job.last_line:
        words.append(job.last_line)
    return "  ".join(filter(None, words)).rstrip()


def _line(name: str, text: str) -> str:
    return f"  {name:<13} {text}"


# ---- for tools
def as_json(status: Status) -> dict[str, Any]:
    """The same numbers by name, in bytes, hours and jobs."""
    settings, waves = status.settings, status.waves
    layer, peak = plan.layer_bytes(settings), plan.peak_bytes(settings, waves)
    budget = settings.activations.disk_budget_gb
    return {
        "plan": {
            "tokens_per_layer": settings.contexts * settings.corpus.context,
            "storage": settings.activations.storage,
            "waves": waves,
            "budget_bytes": None if budget is None else round(budget * 1e9),
            "layer_bytes": layer,
            "peak_bytes": peak,
            "all_layers_bytes": layer * len(settings.layers),
            "heldout_bytes": status.kept.heldout,
            "example_bytes": status.kept.examples,
            "datasets_estimated": status.kept.estimated,
            "total_peak_bytes": peak + status.kept.heldout + status.kept.examples,
            "forward_passes": plan.forward_passes(waves),
            "gpus": settings.plan.gpus,
            "gpus_busy": {
                "extract_activations": plan.extraction_busy(settings),
                "train_sae": plan.training_busy(settings, waves),
            },
            "effort": {
                "extract_activations": _effort(status.extraction),
                "train_sae": _effort(status.training[0].effort),
            },
            "train_sae_by_batch": {
                training.batch: _training(training, settings) for training in status.training
            },
        },
        "started": status.started,
        "disk_bytes": status.disk._asdict(),
        "phases": {
            phase: {"done": done, "total": total} for phase, (done, total) in status.phases.items()
        },
        "layers": [layer._asdict() for layer in status.layers],
        "jobs": [_job(job) for job in job_status.at_work(status.activities)],
    }


def _job(job: job_status.Activity) -> dict[str, Any]:
    return {
        **job._asdict(),
        "progress": job.progress and job.progress._asdict(),
        "gpu": job.gpu and job.gpu._asdict(),
    }


def _effort(effort: forecast.Effort) -> dict[str, Any]:
    return {
        "hours": effort.hours,
        "gpu_hours": effort.gpu_hours,
        "teraflops": effort.rate.teraflops,
        "measured_jobs": effort.rate.jobs,
        "measured_over_assumed": effort.rate.slower,
        "bottleneck": effort.bound.name,
        "assumed_seconds": {part.name: part.seconds for part in effort.bound.parts},
    }


def _training(training: forecast.Training, settings: Settings) -> dict[str, Any]:
    return {
        "steps": training.steps,
        "later_steps": training.later_steps,
        "operations": training.step.operations,
        "traffic_bytes": training.step.traffic,
        "intensity": training.step.intensity,
        "balance": roofline.balance(settings.plan),
        "limit": training.bound.name,
        "step_seconds": training.bound.seconds,
        **_effort(training.effort),
    }


# ---- the command line
def read_config(path: Path, given: list[str]) -> dict[str, Any]:
    """config.yaml, overridden by KEY=VALUE words as Snakemake's --config reads them.

    Raises:
        UserError: a word without `=`, or a file that is not YAML.
    """
    config = read_yaml(path)
    for word in given:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(
                f"--config: expected KEY=VALUE, found {word!r}; write e.g. --config "
                f"model=gpt2-medium 'sae={{k: 32}}'"
            )
        config = _overlaid(config, {key: read_value(text)})
    return config


def read_value(text: str) -> Any:
    """The value of a word after --config, tried as Snakemake tries it; 010 is 10, and 1e3 a number.

    Leaves of mappings and lists stay text, which `configuration.load` parses.
    """
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    if text in ("True", "False"):
        return text == "True"
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return text


def _overlaid(base: Any, update: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(update, Mapping):
        return update
    return {**base, **{key: _overlaid(base.get(key), value) for key, value in update.items()}}


def _batches_of_original(config: Mapping[str, Any]) -> dict[str, int]:
    """SAE batch of the original work by model; {} if its preset does not go with the settings."""
    try:
        settings = load({**config, "preset": "seed"}, HOME / "config")
    except UserError:  # a file of its data sets is gone, or k is too large for its dictionary
        return {}
    return {model: chosen.sae.batch for model, chosen in settings.items()}


def _queue() -> list[slurm.SlurmJob]:
    """Slurm jobs of this folder; if Slurm fails, a note on stderr and no jobs."""
    if not slurm.available():
        return []
    try:
        return slurm.jobs_in(Path.cwd())
    except UserError as error:
        sys.stderr.write(
            f"note: Slurm's queue is not available, states of jobs come from their logs: {error}\n"
        )
        return []


def main(arguments: list[str]) -> int:
    """Print plan and progress of every chosen model; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.status", description="Cost estimate and progress of a run."
    )
    parser.add_argument(
        "--config",
        "-C",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="as in Snakemake",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with a key per model"
    )
    chosen = parser.parse_args(arguments)
    results = Path("results")
    try:
        config = read_config(HOME / "config" / "config.yaml", chosen.config)
        settings = load(config, HOME / "config")
        plan.check_sources(settings, results)
        for model_settings in settings.values():
            plan.waves(model_settings)  # refuses too small a disk budget before Slurm is asked
        batches, queue = _batches_of_original(config), _queue()
        statuses = {
            model: look(
                chosen_settings, datasets_of(chosen_settings), results, batches.get(model), queue
            )
            for model, chosen_settings in settings.items()
        }
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if chosen.json:
        sys.stdout.write(
            json.dumps({model: as_json(status) for model, status in statuses.items()}, indent=2)
            + "\n"
        )
    else:
        sys.stdout.write("\n".join(as_text(status) for status in statuses.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
