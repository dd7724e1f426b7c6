"""`python -m ghosttrack.status [--config KEY=VALUE ...]`: what a run will take, and how far it is.

Reads config/config.yaml, takes the `--config` of Snakemake, and looks at files alone: no lock is taken and
nothing is written, so it works beside a running Snakemake and without Slurm. `--json` is for tools.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ghosttrack import forecast, monitor, plan
from ghosttrack.configuration import load, load_dataset
from ghosttrack.errors import UserError
from ghosttrack.progress import duration
from ghosttrack.settings import DatasetSettings, Settings

HOME = Path(__file__).resolve().parents[2]


class Status(NamedTuple):
    """Plan and progress of one model."""

    settings: Settings
    waves: list[list[int]]
    kept: forecast.Kept
    extraction: forecast.Effort
    training: forecast.Effort
    jobs: list[monitor.Job]
    layers: list[monitor.Layer]
    disk: monitor.Disk

    @property
    def started(self) -> bool:
        """Whether anything of the run stands."""
        return any(job.done for job in self.jobs) or self.disk.training > 0

    @property
    def phases(self) -> dict[str, tuple[int, int]]:
        """Jobs done and in all, by phase."""
        counted: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            done, total = counted.get(job.phase, (0, 0))
            counted[job.phase] = (done + job.done, total + 1)
        return counted


def look(settings: Settings, datasets: Mapping[str, DatasetSettings], results: Path) -> Status:
    """Plan and progress of one model's run below `results`.

    Raises:
        UserError: the disk budget holds no layer.
    """
    waves = plan.waves(settings)
    return Status(
        settings,
        waves,
        forecast.kept(settings, datasets, results),
        forecast.extraction(settings, waves, results),
        forecast.training(settings, waves, results),
        monitor.jobs(settings, waves, datasets, results),
        monitor.layers(settings, results),
        monitor.disk(settings.model, results),
    )


# ---- for a person
def as_text(status: Status) -> str:
    """The plan, and once something stands the progress, in aligned lines."""
    lines = [*_plan_lines(status)]
    lines += ["", *_progress_lines(status)] if status.started else ["", "Nothing of this run is on disk yet."]
    return "\n".join(lines) + "\n"


def _plan_lines(status: Status) -> Iterator[str]:
    settings, kept, gpus = status.settings, status.kept, status.settings.plan.gpus
    layer, peak = plan.layer_bytes(settings), plan.peak_bytes(settings, status.waves)
    tokens = settings.contexts * settings.corpus.context
    guess = f", examples of {plan.counted(kept.guessed, 'data set')} estimated" if kept.guessed else ""
    phases = status.phases
    yield f"{settings.model}: {plan.described_waves(status.waves)}, {tokens:,} tokens each, stored as {settings.activations.storage}"
    training = "train_shared_sae" if "train_shared_sae" in phases else "train_sae"
    yield _line(
        "jobs",
        f"{phases['extract_activations'][1]} extract activations, {phases[training][1]} train SAEs, {len(status.jobs)} in all",
    )
    yield _line("disk", plan.described_peak(settings, status.waves))
    yield _line(
        "", f"{plan.amount(layer)} a layer; all layers at once would take {plan.amount(layer * len(settings.layers))}"
    )
    yield _line(
        "", f"kept beside it: held-out text {plan.amount(kept.heldout)}, examples {plan.amount(kept.examples)}{guess}"
    )
    yield _line("", f"{plan.amount(peak + kept.heldout + kept.examples)} of activations in all at the peak")
    yield _line("forward cost", plan.described_cost(status.waves))
    yield _line(
        "GPUs busy",
        f"{plan.extraction_busy(settings):.1f} of {gpus} in extraction, {plan.training_busy(settings, status.waves):.1f} of {gpus} in SAE training",
    )
    yield _line("extraction", _described_effort(status.extraction, gpus))
    yield _line("SAE training", _described_effort(status.training, gpus))


def _described_effort(effort: forecast.Effort, gpus: int) -> str:
    origin = f"measured on {plan.counted(effort.rate.jobs, 'job')}" if effort.rate.jobs else "assumed: plan.teraflops"
    return (
        f"{duration(effort.hours * 3600)} on {plan.counted(gpus, 'GPU')}, {effort.gpu_hours:.2g} GPU-hours, "
        f"at {effort.rate.teraflops:.3g} TFLOP/s each ({origin})"
    )


def _progress_lines(status: Status) -> Iterator[str]:
    used, budget = status.disk, status.settings.activations.disk_budget_gb
    promise = f" of {budget:g} GB" if budget else ""
    partial = f" ({plan.amount(used.partial)} of it unfinished)" if used.partial else ""
    yield _line(
        "disk now",
        f"training activations {plan.amount(used.training)}{partial} and held-out text {plan.amount(used.heldout)}{promise}; examples {plan.amount(used.examples)}",
    )
    yield ""
    yield f"  {'phase':<20} {'done':>5} {'of':>5}"
    for phase, (done, total) in status.phases.items():
        yield f"  {phase:<20} {done:>5} {total:>5}"
    yield ""
    yield f"  {'layer':>5} {'stores':>7} {'of':>4}  SAE"
    for layer in status.layers:
        sae = "measured" if layer.measured else "trained" if layer.trained else "-"
        stores = "-" if layer.trained and not layer.stores else str(layer.stores)
        yield f"  {layer.layer:>5} {stores:>7} {layer.shards:>4}  {sae}"


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
            "datasets_estimated": status.kept.guessed,
            "total_peak_bytes": peak + status.kept.heldout + status.kept.examples,
            "forward_passes": plan.forward_passes(waves),
            "gpus": settings.plan.gpus,
            "gpus_busy": {
                "extract_activations": plan.extraction_busy(settings), "train_sae": plan.training_busy(settings, waves),
            },
            "effort": {"extract_activations": _effort(status.extraction), "train_sae": _effort(status.training)},
        },
        "started": status.started,
        "disk_bytes": status.disk._asdict(),
        "phases": {phase: {"done": done, "total": total} for phase, (done, total) in status.phases.items()},
        "layers": [layer._asdict() for layer in status.layers],
    }  # fmt: skip


def _effort(effort: forecast.Effort) -> dict[str, Any]:
    return {
        "hours": effort.hours, "gpu_hours": effort.gpu_hours, "teraflops": effort.rate.teraflops,
        "measured_jobs": effort.rate.jobs,
    }  # fmt: skip


# ---- the command line
def read_config(path: Path, given: list[str]) -> dict[str, Any]:
    """config.yaml, overlaid with KEY=VALUE words as Snakemake's --config reads them.

    Raises:
        UserError: a word without `=`, or a file that is not YAML.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(found).__name__}")
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


def main(arguments: list[str]) -> int:
    """Print plan and progress of every chosen model; 2 after a wrong setting."""
    parser = argparse.ArgumentParser(prog="ghosttrack.status", description="What a run will take, and how far it is.")
    parser.add_argument(
        "--config", "-C", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="as for Snakemake"
    )
    parser.add_argument("--json", action="store_true", help="for tools: one JSON object, by model")
    chosen = parser.parse_args(arguments)
    results = Path("results")
    try:
        settings = load(read_config(HOME / "config" / "config.yaml", chosen.config), HOME / "config")
        plan.check_sources(settings, results)
        found = {
            model: look(each, {name: load_dataset(name, HOME / "config") for name in each.datasets}, results)
            for model, each in settings.items()
        }
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if chosen.json:
        sys.stdout.write(json.dumps({model: as_json(status) for model, status in found.items()}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(as_text(status) for status in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
