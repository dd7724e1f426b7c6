"""Training of dictionaries: learning-rate schedule, loss history, checkpoints, exact resume.

A dictionary trains on one layer or on several. With several layers each batch holds rows of all of
them, centred and scaled per layer, and the export is one autoencoder per layer with the same
features. Several dictionaries (the arms of a sweep) can train on the same batches, which are then
read once. Each dictionary gets bit for bit the weights that it gets when it trains alone.

The order of the rows is a pure function of (seed, epoch), and nothing is random after
initialisation, so one integer is the position in the run. A run that is killed and resumed gives
the same bytes as an uninterrupted one on the same kind of machine, with the same number of threads
and the same micro-batch.
"""

import csv
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.runtime.event_files import EventFile
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae import speed
from ghosttrack.sae.adam import beta2
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.checkpoints import Checkpoint, Checkpoints
from ghosttrack.sae.engine import Engine, back_end
from ghosttrack.sae.export import fold_normalisation
from ghosttrack.sae.initialisation import WarmStart
from ghosttrack.sae.jumprelu import JumpReLU
from ghosttrack.sae.matryoshka import MatryoshkaBatchTopK, prefix_sizes
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.preemption import stop_requests
from ghosttrack.sae.rows import Batches, Normaliser, Rows, fit_normaliser
from ghosttrack.sae.threshold import Threshold
from ghosttrack.sae.topk import TopK
from ghosttrack.settings import SaeSettings

log = logging.getLogger("ghosttrack")

# The usual number of tokens (OpenAI, dictionary_learning). Short runs never reach it, so
# sae.dead_after is a fraction of the run.
MAX_DEAD_AFTER_TOKENS = 10_000_000
# The default learning rate is scaled from these values (see `schedule`).
REFERENCE_D_SAE, REFERENCE_BATCH, REFERENCE_RATE = 16_384, 4096, 2e-4
# Rows of the loss history: enough for a smooth curve, few enough to read.
HISTORY_ROWS = 200
# Training time below which the log reports no speed: too short to be representative.
MIN_TIMED_SECONDS = 5.0


class HistoryRow(NamedTuple):
    """One row of the loss history; loss, fvu and l0 are means over the steps since the last row."""

    step: int  # completed steps
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: int
    learning_rate: float

    @property
    def point(self) -> tuple[int, dict[str, float]]:
        """The step and its numbers by name, for an event file."""
        values = self._asdict()
        del values["step"], values["tokens"]  # two names of the same axis
        return self.step, values


class TrainingLayer(NamedTuple):
    """Training rows of one layer."""

    store: Rows  # for the mean, the scale and the inference threshold
    batches: Batches  # the same rows, shuffled


class Dictionary(NamedTuple):
    """A dictionary to train."""

    settings: SaeSettings
    seed: int  # of the random initialisation
    state: Path  # folder of its checkpoints; the caller locks it, and removes it on success
    warm_start: WarmStart | None = None  # initial weights; None: random directions
    frozen_decoder: bool = False  # the decoder keeps its initial directions
    events: Path | None = None  # folder of its event file; None: no event file


class TrainedSae(NamedTuple):
    """An exported autoencoder and the loss history of its training."""

    sae: Sae
    history: list[HistoryRow]


