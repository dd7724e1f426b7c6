"""Compare our SAEs with SAELens's batchtopk: `python benchmarks/sae_quality.py --help`.

Both train on the same rows, with the same normalisation, batches, order, k, dictionary size, steps,
learning-rate schedule, gradient clipping, dead-feature window and seed. The rest of SAELens is
unchanged: initialisation, auxiliary loss and Adam. Both are measured on the same held-out rows, as
exported, and again with the single threshold that gives a mean L0 of k, because the FVU at unequal
L0 is not comparable. (Jumprelu has a threshold per feature, so only its exported values count.)
"""

import argparse
import importlib
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import show
from storage_modes import stores

from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.planning.configuration import load
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae import model, quality
from ghosttrack.sae.export import calibrate, fold_normalisation
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.rows import Rows, fit_normaliser
from ghosttrack.sae.training import Dictionary, TrainingLayer, schedule, train
from ghosttrack.settings import SaeSettings


class Timed(NamedTuple):
    """An autoencoder on raw activations, and the CPU seconds of its training."""

    sae: Sae
    seconds: float


class OneEpoch:
    """The first `steps` batches of a sampler as one epoch."""

    def __init__(self, sampler: ChunkSampler, steps: int) -> None:
        self.batches_per_epoch = steps
        self._sampler = sampler

    def batch_at(self, step: int) -> torch.Tensor:
        """Batch number `step`, however many epochs of the sampler that takes."""
        return self._sampler.batch_at(step)


def ours(store: Rows, batches: OneEpoch, settings: SaeSettings, seed: int, folder: Path) -> Timed:
    """The workflow's own training."""
    began = time.process_time()
    ((trained,),) = train(
        [TrainingLayer(store, batches)],
        [Dictionary(settings, seed, folder)],
        micro_batch=settings.batch,
        checkpoint_seconds=1e9,
        device="cpu",
    )
    return Timed(trained.sae, time.process_time() - began)


def saelens(
    store: Rows, batches: OneEpoch, settings: SaeSettings, seed: int, folder: Path
) -> Timed:
    """SAELens's trainer, one step at a time, saved and read again as it saves itself for inference."""
    saes: Any = importlib.import_module("sae_lens.saes")
    config: Any = importlib.import_module("sae_lens.config")
    trainer: Any = importlib.import_module("sae_lens.training.sae_trainer")
    steps = batches.batches_per_epoch
    rates = schedule(settings, steps)
    torch.manual_seed(seed)
    sae = saes.BatchTopKTrainingSAE(
        saes.BatchTopKTrainingSAEConfig(d_in=store.d_model, d_sae=settings.d_sae, k=settings.k)
    )
    run = trainer.SAETrainer(
        cfg=config.SAETrainerConfig(
            total_training_samples=steps * settings.batch,
            train_batch_size_samples=settings.batch,
            lr=rates.peak,
            lr_end=rates.peak,
            dead_feature_window=round(settings.dead_after * steps),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    began = time.process_time()
    normaliser = fit_normaliser(store)
    for step in range(steps):
        for group in run.optimizer.param_groups:  # SAELens's schedule is constant
            group["lr"] = rates.rate(step)
        run.step(normaliser(batches.batch_at(step)))
        run.n_training_steps += 1
    seconds = time.process_time() - began
    sae.save_inference_model(str(folder))
    found = model.load(folder)
    parameters = Parameters(found.W_enc.t(), found.W_dec, found.b_enc, found.b_dec)
    return Timed(
        replace(fold_normalisation(parameters, normaliser), threshold=found.threshold), seconds
    )


def line(name: str, trained: Timed, store: Rows, heldout: Rows, k: int) -> list[Any]:
    """Held-out quality, as exported and at exactly k."""
    exported = quality.measure(trained.sae, heldout, k)
    # Without its own k: topk would keep fewer than k after the threshold.
    level = quality.measure(calibrate(replace(trained.sae, k=None), store, k), heldout, k)
    return [
        name,
        trained.seconds,
        exported.sparsity.l0,
        exported.reconstruction.fvu,
        level.sparsity.l0,
        level.reconstruction.fvu,
        level.reconstruction.fvu_token_median,
        level.sparsity.dead_fraction,
    ]


def main() -> None:
    """Train both on every layer, and print a table per layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        help="folder of a finished run whose activations were kept, results/NAME",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="VENV",
        help="virtual environment with sae-lens; default: only our SAEs",
    )
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument(
        "--architectures", nargs="+", default=["batchtopk"], help="architectures of our SAEs"
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[], help="further peak learning rates of our SAEs"
    )
    parser.add_argument("--seed", type=int, help="seed of the initial weights; default: the run's")
    parser.add_argument(
        "--peer-rates",
        type=float,
        nargs="+",
        default=[],
        help="further peak learning rates of SAELens",
    )
    given = parser.parse_args()
    if given.peers:
        sys.path += map(str, sorted(given.peers.glob("lib/python*/site-packages")))
    warnings.filterwarnings("ignore")  # warnings of SAELens
    torch.set_num_threads(1)
    keep_freed_memory()
    use_huge_pages()
    (run,) = load({"model": given.results.name}, Path(__file__).parents[1] / "config").values()
    for layer in given.layers:
        store, heldout = stores(given.results, layer)
        sampler = ChunkSampler(store, run.sae.batch, run.seed)
        batches = OneEpoch(sampler, given.epochs * sampler.batches_per_epoch)
        settings = run.sae.model_copy(update={"epochs": 1})
        rate = schedule(settings, batches.batches_per_epoch).peak
        seed = run.seed if given.seed is None else given.seed
        contestants = [
            (f"ours {name} at {peak:g}", ours, {"architecture": name, "learning_rate": peak})
            for name in given.architectures
            for peak in [rate, *given.rates]
        ]
        if given.peers:
            rates = [rate, *given.peer_rates]
            contestants += [
                (f"SAELens at {peak:g}", saelens, {"learning_rate": peak}) for peak in rates
            ]
        rows = []
        for name, contestant, changed in contestants:
            with tempfile.TemporaryDirectory() as folder:
                trained = contestant(
                    store, batches, settings.model_copy(update=changed), seed, Path(folder)
                )
            rows.append(line(name, trained, store, heldout, settings.k))
        title = f"{given.results.name} layer {layer}: {batches.batches_per_epoch:,} steps of {settings.batch}, d_sae {settings.d_sae}, k {settings.k}"
        columns = ["", "CPU s", "L0 exported", "FVU exported", "L0", "FVU", "token median", "dead"]
        show(title, columns, rows)
        for other in rows[1:]:
            fvu, dead = rows[0][5] / other[5] - 1, rows[0][7] - other[7]
            exported = rows[0][3] / other[3] - 1
            sys.stdout.write(
                f"{rows[0][0]} against {other[0]}: FVU {fvu:+.2%} at equal L0, {exported:+.2%} as exported, dead {dead:+.4f}\n"
            )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
