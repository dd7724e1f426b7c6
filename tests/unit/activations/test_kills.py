"""An extraction that is killed again and again writes the same bytes as an uninterrupted one."""

import multiprocessing
import os
import random
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch

from ghosttrack.activations import extraction, layout, writer

KILLS, LAYERS, CONTEXT = 20, [0, 2], 32
# Shard files of one chunk instead of 16 need a sixteenth of the rows.
CONTEXTS = 16 * layout.CHUNK_ROWS // CONTEXT


def extract(folder: Path) -> None:
    """Runs in a separate process, which the test kills."""
    torch.set_num_threads(1)
    writer.CHUNKS_PER_SHARD, writer.SHARD_ROWS = 1, layout.CHUNK_ROWS  # type: ignore[attr-defined]
    model = small_models.make_model("gpt2")
    tokens = np.random.default_rng(0).integers(1, 400, (CONTEXTS, CONTEXT), dtype=np.int32)
    extraction.extract_contexts(
        model,
        extraction.ModelIdentity("tiny", "weights"),
        tokens,
        LAYERS,
        [
            extraction.StoreFiles(folder / f"layer_{layer}.zarr", folder / f"layer_{layer}.json")
            for layer in LAYERS
        ],
        extraction.Extraction("resid_post", batch=24),
    )


def finished_files(folder: Path) -> int:
    """Number of first shard files whose records exist for every layer."""

    def recorded(number: int) -> bool:
        return all(
            (folder / f"layer_{layer}.zarr.partial/progress/{number:04d}.npz").exists()
            for layer in LAYERS
        )

    return next(number for number in count() if not recorded(number))


def naming(folder: Path) -> bool:
    """Whether every layer's store was complete except its name and manifest.

    A finished store of an earlier job stays until the new store replaces it.
    """

    def newest(layer: int) -> Path:
        partial = folder / f"layer_{layer}.zarr.partial"
        return partial if partial.exists() else folder / f"layer_{layer}.zarr"

    return all((newest(layer) / "zarr.json").exists() for layer in LAYERS)


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_twenty_kills_at_random_moments_change_no_byte_and_lose_at_most_the_current_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Forked from a process that has imported everything but computed nothing: forking one with
    # running threads can hang.
    processes = multiprocessing.get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes.set_forkserver_preload(
        [
            "ghosttrack.activations.extraction",
            "small_models",
            "transformers.models.gpt2.modeling_gpt2",
        ]
    )

    def run(folder: Path, share: float | None = None) -> float:
        """Extract into `folder`; kill it after `share` of the time of an uninterrupted job.

        Returns the writing time in seconds; 0 if it was killed.
        """
        process = processes.Process(target=extract, args=(folder,))
        process.start()
        while process.is_alive() and not (folder / f"layer_{LAYERS[-1]}.zarr.partial").exists():
            time.sleep(0.002)
        began = time.monotonic()
        process.join(share and share * whole_takes)
        if process.is_alive():
            process.kill()
            process.join()
            return 0.0
        assert process.exitcode == 0
        return time.monotonic() - began

    whole_takes = 0.0
    whole_takes = run(tmp_path / "whole")
    moments, kills, rounds, kept, most = random.Random(0), 0, 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / f"round_{rounds}"
        if run(folder, moments.uniform(0, 0.8)):
            assert content_of(folder) == content_of(tmp_path / "whole")
            rounds, kept = rounds + 1, 0
        else:
            kills += 1
            # A kill while finished stores are renamed, in milliseconds, costs the whole job.
            if not naming(folder):
                assert (
                    finished_files(folder) >= kept
                )  # a job never loses files that an earlier one completed
            kept = finished_files(folder)
            most = max(most, kept)
    assert most > 1  # some job was resumed
    run(folder, None)
    assert content_of(folder) == content_of(tmp_path / "whole")
    assert not list(folder.glob("*.partial"))
