"""Activation stores in the real workflow: within the disk budget, repaired by one job, a failed layer repeated alone."""

import re
import shutil
from pathlib import Path

import pytest

from ghosttrack.planning import plan
from tests.conftest import copy_house, job_counts, snakemake
from tests.e2e.tiny_runs import MODEL, RUN, contents, planned
from tests.e2e.waves import arguments, limited, run_and_watch

pytestmark = pytest.mark.e2e


def jobs_run(screen: str) -> list[str]:
    return re.findall(r"\(Rule: (\w+)", screen)


def assert_kept_within(group: int, house: Path, screen: str, peak: int) -> None:
    settings = limited(group)
    assert [len(wave) for wave in plan.waves(settings)] == [group] * (6 // group)
    budget = (settings.activations.disk_budget_gb or 0) * 1e9
    assert 0.8 * budget < peak <= budget
    assert f"budget {settings.activations.disk_budget_gb:g} GB" in screen
    assert jobs_run(screen).count("train_sae") == 6
    assert not list((house / "results" / MODEL / "activations").rglob("*.zarr"))
    assert not list((house / "results" / MODEL).rglob("*.partial"))


def test_activations_of_one_layer_at_once_stay_within_their_budget(tmp_path: Path) -> None:
    house = copy_house(tmp_path / "house")
    code, screen, peak = run_and_watch(house, *arguments(limited(1)))
    assert code == 0, screen[-4000:]
    assert_kept_within(1, house, screen, peak)


def test_three_layers_at_once_stay_within_their_budget_too(
    three_at_once: tuple[Path, str, int],
) -> None:
    assert_kept_within(3, *three_at_once)


@pytest.mark.parametrize("group", [1, 6, None])
def test_another_budget_after_the_saes_are_trained_reruns_nothing(
    group: int | None, three_at_once: tuple[Path, str, int]
) -> None:
    other = limited(group or 1)
    if group is None:
        other = other.model_copy(
            update={"activations": other.activations.model_copy(update={"disk_budget_gb": None})}
        )
    result = snakemake(three_at_once[0], *RUN, *arguments(other), "-n", "--", "saes")
    assert "Nothing to be done" in result.stdout + result.stderr, (result.stdout + result.stderr)[
        -4000:
    ]


def test_what_a_repair_under_a_budget_leaves_is_named_and_may_be_deleted(
    three_at_once: tuple[Path, str, int], tmp_path: Path
) -> None:
    house = Path(shutil.copytree(three_at_once[0], tmp_path / "house", symlinks=True))
    given = (*RUN, *arguments(limited(3)))
    target = f"results/{MODEL}/activations/layer_01/shard_0001.json"
    result = snakemake(house, *given, "--", target)
    assert result.returncode == 0, result.stderr[-4000:]
    assert job_counts(result.stdout + result.stderr) == {"extract_activations_tiny_gpt2_wave_00": 1}
    result = snakemake(house, *given, "--", "verify_activations")
    assert result.returncode == 0, result.stderr[-4000:]
    named = re.findall(r"whose SAE is trained.* rm -r (\S+)", result.stderr)
    assert sorted(set(named)) == [
        f"results/{MODEL}/activations/layer_{layer:02d}" for layer in (0, 1, 2)
    ]
    for folder in set(named):
        shutil.rmtree(house / folder)
    result = snakemake(house, *given, "-n", "--", "saes")
    assert "Nothing to be done" in result.stdout + result.stderr, (result.stdout + result.stderr)[
        -4000:
    ]


def test_two_layers_at_once_also_when_one_fails_and_when_all_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = copy_house(tmp_path / "house")
    given = arguments(limited(2))
    monkeypatch.setenv("GHOSTTRACK_FAULTS", '[{"job": "train_sae/layer_02", "kind": "error"}]')
    code, screen, _ = run_and_watch(house, *given)
    monkeypatch.delenv("GHOSTTRACK_FAULTS")
    # The failed layer is repeated alone, and the waves go on.
    assert code == 1
    assert "a fault of GHOSTTRACK_FAULTS" in screen
    assert (
        sorted(
            path.name
            for path in (house / f"results/{MODEL}/saes").glob("*/sae_weights.safetensors")
        )
        != []
    )
    trained = {
        path.parent.name
        for path in (house / f"results/{MODEL}/saes").glob("*/sae_weights.safetensors")
    }
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

    # Every SAE is there, and out of date: the waves must wait for each other none the less.
    stale = [each.replace("epochs: 1", "epochs: 1, k: 8") for each in given]
    code, screen, peak = run_and_watch(house, *stale)
    assert code == 0, screen[-4000:]
    assert_kept_within(2, house, screen, peak)


def flip_a_bit(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)


def repaired(house: Path, stem: str, *config: str) -> bool:
    """Delete one store and its manifest and make them again as the error says; whether one job alone ran."""
    shutil.rmtree(house / f"{stem}.zarr")
    (house / f"{stem}.json").unlink()
    result = snakemake(house, *RUN, *config, "--", f"{stem}.json")
    assert result.returncode == 0, result.stderr[-4000:]
    return job_counts(result.stdout + result.stderr) == {"extract_activations_tiny_gpt2_wave_00": 1}


def test_a_damaged_store_is_named_and_repaired_by_its_job_alone(house_to_change: Path) -> None:
    before = contents(house_to_change)
    stem = f"results/{MODEL}/activations/layer_01/shard_0001"
    flip_a_bit(house_to_change / f"{stem}.zarr/resid_post/c/0/0")
    result = snakemake(house_to_change, *RUN, "--", "verify_activations")
    assert result.returncode == 1
    assert (
        f"{stem}.zarr/resid_post/c/0/0: its SHA-256 is not the one in the manifest" in result.stderr
    )
    assert f"delete {stem}.zarr and {stem}.json, then: snakemake" in result.stderr
    assert repaired(house_to_change, stem)
    assert contents(house_to_change) == before
    assert planned(house_to_change) == {}  # nothing is trained again
    assert snakemake(house_to_change, *RUN, "--", "verify_activations").returncode == 0


def test_a_store_that_is_gone_with_its_manifest_is_found_and_made_again_alone(
    house_to_change: Path,
) -> None:
    stem = f"results/{MODEL}/activations/layer_02/shard_0000"
    shutil.rmtree(house_to_change / f"{stem}.zarr")
    (house_to_change / f"{stem}.json").unlink()
    assert planned(house_to_change) == {}  # no run would notice
    result = snakemake(house_to_change, *RUN, "--", "verify_activations")
    assert result.returncode == 1
    assert "layer_02: shard_0000 and its manifest are missing" in result.stderr
    assert f"snakemake --profile YOURS {stem}.json" in result.stderr


def test_a_damaged_int8s_store_stops_the_training_and_is_repaired_by_its_job_alone(
    tmp_path: Path,
) -> None:
    house = copy_house(tmp_path / "house")
    given = ["activations={storage: int8s}", "sae={epochs: 1}"]
    result = snakemake(house, *RUN, *given, "--", "activations")
    assert result.returncode == 0, result.stderr[-4000:]
    before = contents(house)
    stem = f"results/{MODEL}/activations/layer_01/shard_0000"
    flip_a_bit(house / f"{stem}.zarr/resid_post/c/0/0")
    trained = f"results/{MODEL}/saes/layer_01/sae_weights.safetensors"
    result = snakemake(house, *RUN, *given, "--", trained)
    assert result.returncode == 1
    assert f"{stem}.zarr/resid_post/c/0/0: rows from 0 on are damaged" in result.stderr
    assert not (house / trained).exists()
    assert repaired(house, stem, *given)
    assert contents(house) == before
    result = snakemake(house, *RUN, *given, "--", trained)
    assert result.returncode == 0, result.stderr[-4000:]
    assert job_counts(result.stdout + result.stderr) == {"train_sae": 1}
