"""What a run will take: stores that stay, and hours, from counted operations until finished jobs tell better."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.planning import plan, roofline
from ghosttrack.runtime import files
from ghosttrack.settings import DatasetSettings, Settings

# What plan.pass_name makes of a pass, and the shard: see the benchmark of extract_activations.
_PASS = re.compile(r"layers_\d+_to_(?P<highest>\d+)_shard_(?P<shard>\d+)\.tsv")
FACTS = Path(__file__).parents[1] / "data" / "facts"
# ASSUME: a line of an embedded fact table becomes two to four statements with one to three answer tokens each.
ROWS_PER_FACT = 8
# ASSUME: examples of other data sets, where `max_examples` says nothing, and answer tokens of each.
EXAMPLES, ROWS_PER_EXAMPLE = 2000, 8
# ASSUME: tokens that are read, against those of the answer.
READ = {"answer": 1.0, "last": 0.5, "all": 5.0}


class Kept(NamedTuple):
    """Bytes of the stores that stay after the run, always fp16; `guessed`: data sets whose rows are an estimate."""

    heldout: int
    examples: int
    guessed: int


class Rate(NamedTuple):
    """Sustained 10^12 operations per second of one accelerator, and the finished jobs behind it; 0 jobs: assumed."""

    teraflops: float
    jobs: int


class Effort(NamedTuple):
    """Expected wall hours on `plan.gpus` accelerators, and the hours of all of them together."""

    hours: float
    gpu_hours: float
    rate: Rate


class Training(NamedTuple):
    """What training the SAEs takes at one batch size, and why."""

    batch: int
    steps: int  # of one SAE
    step: roofline.Step
    bound: roofline.Bound
    effort: Effort


def block_operations(d_model: int, context: int) -> int:
    """Operations of one token in one transformer block, forward.

    Twice the 12 d^2 weights of attention and a fourfold MLP, and 4 d for each position attended to
    (Kaplan et al. 2020, arXiv 2001.08361, table 1; the causal mask saves nothing in dense kernels).
    """
    return 24 * d_model**2 + 4 * context * d_model


def kept(settings: Settings, datasets: Mapping[str, DatasetSettings], results: Path) -> Kept:
    """Disk of held-out and example stores, all layers and the token embedding, in bytes."""
    assert settings.dimensions is not None
    width, layers = settings.dimensions.d_model, len(settings.layers)
    examples = guessed = 0
    for name in settings.datasets:
        rows = _stored_rows(results / settings.model / "examples" / name / "embedding.json")
        if rows is None:
            rows = round(
                _guessed_rows(settings, datasets[name]) * READ[settings.activations.positions]
            )
            guessed += 1
        examples += (layers + 1) * plan.store_bytes(rows, width, "fp16", settings.corpus.context)
    return Kept(plan.heldout_bytes(settings), examples, guessed)


def _stored_rows(manifest: Path) -> int | None:
    try:
        return int(files.read_json(manifest)["rows"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _guessed_rows(settings: Settings, dataset: DatasetSettings) -> int:
    if dataset.mode == "generated":
        return settings.generation.questions * settings.generation.max_new_tokens
    table = FACTS / f"{dataset.table}.csv"
    if dataset.source == "facts" and table.is_file():
        rows = table.read_bytes().count(b"\n") * ROWS_PER_FACT
        return min(rows, (dataset.max_examples or rows) * ROWS_PER_EXAMPLE)
    return (dataset.max_examples or EXAMPLES) * ROWS_PER_EXAMPLE


def extraction(settings: Settings, waves: Sequence[Sequence[int]], results: Path) -> Effort:
    """Expected effort of all extraction jobs; waves come one after the other, their jobs side by side."""
    rate = _rate(_finished_extraction(settings, results), settings.plan.teraflops)
    rows = settings.contexts * settings.corpus.context
    rounds = plan.extraction_rounds(settings)
    job = min(settings.contexts, settings.contexts_per_shard) * settings.corpus.context
    passes = [_pass_operations(settings, layers[-1]) for layers in waves]
    return Effort(
        sum(rounds * job * each for each in passes) / rate.teraflops / 1e12 / 3600,
        sum(rows * each for each in passes) / rate.teraflops / 1e12 / 3600,
        rate,
    )


def training(
    settings: Settings, waves: Sequence[Sequence[int]], results: Path, batch: int | None = None
) -> Training:
    """Expected effort of training all SAEs, with the settings' batch or another; a wave's train side by side.

    Until a job was measured a step takes what its roofline says. A measured rate is the settings' batch's own, and is
    not carried over to another.
    """
    assert settings.dimensions is not None
    chosen = settings.sae.model_copy(update={"batch": batch or settings.sae.batch})
    steps = settings.contexts * settings.corpus.context * chosen.epochs // chosen.batch
    step = roofline.step(chosen, settings.dimensions.d_model, settings.plan.device)
    bound = roofline.bound(step, settings.plan)
    operations = steps * step.operations
    benchmarks = results / settings.model / "benchmarks" / "train_sae"
    found = ((operations, benchmarks / f"layer_{layer:02d}.tsv") for layer in settings.layers)
    rate = _rate(found if chosen == settings.sae else (), step.operations / bound.seconds / 1e12)
    hours = operations / rate.teraflops / 1e12 / 3600
    total = hours * sum(map(len, waves))
    rounds = plan.training_rounds(waves, settings.plan.gpus)
    wall = total if settings.sae.shared else hours * rounds
    return Training(chosen.batch, steps, step, bound, Effort(wall, total, rate))


def _pass_operations(settings: Settings, highest: int) -> int:
    """Operations of one token in blocks 0 to `highest`."""
    assert settings.dimensions is not None
    return (highest + 1) * block_operations(settings.dimensions.d_model, settings.corpus.context)


def _finished_extraction(settings: Settings, results: Path) -> Iterator[tuple[int, Path]]:
    """Operations and benchmark of every finished job, whichever waves the layers were cut into when it ran."""
    home = results / settings.model
    for path in sorted((home / "benchmarks" / "extract_activations").glob("*.tsv")):
        found = _PASS.fullmatch(path.name)
        if (
            not found
            or int(found["shard"]) >= settings.shards
            or _is_older(path, home / "corpus" / "train.json")
        ):
            continue
        first = int(found["shard"]) * settings.contexts_per_shard
        contexts = min(settings.contexts_per_shard, settings.contexts - first)
        yield (
            contexts * settings.corpus.context * _pass_operations(settings, int(found["highest"])),
            path,
        )


def _is_older(benchmark: Path, corpus: Path) -> bool:
    """Whether a job ran before the corpus of today was made: its tokens were others."""
    return corpus.exists() and benchmark.stat().st_mtime < corpus.stat().st_mtime


def _rate(jobs: Iterable[tuple[float, Path]], assumed: float) -> Rate:
    """Median rate of the finished jobs, given as (operations, benchmark file); without one, `assumed` teraflops.

    The median, because a resumed job's benchmark holds its last attempt only.
    """
    timed = [(operations, wall_seconds(path)) for operations, path in jobs]
    rates = [operations / seconds / 1e12 for operations, seconds in timed if seconds]
    return Rate(median(rates), len(rates)) if rates else Rate(assumed, 0)


def wall_seconds(benchmark: Path) -> float | None:
    """Column `s` of a Snakemake benchmark file; None if there is no such file or no number in it."""
    try:
        names, values, *_ = benchmark.read_text(encoding="utf-8").splitlines()
        seconds = float(dict(zip(names.split("\t"), values.split("\t"), strict=False))["s"])
    except (OSError, ValueError, KeyError):
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None
