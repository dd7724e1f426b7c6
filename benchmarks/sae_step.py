"""Cost of one SAE training step: ours, a plain autograd step, other projects', and a lower bound.

    PYTHONPATH=workflow_scripts python benchmarks/sae_step.py --batch 256 4096 --peers VENV

All contestants get the same rows in the same order and the same fraction of dead features, so that
AuxK is active. Each takes a turn in every round, so other load slows all of them. Times are medians
over rounds. Ratios are of CPU time, medians of the ratios of each round: with best times, short
steps would profit from quiet moments and long ones would not.

limit    Lower bound of a step that touches only active entries: the measured time of the encoder's
         product times (1 + 4 k / d_sae), plus that of fused Adam. It assumes that the four sparse passes
         run at the speed of the dense product, which no gather reaches.
 + AuxK  The limit plus AuxK's products over dead features at that speed, 4 dead / d_sae of the encoder's
         product (a fifth, for its pre-activations, is part of the encoder's product). All contestants
         use dense products there, so the time does not depend on how many activations are positive.
of limit The limit as a fraction of the contestant's time, also for dense steps, which it does not bound.
         The product is torch.addmm, which all others use. Where oneDNN is faster, ours can be below it.
 best    The limit with AuxK as a fraction, from best times instead of medians: a lower reading.
 oneDNN  The limit with AuxK as a fraction, from medians, with the product at oneDNN's speed: the
         remaining potential.
VENV     A virtual environment with sae-lens, eai-sparsify or dictionary-learning and the same torch.
"""

import argparse
import importlib
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import show
from torch import Tensor

from ghosttrack.inputs.linear_kernels import linear
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae.adam import BETA1, EPSILON
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.engine import BackEnd, Engine
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.sparse_step import SparseBackEnd
from ghosttrack.sae.training import architecture
from ghosttrack.settings import SaeSettings

Step = Callable[[Tensor], object]
RATE, AUX = 3e-4, 1 / 32
# A bias that keeps a feature silent.
SILENT = -30.0
BETAS = BETA1, 0.999
# Batches with different rows, as in training; fewer for a long step.
BATCHES, LARGE, BATCHES_OF_LARGE = 4, 1024, 2


class Case(NamedTuple):
    """The sizes that all contestants get."""

    d_model: int
    d_sae: int
    k: int
    batch: int
    dead: Tensor  # indices of the features that never fire


class Timing(NamedTuple):
    """Milliseconds per step."""

    cpu: float
    wall: float


def rows(case: Case, count: int) -> list[Tensor]:
    """`count` batches (batch, d_model) of sparse sums of 2 d_model directions and noise.

    The mean of |x|^2 is d_model.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * case.d_model, case.d_model, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    batches = []
    for _ in range(count):
        code = torch.rand(case.batch, len(directions), generator=generator)
        code *= torch.rand(code.shape, generator=generator) < 0.03
        x = code @ directions + 0.02 * torch.randn(case.batch, case.d_model, generator=generator)
        x -= x.mean(0)
        batches.append(x / x.pow(2).mean().sqrt())
    return batches


def parameters(case: Case) -> Parameters:
    """Tied random weights with dead features."""
    weights = Parameters.tied(case.d_model, case.d_sae, torch.Generator().manual_seed(0))
    weights.b_enc[case.dead] = SILENT
    return weights


def ours(case: Case, name: str, back_end: BackEnd, first: Tensor) -> Step:
    """The step of the workflow's engine."""
    settings = SaeSettings.model_validate({"architecture": name, "d_sae": case.d_sae, "k": case.k})
    engine = Engine(
        parameters(case),
        architecture(settings),
        aux_coefficient=AUX,
        dead_after_tokens=10**12,
        back_end=back_end,
    )
    engine.initialise(first)
    engine.tokens_silent[case.dead] = 10**12
    return lambda x: engine.step(x, RATE)


