"""Several autoencoders of one layer, of other k or other seeds, in one reading of the data.

Every arm takes a step on each batch before the next is read, so arms see the same rows in the same order, and an arm is bit
by bit what training it alone on these batches gives. Seeds are those of the initial weights. Each arm has checkpoints of its
own, saved in turn: after a kill, arms that stand earlier catch up, and the others wait for them.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae.adam import beta2
from ghosttrack.sae.checkpoints import Checkpoint, Checkpoints
from ghosttrack.sae.engine import Engine, back_end
from ghosttrack.sae.export import fold
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.preemption import stop_requests
from ghosttrack.sae.rows import Batches, Normaliser, Rows, fit_normaliser
from ghosttrack.sae.training import DEAD_AFTER_AT_MOST, architecture, schedule
from ghosttrack.settings import SaeSettings

log = logging.getLogger("ghosttrack")


class Arm(NamedTuple):
    """What tells one autoencoder of a sweep from another."""

    k: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"k_{self.k:03d}_seed_{self.seed}"


def sweep(
    store: Rows,
    batches: Batches,
    settings: SaeSettings,
    arms: Sequence[Arm],
    *,
    state: Path,
    micro_batch: int,
    order: int,
    code: str = "",
    label: str = "sweep",
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
) -> dict[Arm, Sae]:
    """Train all arms, each going on from its newest sound checkpoint in `state`.

    Args:
        store: the training activations; statistics and thresholds are taken from it.
        batches: the same rows, shuffled; read once for all arms.
        settings: of every arm, but for k.
        arms: without repeats.
        state: folder for checkpoints; the caller holds its lock and removes it on success.
        micro_batch: rows of one encoder product; bounds memory only.
        order: seed of the batches' order. code: digest of the code. Both are part of what a checkpoint must agree with.
        label: name in the progress line.
        checkpoint_seconds: time in which each arm is saved once, what a kill can lose at most.
        device: where to train; None: a GPU if there is one.
    Raises:
        UserError: settings and data do not fit.
        SystemExit: a signal asked to stop; every arm was saved.
    """
    if (most := max(arm.k for arm in arms)) >= settings.d_sae:
        raise UserError(
            f"sweep.k: {most} active of sae.d_sae: {settings.d_sae} features; every k must be smaller"
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    steps = settings.epochs * batches.batches_per_epoch
    normaliser = fit_normaliser(store)
    running = [
        _Running(
            arm, settings, store, steps, state, micro_batch, {"order": order, "code": code}, place
        )
        for arm in arms
    ]
    to_device = normaliser.to(place)

    def read(step: int) -> Tensor:
        return to_device(torch.from_numpy(batches.batch_at(step)).to(place))

    if any(arm.begins for arm in running):
        first = read(0)
        for arm in running:
            arm.start(first)
    begun = min(arm.step for arm in running)
    if begun:
        log.info("going on from step %s of %s", f"{begun:,}", f"{steps:,}")
    progress = Progress(label, steps * settings.batch, "tokens", start=begun * settings.batch)
    saved, turn = time.monotonic(), 0
    with stop_requests() as stop:
        for step in range(begun, steps):
            x = read(step)
            for arm in running:
                if arm.step == step:
                    arm.advance(x)
            progress.advance(
                settings.batch,
                f"{len(running)} arms, fvu {min(arm.fvu for arm in running):.4f} at best",
            )
            if stop.signal is not None:
                for arm in running:
                    arm.save()
                log.warning(
                    "asked to stop: saved at step %s; the same command goes on from there",
                    f"{step + 1:,}",
                )
                stop.exit()
            if time.monotonic() - saved >= checkpoint_seconds / len(running):
                running[turn % len(running)].save()
                saved, turn = time.monotonic(), turn + 1
    for arm in running:
        arm.save()  # what follows reads the store again for every arm
    return {arm.key: arm.export(store, normaliser) for arm in running}


class _Running:
    """One arm on its way."""

    def __init__(
        self,
        key: Arm,
        settings: SaeSettings,
        store: Rows,
        steps: int,
        state: Path,
        micro_batch: int,
        basis: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.key = key
        self.settings = settings.model_copy(update={"k": key.k})
        self.schedule = schedule(self.settings, steps)
        self.engine = Engine(
            Parameters.tied(
                store.d_model, settings.d_sae, torch.Generator().manual_seed(key.seed)
            ).to(device),
            architecture(self.settings),
            aux_coefficient=settings.aux_coefficient,
            dead_after_tokens=min(
                DEAD_AFTER_AT_MOST, math.ceil(settings.dead_after * steps * settings.batch)
            ),
            back_end=back_end(device, micro_batch, settings.precision),
            beta2=beta2(steps),
        )
        identity = {
            "data": store.fingerprint(),
            "sae": self.settings.model_dump(),
            "seed": key.seed,
            **basis,
        }
        self.checkpoints = Checkpoints(state / key.name, files.sha256_json(identity))
        self.step, self.fvu = 0, math.inf
        if found := self.checkpoints.latest():
            self.step = found.step
            self.engine.restore(found.tensors)

    @property
    def begins(self) -> bool:
        return self.step == 0

    def start(self, x: Tensor) -> None:
        if self.begins:
            self.engine.start(x)

    def advance(self, x: Tensor) -> None:
        self.fvu = self.engine.step(x, self.schedule.rate(self.step)).fvu
        self.step += 1

    def save(self) -> None:
        tensors = {name: tensor.cpu() for name, tensor in self.engine.state().items()}
        self.checkpoints.save(Checkpoint(self.step, tensors))

    def export(self, store: Rows, normaliser: Normaliser) -> Sae:
        found = self.engine.architecture.export(fold(self.engine.parameters, normaliser), store)
        metadata = {
            "training_architecture": self.settings.architecture,
            "k": self.key.k,
            "seed": self.key.seed,
            "batch": self.settings.batch,
            "learning_rate": self.schedule.peak,
            "training_tokens": self.schedule.steps * self.settings.batch,
            "activation_scale": normaliser.scale,
        }
        return replace(found, metadata=metadata)
