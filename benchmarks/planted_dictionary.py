"""How much of a known dictionary an SAE recovers as noise grows: prints a CSV line per noise level.

    PYTHONPATH=workflow_scripts python benchmarks/planted_dictionary.py --noise 0.05 0.2 0.5

A row is a sum of `active` of `features` random unit directions in `d_model` dimensions, each with a
strength between 1 and 2, plus white noise with a norm of `noise` times that of the sum. A true
direction is recovered if some decoder row has a cosine above .95 with it. The seed is 0; every row
is seen once.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from measure import show
from torch import Tensor
from torch.nn import functional

from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae.quality import measure
from ghosttrack.sae.training import Dictionary, TrainingLayer, train
from ghosttrack.settings import SaeSettings

RECOVERED = 0.95
# Rows per block; rows of another draw, for the held-out quality.
BLOCK, HELDOUT = 65_536, 16_384


class PlantedDictionary(NamedTuple):
    """The true dictionary of the rows."""

    directions: Tensor  # (features, d_model), unit rows
    active: int
    noise: float  # norm of the noise, relative to the sum's

    def rows(self, count: int, seed: int) -> npt.NDArray[np.float16]:
        """`count` rows, (count, d_model)."""
        generator = torch.Generator().manual_seed(seed)
        features, d_model = self.directions.shape
        made = np.empty((count, d_model), dtype=np.float16)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            chosen = self._chosen(size, features, generator)
            strength = 1.0 + torch.rand(size, self.active, generator=generator)
            x = functional.embedding_bag(
                chosen, self.directions, mode="sum", per_sample_weights=strength
            )
            noise = functional.normalize(torch.randn(size, d_model, generator=generator), dim=1)
            x += noise * x.norm(dim=1, keepdim=True) * self.noise
            made[start : start + size] = x.numpy()
        return made

    def _chosen(self, count: int, features: int, generator: torch.Generator) -> Tensor:
        """`active` different random directions for each row, (count, active)."""
        sets, found = [], 0
        while found < count:
            drawn = (
                torch.randint(features, (count + count // 4, self.active), generator=generator)
                .sort(dim=1)
                .values
            )
            kept = drawn[
                (drawn[:, 1:] != drawn[:, :-1]).all(dim=1)
            ]  # rejection sampling: drop draws with a repeated direction
            sets.append(kept)
            found += len(kept)
        return torch.cat(sets)[:count]


class InMemory:
    """Rows in an array, with batches in the order of the rows, which are independent draws."""

    def __init__(self, values: npt.NDArray[np.float16], batch: int) -> None:
        self.values, self.batch = values, batch
        self.rows, self.d_model = values.shape
        self.excluded = np.zeros(self.rows, dtype=np.bool_)
        self.batches_per_epoch = self.rows // batch

    def read(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        """Rows start .. stop - 1."""
        return self.values[start:stop]

    def fingerprint(self) -> str:
        """A constant: no checkpoint is written."""
        return "planted"

    def batch_at(self, step: int) -> torch.Tensor:
        """Batch number `step`, counted over all epochs."""
        start = step % self.batches_per_epoch * self.batch
        return torch.from_numpy(self.values[start : start + self.batch].astype(np.float32))


def measured(planted: PlantedDictionary, settings: SaeSettings, rows: int) -> dict[str, Any]:
    """Train on `rows` rows; recovery, quality and CPU seconds."""
    store = InMemory(planted.rows(rows, seed=1), settings.batch)
    began = time.process_time()
    nowhere = Path(os.devnull)  # never written: no checkpoint falls due
    ((trained,),) = train(
        [TrainingLayer(store, store)],
        [Dictionary(settings, 0, nowhere)],
        micro_batch=settings.batch,
        checkpoint_seconds=1e9,
        device="cpu",
    )
    sae = trained.sae
    seconds = time.process_time() - began
    cosine = (
        (planted.directions @ functional.normalize(sae.W_dec, dim=1).t()).max(1).values
    )  # (features,)
    found = measure(sae, InMemory(planted.rows(HELDOUT, seed=2), settings.batch), settings.k)
    # The FVU of a reconstruction that lacks only the noise.
    floor = planted.noise**2 / (1.0 + planted.noise**2)
    return {
        "noise": planted.noise,
        "recovered": f"{float((cosine > RECOVERED).float().mean()):.4f}",
        "mean_cosine": f"{float(cosine.mean()):.4f}",
        "worst_cosine": f"{float(cosine.min()):.4f}",
        "fvu": f"{found.reconstruction.fvu:.4f}",
        "noise_share": f"{floor:.4f}",
        "l0": f"{found.sparsity.l0:.1f}",
        "dead_fraction": f"{found.sparsity.dead_fraction:.4f}",
        "cpu_seconds": f"{seconds:.0f}",
    }


def main() -> None:
    """Train once per noise level, and print a table that grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--features", type=int, default=1024, help="true directions")
    parser.add_argument("--active", type=int, default=16, help="true directions in a row")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--architecture", default="batchtopk")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    use_huge_pages()
    directions = torch.randn(
        given.features, given.d_model, generator=torch.Generator().manual_seed(0)
    )
    settings = SaeSettings(
        architecture=given.architecture,
        d_sae=given.d_sae,
        k=given.active,
        batch=given.batch,
        epochs=1,
        learning_rate=given.learning_rate,
    )
    lines = []
    for noise in given.noise:
        planted = PlantedDictionary(functional.normalize(directions, dim=1), given.active, noise)
        lines.append(measured(planted, settings, given.rows))
        title = f"{given.architecture}: {given.features} directions, {given.rows:,} rows"
        show(title, list(lines[0]), [list(line.values()) for line in lines])


if __name__ == "__main__":
    main()