def autograd_step(case: Case) -> Step:
    """BatchTopK and AuxK with dense products, autograd and torch's default Adam."""
    weights = [torch.nn.Parameter(tensor) for tensor in parameters(case)]
    W_enc, W_dec, b_enc, b_dec = weights
    adam = torch.optim.Adam(weights, lr=RATE, betas=BETAS, eps=EPSILON)
    silent = torch.zeros(case.d_sae, dtype=torch.bool)
    silent[case.dead] = True

    def step(x: Tensor) -> None:
        adam.zero_grad()
        pre = (x - b_dec) @ W_enc.t() + b_enc
        top = pre.flatten().topk(case.k * len(x))
        code = (
            torch.zeros_like(pre).flatten().scatter(0, top.indices, top.values.relu()).view_as(pre)
        )
        residual = x - (code @ W_dec + b_dec)
        loss = residual.pow(2).sum(1).mean() / case.d_model
        if len(case.dead):
            target = residual.detach()
            rest = pre.masked_fill(~silent, -torch.inf).topk(
                min(case.d_model // 2, len(case.dead)), dim=1
            )
            estimate = torch.zeros_like(pre).scatter(1, rest.indices, rest.values) @ W_dec
            loss = (
                loss
                + AUX * (estimate - target).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
            )
        torch.autograd.backward(loss)
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            norm = torch.nn.utils.get_total_norm(
                [weight.grad for weight in weights if weight.grad is not None]
            )
            for weight in weights:
                assert weight.grad is not None
                weight.grad /= norm
            adam.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step


def saelens(case: Case, name: str) -> Step:
    """One step of SAELens's trainer with its default settings."""
    saes: Any = importlib.import_module("sae_lens.saes")
    config: Any = importlib.import_module("sae_lens.config")
    trainer: Any = importlib.import_module("sae_lens.training.sae_trainer")
    kinds = {"batchtopk": "BatchTopKTrainingSAE", "topk": "TopKTrainingSAE"}
    described = getattr(saes, f"{kinds[name]}Config")(d_in=case.d_model, d_sae=case.d_sae, k=case.k)
    sae = getattr(saes, kinds[name])(described)
    with torch.no_grad():
        sae.b_enc[case.dead] = SILENT
    run = trainer.SAETrainer(
        cfg=config.SAETrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=case.batch, lr=RATE, lr_end=RATE
        ),
        sae=sae,
        data_provider=iter(()),
    )
    run.n_forward_passes_since_fired[case.dead] = 10**6
    return lambda x: run.step(x)


def sparsify(case: Case) -> Step:
    """sparsify's TopK module, with its trainer's loss and decoder normalisation, and Adam."""
    package: Any = importlib.import_module("sparsify")
    coder = package.SparseCoder(
        case.d_model, package.SparseCoderConfig(num_latents=case.d_sae, k=case.k)
    )
    with torch.no_grad():
        coder.encoder.bias[case.dead] = SILENT
    adam = torch.optim.Adam(coder.parameters(), lr=RATE)
    silent = torch.zeros(case.d_sae, dtype=torch.bool)
    silent[case.dead] = True

    def step(x: Tensor) -> None:
        out = coder(x, dead_mask=silent)
        torch.autograd.backward(out.fvu + AUX * out.auxk_loss)
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


def dictionary_learning(case: Case) -> Step:
    """dictionary_learning's BatchTopK trainer, after its first step (geometric median)."""
    module: Any = importlib.import_module("dictionary_learning.trainers.batch_top_k")
    trainer = module.BatchTopKTrainer(
        steps=10**9,
        activation_dim=case.d_model,
        dict_size=case.d_sae,
        k=case.k,
        layer=0,
        lm_name="",
        lr=RATE,
        auxk_alpha=AUX,
        threshold_start_step=0,
        device="cpu",
    )
    with torch.no_grad():
        trainer.ae.encoder.bias[case.dead] = SILENT
    trainer.num_tokens_since_fired[case.dead] = 10**12
    return lambda x: trainer.update(1, x)


def contestants(case: Case, first: Tensor) -> dict[str, Step | None]:
    """Steps by name; None if a package is not installed."""
    sparse = SparseBackEnd(case.batch)
    steps: dict[str, Step | None] = {}
    for name in ("batchtopk", "topk", "jumprelu", "matryoshka"):
        steps[f"ours {name}"] = ours(case, name, sparse, first)
    steps["ours batchtopk, dense"] = ours(case, "batchtopk", DenseBackEnd(case.batch), first)
    steps["autograd batchtopk"] = autograd_step(case)
    peers: dict[str, Callable[[], Step]] = {
        "SAELens batchtopk": lambda: saelens(case, "batchtopk"),
        "SAELens topk": lambda: saelens(case, "topk"),
        "sparsify topk": lambda: sparsify(case),
        "dictionary_learning batchtopk": lambda: dictionary_learning(case),
    }
    for name, make in peers.items():
        try:
            steps[name] = make()
        except ImportError:
            steps[name] = None
    return steps


