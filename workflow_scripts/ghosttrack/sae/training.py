"""The training run of one dictionary: schedule, history, checkpoints, exact resume.

A dictionary learns from one layer, or from several at once: then every batch holds rows of all of them, each
centred and scaled in its own layer, and the export is one autoencoder a layer with the same features.

The order of the data is a pure function of (seed, epoch) and nothing else is random after the start,
so the position in the run is one integer. A run that was killed and resumed gives the same bytes as
one that was not (same machine kind, same threads, same micro-batch).
"""

import csv
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae import speed
from ghosttrack.sae.adam import beta2
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.checkpoints import Checkpoint, Checkpoints
from ghosttrack.sae.engine import Engine, StepResult, back_end
from ghosttrack.sae.export import fold
from ghosttrack.sae.initialisation import Start
from ghosttrack.sae.jumprelu import JumpReLU
from ghosttrack.sae.matryoshka import MatryoshkaBatchTopK, nested_ends
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.preemption import stop_requests
from ghosttrack.sae.rows import Batches, Normaliser, Rows, fit_normaliser
from ghosttrack.sae.threshold import Threshold
from ghosttrack.sae.topk import TopK
from ghosttrack.settings import SaeSettings

log = logging.getLogger("ghosttrack")

# The field's figure (OpenAI, dictionary_learning); short runs reach it never, hence the share in the settings.
DEAD_AFTER_AT_MOST = 10_000_000
# The learning-rate rule of the settings refers to these sizes.
RULE_D_SAE, RULE_BATCH, RULE_RATE = 16_384, 4096, 2e-4
# Rows of the history: enough for a smooth curve, few enough to read.
HISTORY_ROWS = 200
# A shorter run says nothing about speed.
TELLING_SECONDS = 5.0


class HistoryRow(NamedTuple):
    """One line of the loss curve; loss, fvu and l0 are means over the steps since the line before."""

    step: int  # steps done
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: int
    learning_rate: float


class Source(NamedTuple):
    """One layer to learn from."""

    store: Rows  # statistics and the threshold are taken from it
    batches: Batches  # the same rows, shuffled


class Trained(NamedTuple):
    """An exported autoencoder and how it came about."""

    sae: Sae
    history: list[HistoryRow]


class Schedule(NamedTuple):
    """Learning rate over the run: linear rise, plateau, linear fall."""

    peak: float
    steps: int
    warmup: float  # share of the steps
    decay: float  # share of the steps

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1; never zero, so that no step is wasted."""
        rise = (step + 1) / max(self.warmup * self.steps, 1.0)
        fall = (self.steps - step) / max(self.decay * self.steps, 1.0)
        return self.peak * min(1.0, rise, fall)


def schedule(settings: SaeSettings, steps: int) -> Schedule:
    """The schedule of the settings. Rule: Gao et al. (arXiv 2406.04093) in d_sae, square root in the batch."""
    rule = (
        RULE_RATE / math.sqrt(settings.d_sae / RULE_D_SAE) * math.sqrt(settings.batch / RULE_BATCH)
    )
    return Schedule(settings.learning_rate or rule, steps, settings.warmup, settings.decay)


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
            return MatryoshkaBatchTopK(k, nested_ends(settings.prefixes, d_sae))


def train(
    store: Rows,
    batches: Batches,
    settings: SaeSettings,
    *,
    seed: int,
    state: Path,
    micro_batch: int,
    code: str = "",
    label: str = "SAE",
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
    cuda_graph: bool = False,
    start: Start | None = None,
) -> Trained:
    """Train one layer's autoencoder; see `train_shared`, of which this is the case of one source."""
    (trained,) = train_shared(
        [Source(store, batches)],
        settings,
        seed=seed,
        state=state,
        micro_batch=micro_batch,
        code=code,
        label=label,
        checkpoint_seconds=checkpoint_seconds,
        device=device,
        cuda_graph=cuda_graph,
        start=start,
    )
    return trained


