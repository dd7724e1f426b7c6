"""Writing of stores: against a plain write, the int8s encoder, and beside a simulated device.

PYTHONPATH=workflow_scripts python benchmarks/writing.py --help

With --memory the stores are written to a file system in memory. Otherwise the rate of the disk bounds
most of what is measured: four layers of fp16 at 60,000 tokens/s are 490 MB/s.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from measure import Cost, cost, least, show

from ghosttrack.activations import extraction, int8s, staging
from ghosttrack.activations.layout import CHUNK_ROWS, SHARD_ROWS
from ghosttrack.activations.store import Block, Header, Storage, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime.allocator import keep_freed_memory

STORAGES: tuple[Storage, ...] = ("fp16", "int8s")
# A file system in memory on Linux.
MEMORY = Path("/dev/shm")


def chunk_of(d_model: int) -> npt.NDArray[np.float16]:
    """A chunk as of a residual stream: unequal channels, and an attention sink in each context."""
    values = np.random.default_rng(0).standard_normal((CHUNK_ROWS, d_model), dtype=np.float32)
    values *= np.geomspace(0.05, 20, d_model, dtype=np.float32)
    values[::512] = 300
    return values.astype(np.float16)


def encoded_block(values: npt.NDArray[np.float16], storage: Storage) -> Block:
    """The block that a device gives: rounded, and in mode int8s encoded."""
    block = to_block(values.astype(np.float32))
    return block if storage == "fp16" else block._replace(values=int8s.encode(values))


def store(folder: Path, block: Block, storage: Storage, rows: int) -> None:
    """Write one store of ready blocks."""
    header = Header("benchmark", "-", 0, "resid_post", 512, "-", storage)
    d_model = len(block.values.mean if isinstance(block.values, int8s.Coded) else block.values[0])
    place = folder / f"{storage}.zarr", folder / f"{storage}.json"
    with StoreWriter(*place, header, rows=rows, d_model=d_model, resume="code") as writer:
        for _ in range(0, rows, CHUNK_ROWS):
            writer.append(block)


def plain(folder: Path, payload: npt.NDArray[Any], rows: int) -> None:
    """Write the same bytes to files of the same size, with SHA-256 and crc32c of each chunk."""
    data = payload.tobytes()
    for first in range(0, rows, SHARD_ROWS):
        digest = hashlib.sha256()
        with (folder / f"plain_{first}").open("wb") as stream:
            for _ in range(first, min(first + SHARD_ROWS, rows), CHUNK_ROWS):
                google_crc32c.value(data)
                digest.update(data)
                stream.write(data)
            os.fsync(stream.fileno())


class Sleeper(torch.nn.Module):
    """A model whose forward pass sleeps as long as a device would compute."""

    def __init__(self, layers: int, d_model: int, tokens_per_second: float) -> None:
        from transformers import LlamaConfig

        super().__init__()
        self.config = LlamaConfig(hidden_size=d_model, num_hidden_layers=layers)
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(layers))
        self.rate, self.busy, self.end = tokens_per_second, 0.0, 0.0
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:  # noqa: ARG002
        """Give every layer an empty output after the whole time."""
        seconds = input_ids.numel() / self.rate
        time.sleep(seconds)
        self.busy, self.end = self.busy + seconds, time.perf_counter()
        output = torch.empty((*input_ids.shape, 0))
        for layer in self.layers:
            layer(output)


class ReadyStage:
    """Gives blocks that are ready, as those that a device encodes and copies by itself."""

    ahead = staging.DeviceStage.ahead

    def __init__(self, block: Block) -> None:
        self._block, self._rows = block, 0

    def take(self, rows: torch.Tensor, *, exact: bool) -> list[staging.Ready]:  # noqa: ARG002
        """See `staging.Stage`."""
        self._rows += len(rows)
        chunks, self._rows = divmod(self._rows, CHUNK_ROWS)
        return [lambda: self._block] * chunks

    def rest(self) -> list[staging.Ready]:
        """See `staging.Stage`."""
        return []


def busy_shares(
    folder: Path, block: Block, storage: Storage, given: argparse.Namespace
) -> tuple[float, float]:
    """Share of the time of an extraction in which the simulated device computes.

    Returns:
        Up to the end of the last forward pass, and up to the end of the job.
    """
    context, batch = 512, 16
    model = Sleeper(given.layers, given.d_model, given.tokens_per_second)
    tokens = np.zeros((given.tokens // context, context), dtype=np.int32)
    names = [folder / f"busy_{storage}_{layer}" for layer in range(given.layers)]
    targets = [extraction.StoreFiles(n.with_suffix(".zarr"), n.with_suffix(".json")) for n in names]
    wanted = extraction.Extraction("resid_post", batch, storage=storage, code="code")
    origin = extraction.ModelIdentity("benchmark", "-")
    start = time.perf_counter()
    with mock.patch.object(staging, "stage", side_effect=lambda *_: ReadyStage(block)):
        extraction.extract_contexts(model, origin, tokens, range(given.layers), targets, wanted)
    return model.busy / (model.end - start), model.busy / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * SHARD_ROWS)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8 * SHARD_ROWS)
    parser.add_argument("--tokens-per-second", type=float, default=60_000)
    parser.add_argument("--memory", action="store_true", help=f"write to {MEMORY}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in extraction
    values = chunk_of(given.d_model)
    blocks = {storage: encoded_block(values, storage) for storage in STORAGES}
    payloads: dict[Storage, npt.NDArray[Any]] = {
        "fp16": values,
        "int8s": int8s.encode(values).levels,
    }
    with tempfile.TemporaryDirectory(dir=MEMORY if given.memory else None) as name:
        folder = Path(name)
        rows = []
        for storage in STORAGES:
            calls: list[Callable[[], None]] = [
                partial(plain, folder, payloads[storage], given.rows),
                partial(store, folder, blocks[storage], storage, given.rows),
            ]
            costs: list[list[Cost]] = [[], []]
            for _ in range(given.repeats):
                for made, call in zip(costs, calls, strict=True):
                    made.append(cost(call))
            base, ours = map(least, costs)
            rows.append(
                (
                    storage,
                    given.rows / ours.cpu,
                    given.rows / ours.wall,
                    base.cpu / ours.cpu,
                    base.wall / ours.wall,
                )
            )
        show(
            f"Writing ready blocks, d_model {given.d_model}, against a plain write with checksums",
            ("storage", "rows/s CPU", "rows/s wall", "plain/ours CPU", "plain/ours wall"),
            rows,
            "stores",
        )
        encoding = least([cost(partial(int8s.encode, values)) for _ in range(5 * given.repeats)])
        show(
            "The int8s encoder on the CPU, one thread",
            ("rows/s",),
            [(CHUNK_ROWS / encoding.cpu,)],
            "encoder",
        )
        shares = [
            (storage, *busy_shares(folder, blocks[storage], storage, given)) for storage in STORAGES
        ]
        show(
            f"Extraction beside a device of {given.tokens_per_second:,.0f} tokens/s, "
            f"{given.layers} layers, {given.tokens:,} tokens",
            ("storage", "busy up to the last pass", "busy in the whole job"),
            shares,
            "device",
        )


if __name__ == "__main__":
    main()
