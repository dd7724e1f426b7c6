"""Activation stores in the real workflow: within the disk budget, repaired by one job, a failed layer repeated alone."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghosttrack import files, plan
from ghosttrack.configuration import load
from ghosttrack.settings import Settings
from tests.conftest import ROOT, copy_house, job_counts, snakemake
from tests.e2e.test_tiny_run import MODEL, RUN, contents, environment, finished, house_to_change, planned

pytestmark = pytest.mark.e2e
__all__ = ["finished", "house_to_change"]

# Six layers of two stores each, so that groups of one, two and three layers are different plans.
SIZES = {
    "dimensions": {"n_layers": 6, "d_model": 64},
    "corpus": {"tokens": 32_768, "heldout_tokens": 4096},
    "activations": {"rows_per_job": 16_384},
    "sae": {"epochs": 1},
}


def limited(group: int) -> Settings:
    """The settings with the smallest budget that holds `group` layers."""
    (free,) = load({"model": MODEL, **SIZES}, ROOT / "config").values()
    budget = (group * plan.layer_bytes(free) + plan.heldout_bytes(free) + 1000) / 1e9
    return free.model_copy(update={"activations": free.activations.model_copy(update={"disk_budget_gb": budget})})


def arguments(settings: Settings) -> list[str]:
    """As on the command line."""
    asked = {**SIZES, "activations": {**SIZES["activations"], "disk_budget_gb": settings.activations.disk_budget_gb}}
    return [f"{key}={values}".replace("'", "") for key, values in asked.items()]


def disk_used(house: Path) -> int:
    """Bytes of training and held-out activations, as the file system counts them."""
    total = 0
    for name in ("activations", "heldout"):
        for folder, _, names in os.walk(house / "results" / MODEL / name):
            for each in names:
                try:
                    total += (Path(folder) / each).stat().st_blocks * 512
                except FileNotFoundError:  # just deleted or renamed
                    continue
    return total


def run_and_watch(house: Path, *config: str, target: str = "saes") -> tuple[int, str, int]:
    """Exit code, screen, and the most disk that was seen in use."""
    with (house / "screen").open("w+") as screen:
        command = [sys.executable, "-m", "ghosttrack.launch", *RUN, *config, "--", target]
        peak = 0
        with subprocess.Popen(command, cwd=house, env=environment(house), stdout=screen, stderr=screen) as run:
            while run.poll() is None:
                peak = max(peak, disk_used(house))
                time.sleep(0.05)
        screen.seek(0)
        return run.returncode, screen.read(), peak


def jobs_run(screen: str) -> list[str]:
    return re.findall(r"\(Rule: (\w+)", screen)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_activations_on_disk_stay_within_the_budget_also_when_all_is_trained_again(group: int, tmp_path: Path) -> None:
    settings = limited(group)
    assert [len(wave) for wave in plan.waves(settings)] == [group] * (6 // group)
    budget = (settings.activations.disk_budget_gb or 0) * 1e9
    house = copy_house(tmp_path / "house")
    code, screen, peak = run_and_watch(house, *arguments(settings))
    assert code == 0, screen[-4000:]
    assert 0.8 * budget < peak <= budget
    assert f"budget {settings.activations.disk_budget_gb:g} GB" in screen
    assert jobs_run(screen).count("train_sae") == 6
    assert not list((house / "results" / MODEL / "activations").rglob("*.zarr"))
    assert not list((house / "results" / MODEL).rglob("*.partial"))
    if group == 2:
        # Every SAE is there, and out of date: the waves must wait for each other none the less.
        stale = [each.replace("epochs: 1", "epochs: 1, k: 8") for each in arguments(settings)]
        code, screen, peak = run_and_watch(house, *stale)
        assert code == 0, screen[-4000:]
        assert jobs_run(screen).count("train_sae") == 6
        assert 0.8 * budget < peak <= budget


@contextmanager
def training_blocked(house: Path, layer: int) -> Iterator[None]:
    """As if another job were training this layer."""
    with files.lock(house / f"results/{MODEL}/state/train_sae/layer_{layer:02d}"):
        yield


def test_a_layer_that_fails_inside_a_wave_is_repeated_alone_and_the_waves_go_on(tmp_path: Path) -> None:
    house = copy_house(tmp_path / "house")
    given = arguments(limited(2))
    with training_blocked(house, 2):
        code, screen, _ = run_and_watch(house, *given)
    assert code == 1
    assert "is in use by process" in screen
    assert sorted(path.name for path in (house / f"results/{MODEL}/saes").glob("*/sae_weights.safetensors")) != []
    trained = {path.parent.name for path in (house / f"results/{MODEL}/saes").glob("*/sae_weights.safetensors")}
    assert trained == {"layer_00", "layer_01", "layer_03"}
    kept = {path.parent.name for path in (house / f"results/{MODEL}/activations").glob("*/*.zarr")}
    assert kept == {"layer_02"}

    code, screen, _ = run_and_watch(house, *given)
    assert code == 0, screen[-4000:]
    again = jobs_run(screen)
    assert again.count("train_sae") == 3
    assert [name for name in again if name.startswith("extract_activations")] == [
        "extract_activations_tiny_gpt2_wave_02"
    ] * 2


def test_a_damaged_store_is_named_and_repaired_by_its_job_alone(house_to_change: Path) -> None:
    before = contents(house_to_change)
    stem = f"results/{MODEL}/activations/layer_01/shard_0001"
    shard = house_to_change / f"{stem}.zarr/resid_post/c/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    result = snakemake(house_to_change, *RUN, "--", "verify_activations")
    assert result.returncode == 1
    assert f"{stem}.zarr/resid_post/c/0/0: its SHA-256 is not the one in the manifest" in result.stderr
    assert f"delete {stem}.zarr and {stem}.json, then: snakemake" in result.stderr

    shutil.rmtree(house_to_change / f"{stem}.zarr")
    (house_to_change / f"{stem}.json").unlink()
    result = snakemake(house_to_change, *RUN, "--", f"{stem}.json")
    assert result.returncode == 0, result.stderr[-4000:]
    assert job_counts(result.stdout + result.stderr) == {"extract_activations_tiny_gpt2_wave_00": 1}
    assert contents(house_to_change) == before
    assert planned(house_to_change) == {}  # nothing is trained again
    assert snakemake(house_to_change, *RUN, "--", "verify_activations").returncode == 0
