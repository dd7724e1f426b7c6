"""Train and compare autoencoders with different k and seeds on the same batches of one layer."""

import shutil
from itertools import product
from pathlib import Path

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler, fit
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory, use_huge_pages
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.sweep import SweepArm, sweep
from ghosttrack.sae.sweep_tables import tabulate
from ghosttrack.sae.training import training_device
from ghosttrack.settings import SaeSettings, SweepSettings, code_digest


def main(
    *,
    stores: list[Path],
    manifests: list[Path],
    model_source: Path,
    heldout: Path,
    heldout_manifest: Path,
    saes: Path,
    arms: Path,
    stability: Path,
    sae: SaeSettings,
    sweep_settings: SweepSettings,
    seed: int,
    layer: int,
    threads: int,
    micro_batch: int,
    state: Path,
    model: str,
    resident_mb: int = 1536,  # as in train_sae
) -> None:
    """Train, resuming from `state`; write a SAELens folder per arm and the tables; remove `state`.

    The tables have the arms' quality on held-out text, and the features that two arms share.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_huge_pages()
    keys = [
        SweepArm(k, arm_seed) for k, arm_seed in product(sweep_settings.k, sweep_settings.seeds)
    ]
    with files.lock(state):
        expected = {
            "layer": layer,
            "weights_sha256": files.read_object(model_source)["weights_sha256"],
        }
        store = ActivationStore.open(stores, manifests, expected)
        text = ActivationStore.open([heldout], [heldout_manifest], expected)
        device = training_device()
        resident = fit([store], resident_mb, device)
        trained = sweep(
            store,
            ChunkSampler(store, sae.batch, seed, resident, device=device, epochs=sae.epochs),
            sae,
            keys,
            state=state,
            micro_batch=micro_batch,
            order=seed,
            code=code_digest.source_digest("sweep_sae"),
            label=f"sweep of layer {layer}",
        )
        result = tabulate(trained, text, layer, seed)
        with files.atomic_directory(saes) as partial:
            for arm, arm_sae in trained.items():
                folder = partial / arm.name
                sae_model.save(
                    arm_sae,
                    folder / sae_model.WEIGHTS_NAME,
                    folder / sae_model.CFG_NAME,
                    hook_name=f"blocks.{layer}.hook_{store.site}",
                    model_name=model,
                )
        for path, table in zip((arms, stability), result, strict=True):
            with files.atomic_write(path) as stream:
                tables.write_csv(table, stream)
        shutil.rmtree(state)


if __name__ == "__main__":
    job.run(main, globals())
