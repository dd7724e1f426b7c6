"""Extract the training activations of one corpus shard, for all layers of a wave in one pass."""

from pathlib import Path

import torch

from ghosttrack.activations import extraction, limits, run_model
from ghosttrack.activations.store import Storage
from ghosttrack.inputs import corpus
from ghosttrack.inputs.sites import Site
from ghosttrack.planning import plan
from ghosttrack.runtime import job
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.runtime.run_paths import layer_of
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings


def main(
    *,
    train: Path,
    train_manifest: Path,
    weights: Path,
    check: Path,
    stores: list[Path],
    manifests: list[Path],
    site: Site,
    storage: Storage,
    contexts_per_shard: int,
    shard: int,
    batch: int,
    threads: int,
    code: str,
    room_kb: int = 0,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write one store per layer for the contexts from shard x contexts_per_shard on."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    tokens = corpus.read_tokens(train, train_manifest).tokens
    model, identity = run_model.load(weights.parent, check, inference, gpu)
    if room_kb:
        rows = min(contexts_per_shard, len(tokens) - shard * contexts_per_shard) * tokens.shape[1]
        planned = plan.store_bytes(
            rows, model.config.get_text_config().hidden_size, storage, tokens.shape[1]
        )
        plan.require_room(stores[0].parent.parent, stores, planned * len(stores), 1000 * room_kb)
    layers = [layer_of(store) for store in stores]
    extraction.extract_contexts(
        model,
        identity,
        tokens,
        layers,
        [extraction.StoreFiles(*pair) for pair in zip(stores, manifests, strict=True)],
        extraction.Extraction(
            site,
            batch if limits.read(check).batched else 1,
            shard * contexts_per_shard,
            contexts_per_shard,
            storage,
            code,
            limits.scales(check, layers),
        ),
    )


if __name__ == "__main__":
    job.run(main, globals())
