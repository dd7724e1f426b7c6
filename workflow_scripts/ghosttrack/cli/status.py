"""`python -m ghosttrack.cli.status [--config KEY=VALUE ...]`: what a run will take, and how far it is.

Reads config/config.yaml, takes the `--config` of Snakemake, and looks at files, at the processes of this machine
and, where there is one, at Slurm's queue: no lock is taken and nothing is written, so it works beside a running
Snakemake, from another shell, and without Slurm. `--json` is for tools.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ghosttrack.errors import UserError
from ghosttrack.planning import forecast, job_status, plan, run_state, slurm
from ghosttrack.planning.configuration import load, load_dataset, read_yaml
from ghosttrack.runtime import progress
from ghosttrack.runtime.progress import duration
from ghosttrack.settings import DatasetSettings, Settings

HOME = Path(__file__).resolve().parents[3]


class Status(NamedTuple):
    """Plan and progress of one model."""

    settings: Settings
    waves: list[list[int]]
    kept: forecast.Kept
    extraction: forecast.Effort
    training: list[
        forecast.Training
    ]  # at the settings' batch, then at the original work's if that is another
    jobs: list[run_state.Job]
    activities: list[job_status.Activity]  # of the same jobs
    layers: list[run_state.Layer]
    disk: run_state.DiskUse

    @property
    def started(self) -> bool:
        """Whether anything of the run stands."""
        return any(each.state != "waiting" for each in self.activities) or self.disk.training > 0

    @property
    def phases(self) -> dict[str, tuple[int, int]]:
        """Jobs done and in all, by phase."""
        counted: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            done, total = counted.get(job.phase, (0, 0))
            counted[job.phase] = (done + job.done, total + 1)
        return counted


def look(
    settings: Settings,
    datasets: Mapping[str, DatasetSettings],
    results: Path,
    seed_batch: int | None = None,
    queue: Sequence[slurm.SlurmJob] = (),
) -> Status:
    """Plan and progress of one model's run below `results`.

    Args:
        settings: of the run.
        datasets: its data sets.
        results: folder of all results.
        seed_batch: SAE batch of the original work, to show what another batch costs.
        queue: what Slurm holds of the workflow's folder.
    Raises:
        UserError: the disk budget holds no layer.
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
        job_status.look(settings.model, jobs, queue, results),
        run_state.layers(settings, results),
        run_state.disk(settings.model, results),
    )


def datasets_of(settings: Settings) -> dict[str, DatasetSettings]:
    """The model's data sets by name."""
    return {name: load_dataset(name, HOME / "config") for name in settings.datasets}


# ---- for a person
def as_text(status: Status) -> str:
    """The plan, and once something stands the progress, in aligned lines."""
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
    guess = (
        f", examples of {plan.counted(kept.estimated, 'data set')} estimated"
        if kept.estimated
        else ""
    )
    phases = status.phases
    if not settings.sae.trained:
        layers = plan.counted(len(settings.layers), "layer")
        yield f"{settings.model}: {layers} with pretrained SAEs, nothing is trained and no training activations are kept"
        yield _line("jobs", f"{len(status.jobs)} in all")
        yield _line(
            "disk",
            f"held-out text {progress.amount(kept.heldout)}, examples {progress.amount(kept.examples)}{guess}",
        )
        return
    yield f"{settings.model}: {plan.described_waves(status.waves)}, {tokens:,} tokens each, stored as {settings.activations.storage}"
    training = "train_shared_sae" if "train_shared_sae" in phases else "train_sae"
    yield _line(
        "jobs",
        f"{phases['extract_activations'][1]} extract activations, {phases[training][1]} train SAEs, {len(status.jobs)} in all",
    )
    yield _line("disk", plan.described_peak(settings, status.waves))
    yield _line(
        "",
        f"{progress.amount(layer)} a layer; all layers at once would take {progress.amount(layer * len(settings.layers))}",
    )
    yield _line(
        "",
        f"kept beside it: held-out text {progress.amount(kept.heldout)}, examples {progress.amount(kept.examples)}{guess}",
    )
    yield _line(
        "",
        f"{progress.amount(peak + kept.heldout + kept.examples)} of activations in all at the peak",
    )
    yield _line("forward cost", plan.described_cost(status.waves))
    yield _line(
        "GPUs busy",
        f"{plan.extraction_busy(settings):.1f} of {gpus} in extraction, {plan.training_busy(settings, status.waves):.1f} of {gpus} in SAE training",
    )
    yield _line("extraction", _described_effort(status.extraction, gpus, "teraflops"))
    for number, each in enumerate(status.training):
        name = f"at batch {each.batch}" if number else "SAE training"
        assumption = "bandwidth_gb_s" if each.bound.by_memory else "teraflops"
        yield _line(name, _described_effort(each.effort, gpus, assumption))
        yield _line("", _described_steps(each))
        yield _line("", _described_bound(each, settings))


