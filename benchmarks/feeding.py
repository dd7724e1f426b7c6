"""How fast the sampler feeds training: rows per CPU second, and how busy a device is.

    PYTHONPATH=workflow_scripts python benchmarks/feeding.py --help

- `stored`: the CPU's share of a training on a GPU. Rows are read, permuted and handed over as they
  are stored, window by window, to a plain buffer in place of the GPU's memory. The first epoch also
  verifies checksums. Reference: a plain copy of the same bytes from a memory map, in the same order.
  A second reference computes crc32c of each copied chunk, too: it bounds the first epoch.
- `decoded`: whole batches on the CPU, gathered and decoded to float32.
- `device`: the share of time that a simulated device is busy. Its step sleeps instead of gathering,
  decoding and computing. Gathering and decoding on a real GPU are not part of this measurement.
  Reference: the same steps without rows, which other load on the machine delays too.

The process runs on one core.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from measure import cost, least, show

from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages

ARMS = ("stored", "decoded", "device")
COLUMNS = ("arm", "storage", "mode", "M rows per CPU s", "of a plain copy", "device busy")
CONTEXT = 512
Row = list[Any]


def write(folder: Path, storage: Any, given: argparse.Namespace) -> tuple[Path, Path]:
    """Write a store of random rows."""
    paths = folder / f"{storage}.zarr", folder / f"{storage}.json"
    header = Header("benchmark", "-", 0, "resid_post", CONTEXT, "-", storage)
    rng = np.random.default_rng(0)
    with StoreWriter(*paths, header, rows=given.rows, d_model=given.d_model) as writer:
        for start in range(0, given.rows, CHUNK_ROWS):
            rows = min(CHUNK_ROWS, given.rows - start)
            writer.append(to_block(rng.standard_normal((rows, given.d_model), dtype=np.float32)))
    return paths


def opened(paths: tuple[Path, Path]) -> ActivationStore:
    """Open a store, with no chunk verified."""
    return ActivationStore.open([paths[0]], [paths[1]])


def plain_copies(
    folder: Path, store: ActivationStore, given: argparse.Namespace
) -> tuple[float, float]:
    """Rows per CPU second of a copy, chunk by chunk in shuffled order, from a map to a buffer.

    Returns: without and with crc32c of each copied chunk.
    """
    path = folder / "plain"
    shape = (given.rows, given.d_model * store.stored_dtype.itemsize)
    np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8).tofile(path)
    plain = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    window = np.zeros((64 * CHUNK_ROWS, shape[1]), dtype=np.uint8)
    order = np.random.default_rng(0).permutation(given.rows // CHUNK_ROWS).tolist()

    def copy(verified: bool) -> None:
        for turn, chunk in enumerate(order):
            at = turn % 64 * CHUNK_ROWS
            window[at : at + CHUNK_ROWS] = plain[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
            if verified:
                copied = window[at : at + CHUNK_ROWS]
                copied.flags.writeable = False  # google_crc32c requires a read-only buffer
                google_crc32c.value(copied.reshape(-1))

    copy(False)
    rates = [
        len(order)
        * CHUNK_ROWS
        / least([cost(partial(copy, verified)) for _ in range(given.epochs + 1)]).cpu
        for verified in (False, True)
    ]
    path.unlink()
    return rates[0], rates[1]


def epochs(sampler: ChunkSampler, serve: Callable[[int], Any], count: int) -> list[float]:
    """Rows per CPU second of each epoch."""
    steps, rates = sampler.batches_per_epoch, []
    batch = sampler.rows // steps
    for epoch in range(count):

        def all_steps(first: int = epoch * steps) -> None:
            for step in range(first, first + steps):
                serve(step)

        rates.append(steps * batch / cost(all_steps).cpu)
    return rates


def hand_over(sampler: ChunkSampler, step: int) -> None:
    """Everything that the CPU does for one batch on a GPU."""
    list(sampler.spans(step))


def stored(
    folder: Path, storage: str, paths: tuple[Path, Path], given: argparse.Namespace
) -> list[Row]:
    """The CPU's share of a training on a GPU, against a plain copy."""
    reference, verified = (rate / 1e6 for rate in plain_copies(folder, opened(paths), given))
    store = opened(paths)
    once, sampler = (
        ChunkSampler(store, given.batch, 0, resident=False, epochs=count)
        for count in (1, given.epochs)
    )
    (first,) = epochs(once, partial(hand_over, once), 1)
    later = epochs(sampler, partial(hand_over, sampler), given.epochs)
    rows: list[Row] = [
        ["stored", storage, "plain copy", reference, 1.0, ""],
        ["stored", storage, "plain copy and crc32c", verified, verified / reference, ""],
    ]
    for mode, rate in (("windows, first epoch", first / 1e6), ("windows", max(later) / 1e6)):
        rows.append(["stored", storage, mode, rate, rate / reference, ""])
    return rows


def decoded(storage: str, paths: tuple[Path, Path], given: argparse.Namespace) -> list[Row]:
    """Whole batches on the CPU. Uses nothing that other versions of the sampler lack."""
    rows: list[Row] = []
    for mode, resident in (("resident", True), ("windows", False)):
        store, start = opened(paths), time.process_time()
        sampler = ChunkSampler(store, given.batch, 0, resident=resident)
        loaded = time.process_time() - start
        first, *later = epochs(sampler, sampler.batch_at, given.epochs)
        first = 1 / (1 / first + loaded / (sampler.batches_per_epoch * given.batch))
        # The first epoch also reads ahead the first window of the second.
        rows.append(["decoded", storage, f"{mode}, first epoch", first / 1e6, "", ""])
        rows.append(["decoded", storage, mode, max(later) / 1e6, "", ""])
    return rows


def device(storage: str, paths: tuple[Path, Path], given: argparse.Namespace) -> list[Row]:
    """The share of time that a device with a step of fixed length is busy."""

    def busy(serve: Callable[[int], Any], steps: int) -> float:
        started = time.perf_counter()
        for step in range(steps):
            serve(step)
            time.sleep(given.step / 1000)
        wall = time.perf_counter() - started
        return float(steps * given.step / 1000 / wall)

    steps = given.epochs * given.rows // given.batch
    rows: list[Row] = [["device", storage, "no rows", "", "", busy(lambda _: None, steps)]]
    for mode, resident in (("resident", True), ("windows", False)):
        sampler = ChunkSampler(opened(paths), given.batch, 0, resident, keep_stored=True)
        list(sampler.spans(0))  # the first window is read before training starts
        rows.append(["device", storage, mode, "", "", busy(partial(hand_over, sampler), steps)])
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=786_432, help="three windows by default")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3, help="at least 2")
    parser.add_argument("--step", type=float, default=5.4, help="ms of a step of the device")
    parser.add_argument("--storage", nargs="+", default=["int8s", "fp16"])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    use_huge_pages()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for storage in given.storage:
            paths = write(folder, storage, given)
            arms: dict[str, Callable[[], list[Row]]] = {
                "stored": partial(stored, folder, storage, paths, given),
                "decoded": partial(decoded, storage, paths, given),
                "device": partial(device, storage, paths, given),
            }
            for arm in given.arms:
                rows += arms[arm]()
    title = f"{given.rows:,} x {given.d_model} rows, batch {given.batch:,}, one core"
    show(title, COLUMNS, rows)


if __name__ == "__main__":
    main()