class Schedule(NamedTuple):
    """Learning rate over the run: linear warm-up, plateau, linear decay."""

    peak: float
    steps: int
    warmup: float  # fraction of the steps
    decay: float  # fraction of the steps

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1. It is never zero: no step is wasted."""
        rise = (step + 1) / max(self.warmup * self.steps, 1.0)
        fall = (self.steps - step) / max(self.decay * self.steps, 1.0)
        return self.peak * min(1.0, rise, fall)


def schedule(settings: SaeSettings, steps: int) -> Schedule:
    """The schedule of the settings.

    The default peak rate scales with 1 / sqrt(d_sae) (Gao et al., arXiv 2406.04093) and with
    sqrt(batch).
    """
    default = (
        REFERENCE_RATE
        / math.sqrt(settings.d_sae / REFERENCE_D_SAE)
        * math.sqrt(settings.batch / REFERENCE_BATCH)
    )
    return Schedule(settings.learning_rate or default, steps, settings.warmup, settings.decay)


def architecture(settings: SaeSettings) -> Architecture:
    """The architecture that the settings name."""
    d_sae, k = settings.d_sae, settings.k
    match settings.architecture:
        case "batchtopk":
            return BatchTopK(d_sae, k)
        case "topk":
            return TopK(d_sae, k)
        case "jumprelu":
            return JumpReLU(Threshold(d_sae, k, settings.bandwidth, settings.l0_coefficient))
        case "matryoshka":
            return MatryoshkaBatchTopK(k, prefix_sizes(settings.prefixes, d_sae))


def training_device() -> torch.device:
    """Where to train: a GPU if there is one. Batches that are already there need no copy."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    layers: Sequence[TrainingLayer],
    dictionaries: Sequence[Dictionary],
    *,
    micro_batch: int,
    order: int | None = None,
    code: str = "",
    label: str = "SAE",
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
    cuda_graph: bool = False,
) -> list[list[TrainedSae]]:
    """Train dictionaries on the same layers; each resumes from its newest valid checkpoint.

    All dictionaries take a step on a batch before the next batch is read. The checkpoints are saved
    in turn. After a kill, dictionaries with an older checkpoint catch up while the others wait.

    Args:
        layers: a step takes one batch of each layer; together they have `settings.batch` rows.
        dictionaries: what to train; `batch` and `epochs` of their settings must be equal.
        micro_batch: rows per encoder product, on a GPU rows per pass. Bounds memory only, to about
            three products of this size.
        order: seed of the order of the batches, if it does not follow from the dictionaries' seeds;
            a checkpoint of another order is refused.
        code: digest of the code; a checkpoint of other code is refused.
        label: name in the progress line.
        checkpoint_seconds: time between two checkpoints of a dictionary, the most that a kill
            loses.
        device: where to train, which decides the back end; None: `training_device()`.
        cuda_graph: on a GPU, run the pass of a step as one CUDA graph. Changes no result. Not
            measured.
    Returns:
        For each dictionary one export per layer, in order: the same features, with the layer's
        mean, scale and threshold. The loss history is over all layers.
    Raises:
        UserError: settings and data do not fit.
        SystemExit: a signal asked the process to stop; all checkpoints are saved.
    """
    target = torch.device(device) if device else training_device()
    settings = dictionaries[0].settings
    if target.type == "cuda":
        speed.warn_of_small_batch(settings.batch)
    runs = [
        _Run(layers, dictionary, micro_batch, {"order": order, "code": code}, target, cuda_graph)
        for dictionary in dictionaries
    ]
    try:
        normalisers = next((run.normalisers for run in runs if run.normalisers), None) or [
            fit_normaliser(layer.store) for layer in layers
        ]
        read = _reader(layers, normalisers, target)
        first_batch = None
        for run in runs:
            run.normalisers = normalisers
            if run.step == 0 and run.dictionary.warm_start is not None:
                run.engine.warm_start(run.dictionary.warm_start.threshold)
            elif run.step == 0:
                first_batch = read(0) if first_batch is None else first_batch
                run.engine.initialise(first_batch)
        _train(runs, read, label, checkpoint_seconds)
        return [run.export(layers) for run in runs]
    finally:
        for run in runs:
            if run.events is not None:
                run.events.close()


