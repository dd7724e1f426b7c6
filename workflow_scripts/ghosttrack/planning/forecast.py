"""Expected disk use and hours of a run, from counted operations and from finished jobs."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.planning import plan, roofline
from ghosttrack.runtime import files
from ghosttrack.runtime.run_paths import RunPaths, layer_name
from ghosttrack.settings import DatasetSettings, Settings

# Benchmark file of extract_activations: plan.pass_name and the number of the shard.
_PASS = re.compile(r"layers_\d+_to_(?P<highest>\d+)_shard_(?P<shard>\d+)\.tsv")
FACTS = Path(__file__).parents[1] / "data" / "facts"
# ASSUME: a row of an embedded fact table gives two to four statements with one to three answer
# tokens.
ROWS_PER_FACT = 8
# ASSUME: examples of other data sets without `max_examples`, and answer tokens per example.
EXAMPLES, ROWS_PER_EXAMPLE = 2000, 8
# ASSUME: tokens that are read, relative to the tokens of the answer.
READ = {"answer": 1.0, "last": 0.5, "all": 5.0}


class Kept(NamedTuple):
    """Disk use of the stores that remain after the run, always fp16."""

    heldout: int  # bytes
    examples: int  # bytes
    estimated: int  # data sets whose number of rows is an estimate


class Rate(NamedTuple):
    """Sustained rate of one accelerator."""

    teraflops: float  # 10^12 operations per second
    jobs: int  # finished jobs in which it was measured; 0: assumed


class Effort(NamedTuple):
    """Expected time of some jobs."""

    hours: float  # wall time with `plan.gpus` accelerators
    gpu_hours: float  # sum over all accelerators
    rate: Rate


class Training(NamedTuple):
    """Expected time of training all SAEs at one batch size, and its limit."""

    batch: int
    steps: int  # steps per SAE
    step: roofline.Step
    bound: roofline.Bound
    effort: Effort


def block_operations(d_model: int, context: int) -> int:
    """Operations per token of the forward pass through one transformer block.

    Two operations for each of the 12 d^2 weights of attention and of an MLP of width 4 d, and 4 d
    for each attended position (Kaplan et al. 2020, arXiv 2001.08361, table 1). Dense kernels also
    compute the positions behind the causal mask.
    """
    return 24 * d_model**2 + 4 * context * d_model


def kept(settings: Settings, datasets: Mapping[str, DatasetSettings], results: Path) -> Kept:
    """Disk use of held-out and example stores, for all layers and the token embedding."""
    assert settings.dimensions is not None
    width, layers = settings.dimensions.d_model, len(settings.layers)
    examples = estimated = 0
    for name in settings.datasets:
        rows = _stored_rows(
            RunPaths(results / settings.model).example_activations(name) / "embedding.json"
        )
        if rows is None:
            rows = round(
                _estimated_rows(settings, datasets[name]) * READ[settings.activations.positions]
            )
            estimated += 1
        examples += (layers + 1) * plan.store_bytes(rows, width, "fp16", settings.corpus.context)
    return Kept(plan.heldout_bytes(settings), examples, estimated)


def _stored_rows(manifest: Path) -> int | None:
    try:
        return int(files.read_json(manifest)["rows"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _estimated_rows(settings: Settings, dataset: DatasetSettings) -> int:
    if dataset.mode == "generated":
        return settings.generation.questions * settings.generation.max_new_tokens
    table = FACTS / f"{dataset.table}.csv"
    if dataset.source == "facts" and table.is_file():
        rows = table.read_bytes().count(b"\n") * ROWS_PER_FACT * (2 if dataset.conflict else 1)
        return min(rows, (dataset.max_examples or rows) * ROWS_PER_EXAMPLE)
    return (dataset.max_examples or EXAMPLES) * ROWS_PER_EXAMPLE


def extraction(settings: Settings, waves: Sequence[Sequence[int]], results: Path) -> Effort:
    """Expected time of all extraction jobs; jobs of a wave run in parallel."""
    rate = _rate(_finished_extraction(settings, results), settings.plan.teraflops)
    rows = settings.contexts * settings.corpus.context
    rounds = plan.extraction_rounds(settings)
    job = min(settings.contexts, settings.contexts_per_shard) * settings.corpus.context
    passes = [_pass_operations(settings, layers[-1]) for layers in waves]
    return Effort(
        sum(rounds * job * operations for operations in passes) / rate.teraflops / 1e12 / 3600,
        sum(rows * operations for operations in passes) / rate.teraflops / 1e12 / 3600,
        rate,
    )


def training(
    settings: Settings, waves: Sequence[Sequence[int]], results: Path, batch: int | None = None
) -> Training:
    """Expected time of training all SAEs; those of a wave train in parallel.

    Before a job is measured, the time of a step is its roofline bound. A measured rate is used only
    for the batch size in the settings.

    Args:
        batch: another batch size than that in the settings.
    """
    assert settings.dimensions is not None
    chosen = settings.sae.model_copy(update={"batch": batch or settings.sae.batch})
    steps = settings.contexts * settings.corpus.context * chosen.epochs // chosen.batch
    step = roofline.step(chosen, settings.dimensions.d_model, settings.plan.device)
    bound = roofline.bound(step, settings.plan)
    operations = steps * step.operations
    benchmarks = results / settings.model / "benchmarks" / "train_sae"
    jobs = ((operations, benchmarks / f"{layer_name(layer)}.tsv") for layer in settings.layers)
    rate = _rate(jobs if chosen == settings.sae else (), step.operations / bound.seconds / 1e12)
    hours = operations / rate.teraflops / 1e12 / 3600
    total = hours * sum(map(len, waves))
    rounds = plan.training_rounds(waves, settings.plan.gpus)
    wall = total if settings.sae.shared else hours * rounds
    return Training(chosen.batch, steps, step, bound, Effort(wall, total, rate))


def _pass_operations(settings: Settings, highest: int) -> int:
    """Operations per token in blocks 0 to `highest`."""
    assert settings.dimensions is not None
    return (highest + 1) * block_operations(settings.dimensions.d_model, settings.corpus.context)


def _finished_extraction(settings: Settings, results: Path) -> Iterator[tuple[int, Path]]:
    """Operations and benchmark of every finished job, for any division into waves."""
    home = results / settings.model
    for path in sorted((home / "benchmarks" / "extract_activations").glob("*.tsv")):
        match = _PASS.fullmatch(path.name)
        if (
            not match
            or int(match["shard"]) >= settings.shards
            or _is_older(path, home / "corpus" / "train.json")
        ):
            continue
        first = int(match["shard"]) * settings.contexts_per_shard
        contexts = min(settings.contexts_per_shard, settings.contexts - first)
        yield (
            contexts * settings.corpus.context * _pass_operations(settings, int(match["highest"])),
            path,
        )


def _is_older(benchmark: Path, corpus: Path) -> bool:
    """Whether a job ran before the current corpus was made, with other tokens."""
    return corpus.exists() and benchmark.stat().st_mtime < corpus.stat().st_mtime


def _rate(jobs: Iterable[tuple[float, Path]], assumed: float) -> Rate:
    """Median rate of finished jobs, or `assumed` (teraflops) if there are none.

    The median, because the benchmark of a resumed job has the time of its last attempt only.

    Args:
        jobs: operations and benchmark file of each job.
    """
    timed = [(operations, wall_seconds(path)) for operations, path in jobs]
    rates = [operations / seconds / 1e12 for operations, seconds in timed if seconds]
    return Rate(median(rates), len(rates)) if rates else Rate(assumed, 0)


def wall_seconds(benchmark: Path) -> float | None:
    """Seconds (column `s`) in a Snakemake benchmark file; None if it has no such number."""
    try:
        names, values, *_ = benchmark.read_text(encoding="utf-8").splitlines()
        seconds = float(dict(zip(names.split("\t"), values.split("\t"), strict=False))["s"])
    except (OSError, ValueError, KeyError):
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None