def _described_effort(effort: forecast.Effort, gpus: int, assumption: str) -> str:
    jobs = effort.rate.jobs
    origin = f"measured on {plan.counted(jobs, 'job')}" if jobs else f"assumed: plan.{assumption}"
    return (
        f"{duration(effort.hours * 3600)} on {plan.counted(gpus, 'GPU')}, {effort.gpu_hours:.2g} GPU-hours, "
        f"at {effort.rate.teraflops:.3g} TFLOP/s each ({origin})"
    )


def _described_steps(training: forecast.Training) -> str:
    step = training.step
    return (
        f"{training.steps:,} steps of {training.batch:,} a layer, each {step.operations / 1e9:.3g} GFLOP and "
        f"{step.traffic / 1e9:.2g} GB of memory traffic, {1e3 * training.bound.seconds:.2g} ms at best"
    )


def _described_bound(training: forecast.Training, settings: Settings) -> str:
    bound, machine = training.bound, settings.plan
    return (
        f"{training.step.intensity:.3g} FLOP a byte; {machine.teraflops:g} TFLOP/s and {machine.bandwidth_gb_s:,g} GB/s "
        f"balance at {bound.balance:.3g}: {bound.name} is the limit"
    )


def _progress_lines(status: Status) -> Iterator[str]:
    used, budget = status.disk, status.settings.activations.disk_budget_gb
    promise = f" of {budget:g} GB" if budget else ""
    partial = f" ({progress.amount(used.partial)} of it unfinished)" if used.partial else ""
    yield _line(
        "disk now",
        f"training activations {progress.amount(used.training)}{partial} and held-out text {progress.amount(used.heldout)}{promise}; examples {progress.amount(used.examples)}",
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
        yield f"  {phase:<20} {done:>5} {total:>5} {numbers[0] or '-':>8} {numbers[1] or '-':>7} {numbers[2] or '-':>7}"
    yield ""
    yield f"  {'layer':>5} {'stores':>7} {'of':>4}  SAE"
    makers = {
        each.name: each
        for each in status.activities
        if each.phase in ("train_sae", "train_shared_sae", "fetch_sae")
    }
    for layer in status.layers:
        stores = "-" if layer.trained and not layer.stores else str(layer.stores)
        maker = (
            makers.get(f"layer_{layer.layer:02d}") or makers[""]
        )  # one job makes all SAEs that share a dictionary
        yield f"  {layer.layer:>5} {stores:>7} {layer.shards:>4}  {_sae(layer, maker)}"
    # Those that wait in the queue are many and alike: the tables have counted them.
    if shown := [each for each in job_status.at_work(status.activities) if each.state != "queued"]:
        yield ""
        yield from (_job_line(each) for each in shown)


def _failed(states: Mapping[str, int]) -> int:
    return states.get("failed", 0) + states.get("cut off", 0)


def _sae(layer: run_state.Layer, maker: job_status.Activity) -> str:
    if maker.state == "running":
        doing = "fetching" if maker.phase == "fetch_sae" else "training"
        return (
            f"{doing}, {maker.progress.done / maker.progress.total:.0%}"
            if maker.progress
            else doing
        )
    if maker.state in ("queued", "failed", "cut off"):
        return maker.state
    return "measured" if layer.measured else "trained" if layer.trained else "-"


def _job_line(each: job_status.Activity) -> str:
    where = " ".join(
        filter(
            None,
            [each.slurm_job and f"Slurm job {each.slurm_job}", each.node and f"on {each.node}"],
        )
    )
    words = [f"  {each.phase} {each.name}".ljust(44), f"{each.state:<8}", where]
    if done := each.progress:
        left = f", {done.left} left" if done.left else ""
        words.append(f"{done.done:,}/{done.total:,} {done.unit}, {done.rate:,.0f}/s{left}")
    if gpu := each.gpu:
        words.append(
            f"GPU {gpu.utilisation:.0f} %, {gpu.memory_used / 1024:.1f} of {gpu.memory_total / 1024:.1f} GiB"
        )
    if each.last_line:
        words.append(each.last_line)
    return "  ".join(filter(None, words)).rstrip()


def _line(name: str, text: str) -> str:
    return f"  {name:<13} {text}"


# ---- for tools
def as_json(status: Status) -> dict[str, Any]:
    """The same numbers by name; bytes, hours, and counts of jobs."""
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
                training.batch: _training(training) for training in status.training
            },
        },
        "started": status.started,
        "disk_bytes": status.disk._asdict(),
        "phases": {
            phase: {"done": done, "total": total} for phase, (done, total) in status.phases.items()
        },
        "layers": [layer._asdict() for layer in status.layers],
        "jobs": [_job(each) for each in job_status.at_work(status.activities)],
    }