def _reader(
    layers: Sequence[TrainingLayer], normalisers: Sequence[Normaliser], device: torch.device
) -> Callable[[int], Tensor]:
    """Reads the batch of a step: normalised rows of all layers, (batch, d_model), on the device."""
    on_device = [normaliser.to(device) for normaliser in normalisers]

    def read(step: int) -> Tensor:
        parts = [
            normaliser(layer.batches.batch_at(step).to(device))
            for layer, normaliser in zip(layers, on_device, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return read


def _train(
    runs: Sequence["_Run"], read: Callable[[int], Tensor], label: str, checkpoint_seconds: float
) -> None:
    steps, batch = runs[0].schedule.steps, runs[0].dictionary.settings.batch
    first = min(run.step for run in runs)
    if first:
        log.info("resuming from the checkpoint of step %s of %s", f"{first:,}", f"{steps:,}")
    progress = Progress(label, steps * batch, "tokens", start=first * batch)
    saved, saves = time.monotonic(), 0
    with stop_requests() as stop:
        for step in range(first, steps):
            x = read(step)
            for run in runs:
                if run.step == step:
                    run.advance(x)
            progress.advance(batch, _summary(runs))
            if stop.signal is not None:
                for run in runs:
                    run.save()
                log.warning(
                    "asked to stop: saved at step %s; run the same command again to resume",
                    f"{step + 1:,}",
                )
                stop.exit()
            if time.monotonic() - saved >= checkpoint_seconds / len(runs):
                runs[saves % len(runs)].save()
                saved, saves = time.monotonic(), saves + 1
    for run in runs:
        if time.monotonic() - run.saved >= checkpoint_seconds / 10:
            run.save()  # the export reads the store again, and may fail
        if run.seconds > MIN_TIMED_SECONDS:
            name = label if len(runs) == 1 else f"{label}, {run.dictionary.state.name}"
            per_step = run.seconds / (run.step - run.first)
            speed.report(name, run.engine, batch, run.history[-1].l0, per_step)


def _summary(runs: Sequence["_Run"]) -> str:
    """Progress of one dictionary, or the best FVU of several."""
    if len(runs) > 1:
        best = min(run.fvu for run in runs)
        return f"{len(runs)} dictionaries, best fvu {best:.4f}"
    return runs[0].progress


class _Run:
    """One dictionary in training: engine, position, history and checkpoints."""

    def __init__(
        self,
        layers: Sequence[TrainingLayer],
        dictionary: Dictionary,
        micro_batch: int,
        identity: dict[str, str | int | None],
        device: torch.device,
        cuda_graph: bool,
    ) -> None:
        settings, warm_start = dictionary.settings, dictionary.warm_start
        if settings.k >= settings.d_sae:
            raise UserError(
                f"sae.k: {settings.k} active of sae.d_sae: {settings.d_sae} features; "
                "k must be smaller"
            )
        d_model = layers[0].store.d_model
        if warm_start is not None:
            warm_start.require(settings.d_sae, d_model)
            parameters = Parameters(*(tensor.clone() for tensor in warm_start.parameters))
        else:
            generator = torch.Generator().manual_seed(dictionary.seed)
            parameters = Parameters.tied(d_model, settings.d_sae, generator)
        self.dictionary = dictionary
        # Layers exclude few rows, so epochs differ by about one batch: the shortest counts.
        steps = settings.epochs * min(layer.batches.batches_per_epoch for layer in layers)
        self.schedule = schedule(settings, steps)
        self.engine = Engine(
            parameters.to(device),
            architecture(settings),
            aux_coefficient=settings.aux_coefficient,
            dead_after_tokens=min(
                MAX_DEAD_AFTER_TOKENS, math.ceil(settings.dead_after * steps * settings.batch)
            ),
            back_end=back_end(device, micro_batch, settings.precision),
            beta2=beta2(steps),
            cuda_graph=cuda_graph,
            frozen_decoder=dictionary.frozen_decoder,
        )
        self.step, self.fvu, self.progress = 0, math.inf, ""
        self.normalisers: list[Normaliser] = []
        self.history: list[HistoryRow] = []
        self.sums = torch.zeros(3, dtype=torch.float64)  # loss, fvu, l0 since the last history row
        self.history_every = max(1, steps // HISTORY_ROWS)
        content = {
            "data": [layer.store.fingerprint() for layer in layers],
            "sae": settings.model_dump(),
            "seed": dictionary.seed,
            "warm_start": None if warm_start is None else warm_start.fingerprint(),
            "frozen_decoder": dictionary.frozen_decoder,
            **identity,
        }
        self.checkpoints = Checkpoints(dictionary.state, files.sha256_json(content))
        if checkpoint := self.checkpoints.latest():
            self.restore(checkpoint)
        self.events = (
            EventFile(dictionary.events, [row.point for row in self.history])
            if dictionary.events
            else None
        )
        self.first, self.seconds, self.saved = self.step, 0.0, time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        self.step, tensors = checkpoint.step, checkpoint.tensors
        self.engine.restore(tensors)
        self.normalisers = [
            Normaliser(mean.clone(), float(scale))
            for mean, scale in zip(tensors["mean"], tensors["scale"], strict=True)
        ]
        self.sums = tensors["sums"].clone()
        for step, tokens, loss, fvu, l0, dead, rate in tensors["history"].tolist():
            self.history.append(HistoryRow(int(step), int(tokens), loss, fvu, l0, int(dead), rate))

    def advance(self, x: Tensor) -> None:
        """Take one step on x (batch, d_model)."""
        rate = self.schedule.rate(self.step)
        started = time.perf_counter()
        result = self.engine.step(x, rate)
        self.seconds += time.perf_counter() - started
        self.step, self.fvu = self.step + 1, result.fvu
        self.progress = (
            f"loss {result.loss:.4f}, fvu {result.fvu:.4f}, l0 {result.l0:.1f}, dead {result.dead}"
        )
        self.sums += torch.tensor([result.loss, result.fvu, result.l0], dtype=torch.float64)
        since = self.step - (self.history[-1].step if self.history else 0)
        if since >= self.history_every or self.step == self.schedule.steps:
            loss, fvu, l0 = (self.sums / since).tolist()
            tokens = self.step * self.dictionary.settings.batch
            self.history.append(HistoryRow(self.step, tokens, loss, fvu, l0, result.dead, rate))
            self.sums.zero_()
            if self.events is not None:
                self.events.add(*self.history[-1].point)

    def save(self) -> None:
        scales = [normaliser.scale for normaliser in self.normalisers]
        progress = {
            "mean": torch.stack([normaliser.mean for normaliser in self.normalisers]),
            "scale": torch.tensor(scales, dtype=torch.float64),
            "sums": self.sums,
            "history": torch.tensor(self.history, dtype=torch.float64).reshape(
                len(self.history), len(HistoryRow._fields)
            ),
        }
        tensors = {name: tensor.cpu() for name, tensor in self.engine.state().items()}
        self.checkpoints.save(Checkpoint(self.step, {**tensors, **progress}))
        self.saved = time.monotonic()

    def export(self, layers: Sequence[TrainingLayer]) -> list[TrainedSae]:
        """One autoencoder per layer."""
        settings, exports = self.dictionary.settings, []
        for layer, normaliser in zip(layers, self.normalisers, strict=True):
            folded = fold_normalisation(self.engine.parameters, normaliser)
            metadata = {
                "training_architecture": settings.architecture,
                "dictionaries": settings.dictionaries,
                "k": settings.k,
                "seed": self.dictionary.seed,
                "batch": settings.batch,
                "learning_rate": self.schedule.peak,
                "training_tokens": self.schedule.steps * settings.batch,
                "unique_tokens": sum(int((~layer.store.excluded).sum()) for layer in layers),
                "num_dead_features": self.engine.dead_features().numel(),
                "activation_scale": normaliser.scale,
            }
            sae = self.engine.architecture.export(folded, layer.store)
            exports.append(TrainedSae(replace(sae, metadata=metadata), self.history))
        return exports


def write_history(path: Path, history: Sequence[HistoryRow]) -> None:
    """Write the loss history as a csv file, atomically."""
    with files.atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HistoryRow._fields)
        for row in history:
            writer.writerow(
                [f"{value:.7g}" if isinstance(value, float) else value for value in row]
            )