def train_shared(
    sources: Sequence[Source],
    settings: SaeSettings,
    *,
    seed: int,
    state: Path,
    micro_batch: int,
    code: str = "",
    label: str = "SAE",
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
    cuda_graph: bool = False,
    start: Start | None = None,
) -> list[Trained]:
    """Train one dictionary on all sources, going on from the newest sound checkpoint in `state`.

    Args:
        sources: the layers; a step takes one batch of each, so their batches together are `settings.batch` rows.
        settings: what to train.
        seed: of the initial weights.
        state: folder for checkpoints; the caller holds its lock and removes it on success.
        micro_batch: rows of one encoder product, on a GPU of everything; bounds memory only, to about three such products.
        code: digest of the code, part of what a checkpoint must agree with.
        label: name in the progress line.
        checkpoint_seconds: time between checkpoints, what a kill can lose at most.
        device: where to train, and so with which back end; None: a GPU if there is one.
        cuda_graph: on a GPU, spare the launches of a step's pass; changes no result. Not measured.
        start: weights to begin with; None: random directions.
    Returns:
        One export a source, in order: the same features, with each layer's own mean, scale and threshold. The
        history is that of all together.
    Raises:
        UserError: settings and data do not fit.
        SystemExit: a signal asked to stop; a checkpoint was saved.
    """
    if settings.k >= settings.d_sae:
        raise UserError(
            f"sae.k: {settings.k} active of sae.d_sae: {settings.d_sae} features; k must be smaller"
        )
    if start is not None:
        start.require(settings.d_sae, sources[0].store.d_model)
    data = [source.store.fingerprint() for source in sources]
    begun = None if start is None else start.fingerprint()
    identity = {
        "data": data,
        "sae": settings.model_dump(),
        "seed": seed,
        "code": code,
        "start": begun,
    }
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda":
        speed.warn_of_small_batch(settings.batch)
    checkpoints = Checkpoints(state, files.sha256_json(identity))
    run = _Run(sources, settings, seed, micro_batch, checkpoints, place, cuda_graph, start)
    run.resume_or_start()
    run.go(label, checkpoint_seconds)
    return run.finish(seed)