def _job(each: job_status.Activity) -> dict[str, Any]:
    return {
        **each._asdict(),
        "progress": each.progress and each.progress._asdict(),
        "gpu": each.gpu and each.gpu._asdict(),
    }


def _effort(effort: forecast.Effort) -> dict[str, Any]:
    return {
        "hours": effort.hours,
        "gpu_hours": effort.gpu_hours,
        "teraflops": effort.rate.teraflops,
        "measured_jobs": effort.rate.jobs,
    }


def _training(training: forecast.Training) -> dict[str, Any]:
    return {
        "steps": training.steps,
        "operations": training.step.operations,
        "traffic_bytes": training.step.traffic,
        "intensity": training.step.intensity,
        "balance": training.bound.balance,
        "limit": training.bound.name,
        "step_seconds": training.bound.seconds,
        **_effort(training.effort),
    }


# ---- the command line
def read_config(path: Path, given: list[str]) -> dict[str, Any]:
    """config.yaml, overlaid with KEY=VALUE words as Snakemake's --config reads them.

    Raises:
        UserError: a word without `=`, or a file that is not YAML.
    """
    found = read_yaml(path)
    for word in given:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(
                f"--config: {word!r} is not KEY=VALUE; write e.g. --config model=gpt2-medium 'sae={{k: 32}}'"
            )
        found = _overlaid(found, {key: _value(text)})
    return found


def _value(text: str) -> Any:
    """Maps and lists as YAML with all their leaves as text, all else as it stands: `configuration.load` reads the leaves."""
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, dict | list) else text or None


def _overlaid(base: Any, update: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(update, Mapping):
        return update
    return {**base, **{key: _overlaid(base.get(key), value) for key, value in update.items()}}


def _queue() -> list[slurm.SlurmJob]:
    """Slurm's jobs of this folder; says on stderr when they cannot be had, and goes on with what the logs tell."""
    if not slurm.available():
        return []
    try:
        return slurm.jobs_in(Path.cwd())
    except UserError as error:
        sys.stderr.write(
            f"note: without Slurm's queue, jobs are told from their logs alone: {error}\n"
        )
        return []


def main(arguments: list[str]) -> int:
    """Print plan and progress of every chosen model; 2 after a wrong setting."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.status", description="What a run will take, and how far it is."
    )
    parser.add_argument(
        "--config",
        "-C",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="as for Snakemake",
    )
    parser.add_argument("--json", action="store_true", help="for tools: one JSON object, by model")
    chosen = parser.parse_args(arguments)
    results = Path("results")
    try:
        config = read_config(HOME / "config" / "config.yaml", chosen.config)
        settings = load(config, HOME / "config")
        plan.check_sources(settings, results)
        for each in settings.values():
            plan.waves(each)  # a budget that holds no layer is refused before anything is asked
        seed = load({**config, "preset": "seed"}, HOME / "config")
        queue = _queue()
        found = {
            model: look(each, datasets_of(each), results, seed[model].sae.batch, queue)
            for model, each in settings.items()
        }
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if chosen.json:
        sys.stdout.write(
            json.dumps({model: as_json(status) for model, status in found.items()}, indent=2) + "\n"
        )
    else:
        sys.stdout.write("\n".join(as_text(status) for status in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
