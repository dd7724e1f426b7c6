"""Reading a store against a memory map, and the sampler against a training step.

PYTHONPATH=workflow_scripts python benchmarks/store_reading.py --help
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Cost, cost, least, show
from sae_step import Case, ours, rows

from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae.sparse_step import SparseBackEnd


def write(folder: Path, values: Any, storage: Any) -> ActivationStore:
    """Write all rows to one store and open it."""
    paths = folder / f"{storage}.zarr", folder / f"{storage}.json"
    header = Header("benchmark", "-", 0, "resid_post", 512, "-", storage)
    with StoreWriter(*paths, header, rows=len(values), d_model=values.shape[1]) as writer:
        for start in range(0, len(values), CHUNK_ROWS):
            writer.append(to_block(values[start : start + CHUNK_ROWS].astype(np.float32)))
    return ActivationStore.open([paths[0]], [paths[1]])


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=393_216)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = np.empty((given.rows, given.d_model), dtype=np.float16)
        for start in range(0, given.rows, CHUNK_ROWS):
            values[start : start + CHUNK_ROWS] = rng.standard_normal(
                (min(CHUNK_ROWS, given.rows - start), given.d_model)
            )
        values.tofile(folder / "plain")
        plain = np.memmap(folder / "plain", dtype=np.float16, mode="r", shape=values.shape)
        stores = {storage: write(folder, values, storage) for storage in ("fp16", "int8s")}
        del values
        order = rng.permutation(-(-given.rows // CHUNK_ROWS)).tolist()
        buffer = np.empty((CHUNK_ROWS, given.d_model), dtype=np.float16)

        def read_plain() -> None:
            for chunk in order:
                part = plain[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
                buffer[: len(part)] = part

        def read(store: ActivationStore) -> None:
            for chunk in order:
                part = store.chunk(chunk)
                buffer[: len(part)] = part

        read_plain()
        first = {storage: cost(partial(read, store)) for storage, store in stores.items()}
        costs: dict[str, list[Cost]] = {"plain memory map": [], "fp16": [], "int8s": []}
        for _ in range(given.repeats):
            costs["plain memory map"].append(cost(read_plain))
            for storage, store in stores.items():
                costs[storage].append(cost(partial(read, store)))
        reference = least(costs["plain memory map"])
        size = given.rows * given.d_model * 2 / 1e6
        table = [
            [
                label,
                least(runs).cpu,
                least(runs).wall,
                size / least(runs).cpu,
                reference.cpu / least(runs).cpu,
            ]
            for label, runs in costs.items()
        ]
        table += [
            [
                f"{storage}, first read, verifies checksums",
                each.cpu,
                each.wall,
                size / each.cpu,
                reference.cpu / each.cpu,
            ]
            for storage, each in first.items()
        ]
        show(
            f"{given.rows:,} x {given.d_model} rows, chunk by chunk in shuffled order",
            ["", "CPU s", "wall s", "fp16 MB/CPU s", "of plain"],
            table,
        )
        sampled(stores, given)


def drawn(sampler: ChunkSampler, steps: int) -> None:
    """Draw one epoch."""
    for step in range(steps):
        sampler.batch_at(step)


def sampled(stores: dict[str, ActivationStore], given: argparse.Namespace) -> None:
    """Time the sampler, shuffling and casting included, a training step, and its dense product."""
    case = Case(
        given.d_model, given.d_sae, given.k, given.batch, dead=torch.arange(given.d_sae // 20)
    )
    batches = rows(case, 2)
    step = ours(case, "batchtopk", SparseBackEnd(given.batch), batches[0])
    encoder = torch.randn(given.d_model, given.d_sae)
    least_step = least([cost(partial(step, batch)) for batch in batches * given.repeats][2:])
    product = least([cost(lambda: batches[0] @ encoder) for _ in range(given.repeats)])
    table = []
    for storage, store in stores.items():
        for resident in (True, False):
            sampler = ChunkSampler(store, given.batch, seed=0, resident=resident)
            steps = sampler.batches_per_epoch
            epoch = cost(partial(drawn, sampler, steps))
            label = f"{storage}, {'resident' if resident else 'window of 64 chunks'}"
            spent = epoch.cpu / steps
            table.append([label, 1000 * spent, spent / least_step.cpu, spent / product.cpu])
    show(
        f"batches of {given.batch} against a step of batchtopk with d_sae {given.d_sae}, k {given.k} ({1000 * least_step.cpu:.0f} CPU ms, "
        f"the encoder's product alone {1000 * product.cpu:.0f} CPU ms)",
        ["sampler", "CPU ms per batch", "of the step", "of the product"],
        table,
        "sampler",
    )


if __name__ == "__main__":
    main()