class _Run:
    def __init__(
        self,
        sources: Sequence[Source],
        settings: SaeSettings,
        seed: int,
        micro_batch: int,
        checkpoints: Checkpoints,
        device: torch.device,
        cuda_graph: bool,
        start: Start | None,
    ) -> None:
        self.device = device
        self.sources, self.settings, self.checkpoints, self.start = (
            sources,
            settings,
            checkpoints,
            start,
        )
        # Layers lose few rows, so their epochs differ by a batch at most: the shortest counts.
        steps = settings.epochs * min(source.batches.batches_per_epoch for source in sources)
        self.schedule = schedule(settings, steps)
        if start is None:
            d_model = sources[0].store.d_model
            parameters = Parameters.tied(
                d_model, settings.d_sae, torch.Generator().manual_seed(seed)
            )
        else:
            parameters = Parameters(*(tensor.clone() for tensor in start.parameters))
        self.engine = Engine(
            parameters.to(device),
            architecture(settings),
            aux_coefficient=settings.aux_coefficient,
            dead_after_tokens=min(
                DEAD_AFTER_AT_MOST,
                math.ceil(settings.dead_after * self.schedule.steps * settings.batch),
            ),
            back_end=back_end(device, micro_batch, settings.precision),
            beta2=beta2(self.schedule.steps),
            cuda_graph=cuda_graph,
        )
        self.step = 0
        self.history: list[HistoryRow] = []
        self.sums = torch.zeros(3, dtype=torch.float64)  # loss, fvu, l0 since the last history row
        self.history_every = max(1, self.schedule.steps // HISTORY_ROWS)

    def resume_or_start(self) -> None:
        if found := self.checkpoints.latest():
            self.step = found.step
            self.engine.restore(found.tensors)
            means, scales = found.tensors["mean"], found.tensors["scale"]
            self.normalisers = [
                Normaliser(mean.clone(), float(scale))
                for mean, scale in zip(means, scales, strict=True)
            ]
            self.sums = found.tensors["sums"].clone()
            for step, tokens, loss, fvu, l0, dead, rate in found.tensors["history"].tolist():
                self.history.append(
                    HistoryRow(int(step), int(tokens), loss, fvu, l0, int(dead), rate)
                )
            log.info(
                "going on from the checkpoint of step %s of %s",
                f"{self.step:,}",
                f"{self.schedule.steps:,}",
            )
            return
        self.normalisers = [fit_normaliser(source.store) for source in self.sources]
        if self.start is None:
            self.engine.start(self.read(0))
        else:
            self.engine.start_from(self.start.threshold)

    def read(self, step: int) -> Tensor:
        """Batch number `step`, each layer's rows centred and scaled, (batch, d_model) on the device."""
        parts = [
            normaliser.to(self.device)(
                torch.from_numpy(source.batches.batch_at(step)).to(self.device)
            )
            for source, normaliser in zip(self.sources, self.normalisers, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def go(self, label: str, checkpoint_seconds: float) -> None:
        batch = self.settings.batch
        progress = Progress(label, self.schedule.steps * batch, "tokens", start=self.step * batch)
        saved = time.monotonic()
        first, stepping = self.step, 0.0
        with stop_requests() as stop:
            while self.step < self.schedule.steps:
                rate = self.schedule.rate(self.step)
                x = self.read(self.step)
                began = time.perf_counter()
                result = self.engine.step(x, rate)
                stepping += time.perf_counter() - began
                self.step += 1
                self.note(result, rate)
                progress.advance(
                    batch,
                    f"loss {result.loss:.4f}, fvu {result.fvu:.4f}, l0 {result.l0:.1f}, dead {result.dead}",
                )
                if stop.signal is not None:
                    self.save()
                    log.warning(
                        "asked to stop: saved at step %s; the same command goes on from there",
                        f"{self.step:,}",
                    )
                    stop.exit()
                if time.monotonic() - saved >= checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        if time.monotonic() - saved >= checkpoint_seconds / 10:
            self.save()  # the export reads the store again, and may fail
        if stepping > TELLING_SECONDS:
            speed.report(
                label, self.engine, batch, self.history[-1].l0, stepping / (self.step - first)
            )

    def note(self, result: StepResult, rate: float) -> None:
        self.sums += torch.tensor([result.loss, result.fvu, result.l0], dtype=torch.float64)
        since = self.step - (self.history[-1].step if self.history else 0)
        if since >= self.history_every or self.step == self.schedule.steps:
            loss, fvu, l0 = (self.sums / since).tolist()
            tokens = self.step * self.settings.batch
            self.history.append(HistoryRow(self.step, tokens, loss, fvu, l0, result.dead, rate))
            self.sums.zero_()

    def save(self) -> None:
        progress = {
            "mean": torch.stack([each.mean for each in self.normalisers]),  # (layers, d_model)
            "scale": torch.tensor([each.scale for each in self.normalisers], dtype=torch.float64),
            "sums": self.sums,
            "history": torch.tensor(self.history, dtype=torch.float64).reshape(
                len(self.history), len(HistoryRow._fields)
            ),
        }
        tensors = {name: tensor.cpu() for name, tensor in self.engine.state().items()}
        self.checkpoints.save(Checkpoint(self.step, {**tensors, **progress}))

    def finish(self, seed: int) -> list[Trained]:
        return [
            Trained(self.export(source.store, normaliser, seed), self.history)
            for source, normaliser in zip(self.sources, self.normalisers, strict=True)
        ]

    def export(self, store: Rows, normaliser: Normaliser, seed: int) -> Sae:
        sae = self.engine.architecture.export(fold(self.engine.parameters, normaliser), store)
        metadata = {
            "training_architecture": self.settings.architecture,
            "dictionaries": self.settings.dictionaries,
            "k": self.settings.k,
            "seed": seed,
            "batch": self.settings.batch,
            "learning_rate": self.schedule.peak,
            "training_tokens": self.schedule.steps * self.settings.batch,
            "unique_tokens": sum(int((~source.store.excluded).sum()) for source in self.sources),
            "num_dead_features": self.engine.dead_features().numel(),
            "activation_scale": normaliser.scale,
        }
        return replace(sae, metadata=metadata)


def write_history(path: Path, history: Sequence[HistoryRow]) -> None:
    """The loss curve as a csv file, atomically."""
    with files.atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HistoryRow._fields)
        for row in history:
            writer.writerow(
                [f"{value:.7g}" if isinstance(value, float) else value for value in row]
            )
