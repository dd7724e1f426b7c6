"""Cost of extraction relative to the forward pass: `python benchmarks/extraction.py --help`.

The reference is the bare forward pass up to the highest analysed layer, at the same batch and
context length. It alternates with the extraction in one process. Ratios are of CPU seconds; wall
seconds are printed too.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Cost, cost, least, show

from ghosttrack.activations import extraction, hooks
from ghosttrack.activations.extraction import Extraction, ModelIdentity, StoreFiles
from ghosttrack.inputs import models, sites
from ghosttrack.inputs.dense_layers import use_onednn
from ghosttrack.runtime.allocator import keep_freed_memory


def load(name: str) -> Any:
    """Load a model's directory, or `gpt2-small`: random weights of that shape."""
    if name != "gpt2-small":
        return models.load_model(Path(name), "cpu")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)
    use_onednn(model)  # as load_model does
    return model


def bare(model: Any, tokens: Any, batch: int, highest: int) -> None:
    """Forward passes that end after block `highest`."""
    modules = sites.site_modules(model, [highest], "resid_post")
    with torch.inference_mode(), hooks.captured(modules, stop=True):
        for start in range(0, len(tokens), batch):
            hooks.run_to_highest(
                model, torch.from_numpy(tokens[start : start + batch].astype(np.int64))
            )


def full(model: Any, tokens: Any, batch: int) -> None:
    """Complete forward passes with all hidden states, as when one layer is read at a time."""
    with torch.inference_mode():
        for start in range(0, len(tokens), batch):
            ids = torch.from_numpy(tokens[start : start + batch].astype(np.int64))
            model(input_ids=ids, output_hidden_states=True, use_cache=False)


def extract(
    model: Any, tokens: Any, layers: list[int], batch: int, storage: Any, folder: Path
) -> None:
    """Write one store per layer."""
    stores = [StoreFiles(folder / f"{layer}.zarr", folder / f"{layer}.json") for layer in layers]
    extraction.extract_contexts(
        model,
        ModelIdentity("benchmark", "-"),
        tokens,
        layers,
        stores,
        Extraction("resid_post", batch, storage=storage),
    )


def extraction_cost(
    model: Any, tokens: Any, layers: list[int], batch: int, storage: Any = "fp16"
) -> Cost:
    """Cost of `extract`, without the deletion of its files."""
    with tempfile.TemporaryDirectory() as folder:
        return cost(lambda: extract(model, tokens, layers, batch, storage, Path(folder)))


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", help="directory of a downloaded model (results/NAME/model), or gpt2-small"
    )
    parser.add_argument(
        "--layers", default="all", help="analysed layers, such as 10,12,14; default: all"
    )
    parser.add_argument("--tokens", type=int, default=51_200)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="contexts per forward pass")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--storage", nargs="+", default=["fp16", "int8s"], choices=["fp16", "int8s"]
    )
    parser.add_argument(
        "--waves",
        action="store_true",
        help="also extract with disk budgets of 1, 2 and 3 layers, and one layer at a time",
    )
    parser.add_argument("--wave-tokens", type=int, default=8_192)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the jobs, for both contestants
    model = load(given.model)
    count = len(models.blocks(model))
    layers = (
        list(range(count))
        if given.layers == "all"
        else [int(layer) for layer in given.layers.split(",")]
    )
    vocabulary = model.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).integers(
        0, vocabulary, (given.tokens // given.context, given.context), np.int32
    )

    extraction_cost(
        model, tokens[: given.batch], layers, given.batch
    )  # warm-up: imports and memory allocation
    kinds: dict[str, Callable[[], Cost]] = {
        "bare": lambda: cost(lambda: bare(model, tokens, given.batch, layers[-1]))
    }
    for storage in given.storage:
        kinds[storage] = partial(extraction_cost, model, tokens, layers, given.batch, storage)
    costs_of: dict[str, list[Cost]] = {name: [] for name in kinds}
    for _ in range(given.repeats):
        for name, call in kinds.items():
            costs_of[name].append(call())
    best = {name: least(costs) for name, costs in costs_of.items()}
    show(
        f"{given.model}: {tokens.size:,} tokens, {len(layers)} layers up to {layers[-1]}, {given.batch} x {given.context}",
        ["", "CPU s", "wall s", "tokens/CPU s", "of bare"],
        [
            [name, each.cpu, each.wall, round(tokens.size / each.cpu), best["bare"].cpu / each.cpu]
            for name, each in best.items()
        ],
    )
    if given.waves:
        few = tokens[: max(1, given.wave_tokens // given.context)]
        whole = extraction_cost(model, few, layers, given.batch)
        rows = [["all at once", whole.cpu, 1.0, 1.0]]
        for size in (3, 2, 1):
            waves = [layers[start : start + size] for start in range(0, len(layers), size)]
            spent = sum(extraction_cost(model, few, wave, given.batch).cpu for wave in waves)
            planned = sum(wave[-1] + 1 for wave in waves) / (layers[-1] + 1)
            rows.append([f"{size} at a time, stopping early", spent, spent / whole.cpu, planned])
        one = cost(lambda: full(model, few, given.batch))
        spent = one.cpu * len(layers)
        rows.append(
            [
                "1 at a time, whole model (one measured)",
                spent,
                spent / whole.cpu,
                float(len(layers)),
            ]
        )
        show(
            f"the same {few.size:,} tokens under a disk budget",
            ["layers", "CPU s", "of all at once", "planned"],
            rows,
            "waves",
        )


if __name__ == "__main__":
    main()
