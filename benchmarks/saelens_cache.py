"""Storing and reading one layer's activations: ours against the cached activations of SAELens.

    PYTHONPATH=workflow_scripts:. python benchmarks/saelens_cache.py RUN --peers benchmarks/.venv

Both read the same tokens with the same model, at the same batch, on one thread, and end the forward
pass after the layer. SAELens caches them as an Arrow data set in fp16. Both then hand out shuffled
batches of float32 rows. Storing and reading alternate; times are the least CPU seconds.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from extraction import bare, extract
from measure import Cost, cost, least, show

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.inputs import models
from ghosttrack.runtime.allocator import keep_freed_memory

BARE, PEER = "bare forward pass", "SAELens, fp16"
STORAGES = ("fp16", "int8s")
# Rows of a training batch, and of the buffer in which SAELens mixes rows.
BATCH_ROWS = 4096
MIXED_ROWS = 32_768


class Peer:
    """The cache of SAELens for one module of a model in a folder."""

    def __init__(self, model: Path, module: str, tokens: Any, batch: int) -> None:
        """`tokens`: (contexts, tokens) token ids; `batch`: contexts per forward pass."""
        runner: Any = importlib.import_module("sae_lens.cache_activations_runner")
        self._stores: Any = importlib.import_module("sae_lens.training.activations_store")
        config: Any = importlib.import_module("sae_lens.config")
        datasets: Any = importlib.import_module("datasets")
        dataset = datasets.Dataset.from_dict({"input_ids": tokens.tolist()})
        contexts, length = tokens.shape
        width = json.loads((model / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        self._settings = config.CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=str(model),
            model_class_name="AutoModelForCausalLM",
            # Without it, the model would run in the checkpoint's precision.
            model_from_pretrained_kwargs={"dtype": torch.float32},
            model_batch_size=batch,
            hook_name=module,
            d_in=width,
            training_tokens=contexts * length,
            context_size=length,
            dtype="float16",
            device="cpu",
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            # One shard holds all tokens.
            buffer_size_gb=contexts * length * width * 2 / 1e9 * 1.0001,
            new_cached_activations_path="",
        )
        self._runner = runner.CacheActivationsRunner(self._settings, dataset)

    def store(self, folder: Path) -> None:
        """Write the cache to a new folder."""
        self._settings.new_cached_activations_path = str(folder)
        self._runner.run()

    def read(self, folder: Path, batches: int) -> None:
        """Draw batches of rows in mixed order."""
        length = self._settings.context_size
        store = self._stores.ActivationsStore(
            model=self._runner.model,
            dataset=None,
            streaming=False,
            hook_name=self._settings.hook_name,
            hook_head_index=None,
            context_size=length,
            d_in=self._settings.d_in,
            n_batches_in_buffer=MIXED_ROWS // length,
            total_training_tokens=self._settings.training_tokens,
            store_batch_size_prompts=self._settings.model_batch_size,
            train_batch_size_tokens=BATCH_ROWS,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float16",
            cached_activations_path=str(folder),
        )
        for _ in range(batches):
            store.next_batch().float()


def read(folder: Path, layer: int, batches: int) -> None:
    """Draw shuffled batches of rows from a store that is larger than the window."""
    store = ActivationStore.open([folder / f"{layer}.zarr"], [folder / f"{layer}.json"])
    sampler = ChunkSampler(store, BATCH_ROWS, seed=0, resident=False)
    for step in range(batches):
        sampler.batch_at(step)


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Measured(NamedTuple):
    """Costs of every repeat by contestant, and the bytes of its files."""

    stored: dict[str, list[Cost]]
    read: dict[str, list[Cost]]
    bytes: dict[str, int]


def measured(model: Any, tokens: Any, layer: int, batch: int, peer: Peer, repeats: int) -> Measured:
    """Store and read with every contestant in turn."""
    found = Measured(defaultdict(list), defaultdict(list), {})
    batches = tokens.size // BATCH_ROWS
    bare(model, tokens[:batch], batch, layer)  # imports and memory allocation
    for _ in range(repeats):
        found.stored[BARE].append(cost(partial(bare, model, tokens, batch, layer)))
        for storage in STORAGES:
            with tempfile.TemporaryDirectory() as name:
                folder, contestant = Path(name), f"ours, {storage}"
                write = partial(extract, model, tokens, [layer], batch, storage, folder)
                found.stored[contestant].append(cost(write))
                found.read[contestant].append(cost(partial(read, folder, layer, batches)))
                found.bytes[contestant] = size(folder)
        # Its progress bars go to stderr.
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
            cache = Path(name) / "cache"
            found.stored[PEER].append(cost(partial(peer.store, cache)))
            found.read[PEER].append(cost(partial(peer.read, cache, batches)))
            found.bytes[PEER] = size(cache)
    return found


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, whose model is read")
    parser.add_argument("--layer", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="contexts per forward pass")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="virtual environment with the other projects"
    )
    given = parser.parse_args()
    if given.peers:
        sys.path += map(str, sorted(given.peers.glob("lib/python*/site-packages")))
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")  # warnings of SAELens
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the jobs, for both
    model = models.load_model(given.run / "model", "cpu")
    vocabulary = model.config.get_text_config().vocab_size
    shape = (given.tokens // given.context, given.context)
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape, np.int32)
    block = models.blocks(model)[given.layer]
    module = next(name for name, each in model.named_modules() if each is block)
    peer = Peer(given.run / "model", module, tokens, given.batch)
    found = measured(model, tokens, given.layer, given.batch, peer, given.repeats)

    reference = least(found.stored[BARE]).cpu
    show(
        f"{given.run}, layer {given.layer}: {tokens.size:,} tokens, {given.batch} x {given.context}",
        ["", "CPU s", "wall s", "tokens/CPU s", "of bare", "MB"],
        [
            [
                name,
                least(costs).cpu,
                least(costs).wall,
                round(tokens.size / least(costs).cpu),
                reference / least(costs).cpu,
                found.bytes[name] / 1e6 if name in found.bytes else None,
            ]
            for name, costs in found.stored.items()
        ],
    )
    batches = tokens.size // BATCH_ROWS
    theirs = least(found.read[PEER]).cpu
    show(
        f"{batches} shuffled batches of {BATCH_ROWS:,} float32 rows from these files",
        ["", "CPU s", "wall s", "rows/CPU s", "x SAELens"],
        [
            [
                name,
                least(costs).cpu,
                least(costs).wall,
                round(batches * BATCH_ROWS / least(costs).cpu),
                theirs / least(costs).cpu,
            ]
            for name, costs in found.read.items()
        ],
        "reading",
    )


if __name__ == "__main__":
    main()
