"""Expected disk use and hours of a run, from counted operations and from finished jobs."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ghosttrack.planning import data_sizes, memory, plan, roofline
from ghosttrack.runtime import records
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import DatasetSettings, SaeSettings, Settings

# Benchmark file of extract_activations: plan.pass_name and the number of the shard.
_PASS = re.compile(r"layers_(?P<lowest>\d+)_to_(?P<highest>\d+)_shard_(?P<shard>\d+)\.tsv")
# Tokens of a forward pass: 16 contexts.
_CONTEXTS = 16


class Kept(NamedTuple):
    """Disk use of the stores that remain after the run, always fp16."""

    heldout: int  # bytes
    examples: int  # bytes
    estimated: int  # data sets whose number of rows is an estimate


class Rate(NamedTuple):
    """Rate of one accelerator over whole jobs."""

    teraflops: float  # 10^12 operations per second
    jobs: int  # finished jobs in which it was measured; 0: assumed
    slower: float = 1.0  # measured time relative to the assumed one


class Effort(NamedTuple):
    """Expected time of some jobs."""

    hours: float  # wall time with `plan.gpus` accelerators
    gpu_hours: float  # sum over all accelerators
    rate: Rate
    bound: roofline.Bound  # of a token or a training step, as assumed


class Training(NamedTuple):
    """Expected time of training all SAEs at one batch size, and its limit."""

    batch: int
    steps: int  # steps per SAE
    later_steps: int  # steps of an SAE that begins with another layer's
    step: roofline.Step
    effort: Effort

    @property
    def bound(self) -> roofline.Bound:
        """Minimum time of a step, as assumed."""
        return self.effort.bound


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
        rows = data_sizes.stored_rows(settings.model, name, results)
        if rows is None:
            rows = data_sizes.estimated_rows(settings, datasets[name])
            estimated += 1
        examples += (layers + 1) * plan.store_bytes(rows, width, "fp16", settings.corpus.context)
    return Kept(plan.heldout_bytes(settings), examples, estimated)


def extraction(settings: Settings, waves: Sequence[Sequence[int]], results: Path) -> Effort:
    """Expected time of all extraction jobs; jobs of a wave run in parallel.

    A token takes the time of its slowest part. Finished jobs replace the assumption: all times are
    multiplied by the median of their measured times relative to the assumed ones.
    """
    tokens = settings.contexts * settings.corpus.context
    rounds = plan.extraction_rounds(settings)
    job = min(settings.contexts, settings.contexts_per_shard) * settings.corpus.context
    bounds = [token_bound(settings, layers[-1] + 1, len(layers)) for layers in waves]
    seconds = sum(bound.seconds for bound in bounds)  # of one token in all waves
    operations = sum(_pass_operations(settings, layers[-1]) for layers in waves)
    slower = _slower(_finished_extraction(settings, results))
    rate = _rate(operations, seconds, slower)
    return Effort(
        rounds * job * seconds * rate.slower / 3600,
        settings.plan.gpus_per_model * tokens * seconds * rate.slower / 3600,
        rate,
        _together(bounds, settings),
    )


def extraction_minutes(settings: Settings, layers: Sequence[int]) -> float:
    """Minimum time of the job that extracts one shard of some layers, as assumed."""
    tokens = min(settings.contexts, settings.contexts_per_shard) * settings.corpus.context
    return tokens * token_bound(settings, layers[-1] + 1, len(layers)).seconds / 60


def training_minutes(settings: Settings, saes: int = 1) -> float:
    """Minimum time of the job that trains some SAEs, each on the activations of a layer."""
    steps = settings.contexts * settings.corpus.context * settings.sae.epochs / settings.sae.batch
    return saes * steps * step_bound(settings, settings.sae)[1].seconds / 60


def sweep_minutes(settings: Settings) -> float:
    """Minimum time of the job that trains all SAEs of a sweep on one layer."""
    return training_minutes(settings, len(settings.sweep.k) * len(settings.sweep.seeds))


def token_bound(settings: Settings, blocks: int, layers: int) -> roofline.Bound:
    """Minimum time of a token in a forward pass through some blocks, which stores some layers."""
    assert settings.dimensions is not None
    width, machine = settings.dimensions.d_model, settings.plan
    weights = 4 * 12 * blocks * width**2 / (_CONTEXTS * settings.corpus.context)
    taken = roofline.Step(blocks * block_operations(width, settings.corpus.context), weights)
    stored = layers * plan.row_bytes(settings)
    return roofline.Bound.of(
        [*roofline.computing(taken, machine), *roofline.moving("writing", stored, machine)],
        machine.device,
    )


def _together(bounds: Sequence[roofline.Bound], settings: Settings) -> roofline.Bound:
    """The mean of some bounds, part by part."""
    parts = [
        column[0]._replace(seconds=sum(part.seconds for part in column) / len(bounds))
        for column in zip(*(bound.parts for bound in bounds), strict=True)
    ]
    if not parts:  # no wave: pretrained SAEs
        return token_bound(settings, 1, 1)
    return roofline.Bound(sum(bound.seconds for bound in bounds) / len(bounds), tuple(parts))


def is_resident(settings: Settings) -> bool:
    """Whether all activations of a layer fit half of the memory that the SAE leaves on a GPU.

    That is what training keeps there (`activations.sampler`).
    """
    if settings.plan.device != "gpu":
        return False
    rows = settings.contexts * settings.corpus.context * plan.row_bytes(settings)
    return 2 * rows + memory.device_training(settings) <= settings.plan.gpu_memory_gb * 1e9


def training(
    settings: Settings, waves: Sequence[Sequence[int]], results: Path, batch: int | None = None
) -> Training:
    """Expected time of training all SAEs; those of a wave train in parallel.

    Before a job is measured, the time of a step is that of its slowest part. A measured time is used
    only for the batch size in the settings, and only if the job had the settings of now.

    Args:
        batch: another batch size than that in the settings.
    """
    chosen = settings.sae.model_copy(update={"batch": batch or settings.sae.batch})
    rows = settings.contexts * settings.corpus.context
    steps = rows * chosen.epochs // chosen.batch
    step, bound = step_bound(settings, chosen)
    layer_steps = {
        layer: rows * _epochs(settings, layer) // chosen.batch for layer in settings.layers
    }
    assumed = {layer: layer_steps[layer] * bound.seconds for layer in settings.layers}
    first = settings.warm_start_layer
    measured = _finished_training(settings, assumed, results) if chosen == settings.sae else ()
    rate = _rate(step.operations, bound.seconds, _slower(measured))
    total = sum(assumed[layer] for layers in waves for layer in layers) * rate.slower / 3600
    wall = total
    if not settings.sae.shared:
        wall = sum(_rounds(settings, layers, assumed) for layers in waves) * rate.slower / 3600
    return Training(
        chosen.batch,
        steps,
        next((layer_steps[layer] for layer in layer_steps if layer != first), steps),
        step,
        Effort(wall, total, rate, bound),
    )


def _epochs(settings: Settings, layer: int) -> int:
    """Epochs of a layer's SAE: those that begin with another layer's may have fewer."""
    if settings.warm_start_layer in (None, layer):
        return settings.sae.epochs
    return settings.sae.warm_start_epochs or settings.sae.epochs


def _rounds(settings: Settings, layers: Sequence[int], seconds: Mapping[int, float]) -> float:
    """Time of a wave's training on `plan.gpus` accelerators; the warm-start layer trains first."""
    first = [layer for layer in layers if layer == settings.warm_start_layer]
    others = [layer for layer in layers if layer not in first]
    rounds = -(-len(others) // settings.plan.gpus)
    return sum(seconds[layer] for layer in first) + rounds * max(
        (seconds[layer] for layer in others), default=0.0
    )


def _finished_training(
    settings: Settings, assumed: Mapping[int, float], results: Path
) -> Iterator[tuple[float, Path]]:
    """Assumed seconds and benchmark of every finished job with the settings and the corpus of now."""
    home = results / settings.model
    corpus = settings.corpus.model_dump(include={"tokens", "context"})
    if not _made_with(home, "corpus/train.json", {"corpus": corpus}):
        return
    for layer in settings.layers:
        weights = f"saes/{layer_name(layer)}/sae_weights.safetensors"
        if not _made_with(home, weights, {"sae": settings.sae.model_dump(mode="json")}):
            continue
        path = home / "benchmarks" / "train_sae" / f"{layer_name(layer)}.tsv"
        seconds = assumed[layer]
        if settings.sae.shared:  # one job trains all layers
            path, seconds = home / "benchmarks" / "train_shared_sae.tsv", sum(assumed.values())
        if path.exists() and not _is_older(path, home / "corpus" / "train.json"):
            yield seconds, path
        if settings.sae.shared:
            return


def step_bound(settings: Settings, sae: SaeSettings) -> tuple[roofline.Step, roofline.Bound]:
    """Work of a training step, and its minimum time."""
    assert settings.dimensions is not None
    machine = settings.plan
    step = roofline.step(sae, settings.dimensions.d_model, machine.device)
    stored = sae.batch * plan.row_bytes(settings) / (sae.epochs if is_resident(settings) else 1)
    parts = [*roofline.computing(step, machine), *roofline.moving("feeding", stored, machine)]
    return step, roofline.Bound.of(parts, machine.device)


def _pass_operations(settings: Settings, highest: int) -> int:
    """Operations per token in blocks 0 to `highest`."""
    assert settings.dimensions is not None
    return (highest + 1) * block_operations(settings.dimensions.d_model, settings.corpus.context)


def _finished_extraction(settings: Settings, results: Path) -> Iterator[tuple[float, Path]]:
    """Assumed seconds and benchmark of every finished job, for any division into waves."""
    home = results / settings.model
    total = _contexts(settings, home)
    for path in sorted((home / "benchmarks" / "extract_activations").glob("*.tsv")):
        match = _PASS.fullmatch(path.name)
        if (
            not match
            or int(match["shard"]) * settings.contexts_per_shard >= total
            or _is_older(path, home / "corpus" / "train.json")
            or not _made_with(
                home,
                f"activations/{layer_name(int(match['lowest']))}/shard_{match['shard']}.json",
                {"contexts_per_shard": settings.contexts_per_shard},
            )
        ):
            continue
        first = int(match["shard"]) * settings.contexts_per_shard
        contexts = min(settings.contexts_per_shard, total - first)
        lowest, highest = int(match["lowest"]), int(match["highest"])
        layers = sum(lowest <= layer <= highest for layer in settings.layers)
        bound = token_bound(settings, highest + 1, max(layers, 1))
        yield contexts * settings.corpus.context * bound.seconds, path


def _contexts(settings: Settings, home: Path) -> int:
    """Contexts of the corpus on disk, which finished jobs read; without its record, those of now."""
    record = records.read_of_run(home, "corpus/train.json")
    made = record.params.get("corpus") if record else None
    tokens = made.get("tokens") if isinstance(made, Mapping) else None
    if not isinstance(tokens, int):
        tokens = settings.corpus.tokens
    return -(-tokens // settings.corpus.context)


def _made_with(home: Path, inside: str, now: Mapping[str, Any]) -> bool:
    """Whether the record of a file has the settings `now`, as far as it has them at all."""
    record = records.read_of_run(home, inside)
    made = record.params if record else {}
    for key in now.keys() & made.keys():
        before, wanted = made[key], now[key]
        if isinstance(before, Mapping) and isinstance(wanted, Mapping):
            before = {name: value for name, value in before.items() if name in wanted}
            wanted = {name: value for name, value in wanted.items() if name in before}
        if before != wanted:
            return False
    return True


def _is_older(benchmark: Path, corpus: Path) -> bool:
    """Whether a job ran before the current corpus was made, with other tokens."""
    return corpus.exists() and benchmark.stat().st_mtime < corpus.stat().st_mtime


def _slower(jobs: Iterable[tuple[float, Path]]) -> list[float]:
    """Measured time of every finished job relative to the assumed one.

    Args:
        jobs: assumed seconds and benchmark file of each job.
    """
    timed = [(assumed, wall_seconds(path)) for assumed, path in jobs]
    return [seconds / assumed for assumed, seconds in timed if seconds]


def _rate(operations: float, seconds: float, slower: Sequence[float]) -> Rate:
    """Operations in assumed seconds, corrected by the median of measured jobs.

    The median, because the benchmark of a resumed job has the time of its last attempt only.
    """
    factor = median(slower) if slower else 1.0
    teraflops = operations / (seconds * factor) / 1e12 if seconds else 0.0
    return Rate(teraflops, len(slower), factor)


def wall_seconds(benchmark: Path) -> float | None:
    """Seconds (column `s`) in a Snakemake benchmark file; None if it has no such number."""
    try:
        names, values, *_ = benchmark.read_text(encoding="utf-8").splitlines()
        seconds = float(dict(zip(names.split("\t"), values.split("\t"), strict=False))["s"])
    except (OSError, ValueError, KeyError):
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None
