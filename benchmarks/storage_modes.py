"""SAEs trained on fp16 and on int8s activations: `python benchmarks/storage_modes.py --help`."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import show

from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.planning.configuration import load
from ghosttrack.sae import quality
from ghosttrack.sae.training import Dictionary, TrainingLayer, train
from ghosttrack.settings import Settings


def stores(home: Path, layer: int) -> tuple[ActivationStore, ActivationStore]:
    """Training and held-out activations of one layer of a finished run."""
    folder = home / "activations" / f"layer_{layer:02d}"
    shards = sorted(folder.glob("*.zarr"))
    heldout = home / "heldout" / f"layer_{layer:02d}"
    return (
        ActivationStore.open(shards, [shard.with_suffix(".json") for shard in shards]),
        ActivationStore.open([heldout.with_suffix(".zarr")], [heldout.with_suffix(".json")]),
    )


def stored_as(store: ActivationStore, storage: Any, folder: Path) -> ActivationStore:
    """A copy of an fp16 store in another storage mode."""
    about = {
        name: store.attributes[name]
        for name in Header._fields
        if name != "storage" and name in store.attributes
    }
    paths = folder / f"{storage}.zarr", folder / f"{storage}.json"
    with StoreWriter(
        *paths, Header(**about, storage=storage), rows=store.rows, d_model=store.d_model
    ) as writer:
        for start in range(0, store.rows, CHUNK_ROWS):
            rows = store.read(start, min(start + CHUNK_ROWS, store.rows)).astype("float32")
            writer.append(to_block(rows, exact=True))
    return ActivationStore.open([paths[0]], [paths[1]])


def trained(store: ActivationStore, settings: Settings, folder: Path) -> Any:
    """Train an SAE with the settings and seed of the model's file."""
    sampler = ChunkSampler(store, settings.sae.batch, settings.seed)
    folder.mkdir()
    dictionary = Dictionary(settings.sae, settings.seed, folder)
    ((trained,),) = train([TrainingLayer(store, sampler)], [dictionary], micro_batch=4096)
    return trained.sae


def main() -> None:
    """Train, measure on the same held-out rows, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument(
        "results",
        type=Path,
        help="folder of a finished run whose activations were kept, results/NAME",
    )
    parser.add_argument(
        "--layers", default="", help="such as 10,14; default: all layers of the run"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    (settings,) = load({"model": given.results.name}, Path(__file__).parents[1] / "config").values()
    layers = [int(layer) for layer in given.layers.split(",")] if given.layers else settings.layers
    rows = []
    for layer in layers:
        store, heldout = stores(given.results, layer)
        if store.storage != "fp16":
            parser.error(
                f"{given.results} stores its activations as {store.storage}, expected fp16: run it again with activations.storage: fp16"
            )
        quality_of: dict[str, quality.Quality] = {}
        with tempfile.TemporaryDirectory() as name:
            copy = stored_as(store, "int8s", Path(name))
            for storage, each in (("fp16", store), ("int8s", copy)):
                sae = trained(each, settings, Path(name) / f"state_{storage}")
                quality_of[storage] = quality.measure(sae, heldout, settings.sae.k)
            error = json.dumps(copy.storage_error)
        half, byte = quality_of["fp16"], quality_of["int8s"]
        rows.append(
            [
                layer,
                half.reconstruction.fvu,
                byte.reconstruction.fvu,
                f"{byte.reconstruction.fvu / half.reconstruction.fvu - 1:+.2%}",
                half.reconstruction.fvu_token_median,
                byte.reconstruction.fvu_token_median,
                half.sparsity.dead_fraction,
                byte.sparsity.dead_fraction,
                error,
            ]
        )
        show(
            f"{given.results.name}: held-out quality of SAEs trained on fp16 and on int8s",
            [
                "layer",
                "FVU fp16",
                "FVU int8s",
                "change",
                "median fp16",
                "int8s",
                "dead fp16",
                "int8s",
                "storage error",
            ],
            rows,
        )


if __name__ == "__main__":
    main()