TORCHS, ONEDNNS, ADAMS = FLOORS = "torch.addmm", "oneDNN product", "fused Adam"


def floors(case: Case) -> dict[str, Step]:
    """The parts of the limit: the encoder's product by either library, and fused Adam."""
    weights = parameters(case)
    adam = torch.optim.Adam(list(weights), lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
    for tensor in weights:
        tensor.grad = torch.full_like(tensor, 1e-6)
    out = torch.empty(case.batch, case.d_sae)
    return {
        TORCHS: lambda x: torch.addmm(weights.b_enc, x, weights.W_enc.t(), out=out),
        ONEDNNS: lambda x: linear(x, weights.W_enc, weights.b_enc),
        ADAMS: lambda _: adam.step(),
    }


def timed(step: Step, batches: list[Tensor]) -> Timing:
    """Mean time over one pass through the batches."""
    cpu, wall = time.process_time(), time.perf_counter()
    for x in batches:
        step(x)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return Timing(*(1e3 * seconds / len(batches) for seconds in spent))


def measure(steps: dict[str, Step], batches: list[Tensor], rounds: int) -> dict[str, list[Timing]]:
    """One timing of each contestant per round; a first round warms up."""
    times: dict[str, list[Timing]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            timing = timed(step, batches)
            if number:
                times[name].append(timing)
    return times


COLUMNS = (
    "",
    "CPU ms",
    "wall ms",
    "tokens/s",
    "x autograd",
    "x SAELens",
    "of limit",
    "+ AuxK",
    "best",
    "oneDNN",
)


def table(case: Case, times: dict[str, list[Timing]], missing: list[str]) -> list[list[Any]]:
    """A row of `COLUMNS` for each contestant, part of the limit and limit."""
    cpu = {name: np.array([each.cpu for each in found]) for name, found in times.items()}
    product, onednn, adam = (cpu[name] for name in FLOORS)
    passes, auxiliary = 1 + 4 * case.k / case.d_sae, 4 * len(case.dead) / case.d_sae
    limits = {
        "sparse limit": product * passes + adam,
        "sparse limit + AuxK": product * (passes + auxiliary) + adam,
    }
    best = product.min() * (passes + auxiliary) + adam.min()
    left = onednn * (passes + auxiliary) + adam

    def relative(own: Any) -> list[float | None]:
        others = [cpu.get("autograd batchtopk"), cpu.get("SAELens batchtopk"), *limits.values()]
        ratios = [None if other is None else float(np.median(other / own)) for other in others]
        rate = float(np.median(case.batch / own * 1e3))
        return [rate, *ratios, float(best / own.min()), float(np.median(left / own))]

    rows: list[list[Any]] = [
        [
            name,
            float(np.median(cpu[name])),
            float(np.median([each.wall for each in found])),
            *([None] * 7 if name in FLOORS else relative(cpu[name])),
        ]
        for name, found in times.items()
    ]
    rows += [[f"{name}: not installed", *[None] * 9] for name in missing]
    return rows + [[name, float(np.median(limit)), *[None] * 8] for name, limit in limits.items()]


def main() -> None:
    """Measure, and print one table per batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--dead", type=float, default=0.05, help="fraction of dead features")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="only contestants whose names start like this (and the autograd baseline)",
    )
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="virtual environment with the other projects"
    )
    given = parser.parse_args()
    if given.peers:
        sys.path += map(str, sorted(given.peers.glob("lib/python*/site-packages")))
    warnings.filterwarnings("ignore")  # warnings of other projects
    keep_freed_memory()  # as in training, for all contestants
    use_huge_pages()
    for batch, threads in itertools.product(given.batch, given.threads):
        torch.set_num_threads(threads)
        dead = torch.arange(int(given.dead * given.d_sae))
        case = Case(given.d_model, given.d_sae, given.k, batch, dead)
        batches = rows(case, BATCHES_OF_LARGE if batch > LARGE else BATCHES)
        every = contestants(case, batches[0])
        steps = {
            name: step
            for name, step in every.items()
            if step and name.startswith((*given.only, "autograd"))
        }
        times = measure({**floors(case), **steps}, batches, given.rounds)
        title = (
            f"d_model {case.d_model}, d_sae {case.d_sae}, k {case.k}, batch {case.batch}, "
            f"{len(case.dead)} dead; {threads} thread(s)"
        )
        missing = [name for name, step in every.items() if not step]
        show(title, COLUMNS, table(case, times, missing))


if __name__ == "__main__":
    main()
