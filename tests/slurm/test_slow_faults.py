"""What takes minutes on a real Slurm: time limits, scancel, preemption, a node that is gone, memory in extraction, 24 layers."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ghosttrack.runtime import lock_log
from tests.conftest import copy_house, job_counts, snakemake
from tests.slurm.cluster import Cluster, missing_tools
from tests.slurm.conftest import (
    MODEL,
    ONE_SHARD,
    SHORT,
    SlurmHouse,
    keep_screen,
    memory_asked,
    most_at_once,
    temporary_cluster,
    until,
)

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_tools()),
        reason=f"Slurm is not installed: {', '.join(missing_tools())} missing",
    ),
]

ONE_LAYER = ("results/tiny-gpt2/saes/layer_01/sae_weights.safetensors",)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with temporary_cluster(gpus=4) as running:
        yield running


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house with model, corpus and activations, made without Slurm."""
    house = copy_house(tmp_path_factory.mktemp("extracted") / "house")
    arguments = (
        "--profile",
        "profiles/local",
        "--config",
        f"model={MODEL}",
        ONE_SHARD,
        "--",
        "activations",
    )
    result = snakemake(house, *arguments, timeout=900)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return house


@pytest.fixture
def house(cluster: Cluster, extracted: Path, tmp_path: Path) -> Iterator[SlurmHouse]:
    made = SlurmHouse(tmp_path / "house", cluster, extracted)
    yield made
    made.stop()


def until_saved(house: SlurmHouse) -> None:
    """Return once layer 1 trains and has a checkpoint."""
    state = house.results / "state" / "train_sae" / "layer_01"
    until(
        600,
        lambda: list(state.glob("*.checkpoint")),
        "a checkpoint of layer 1",
        (house.place / "screen").read_text,
    )


def check(house: SlurmHouse, place: Path) -> None:
    """One writer at a time, and the SAEs of an undisturbed run."""
    assert list(lock_log.overlaps(house.events())) == []
    found, expected = house.saes(), house.undisturbed(place)
    assert [name for name in expected if found.get(name) != expected[name]] == []


def test_a_job_at_its_time_limit_saves_and_its_next_attempt_goes_on(
    house: SlurmHouse, tmp_path: Path
) -> None:
    # 62 steps of 1.5 s; an attempt has two minutes, and the signal comes when one is left.
    slow = {"job": "train_sae/layer_01", "kind": "slow", "seconds": 1.5}
    result = house.run(
        "--set-resources",
        "train_sae:runtime=2",
        "train_sae:checkpoint_seconds=3600",
        target=("--", *ONE_LAYER),
        faults=(slow,),
    )
    said = house.said(1)
    assert "asked to stop: saved at step" in said, said + result.stdout + result.stderr
    assert "resuming from the checkpoint" in said
    assert house.run(target=("--", *ONE_LAYER)).returncode == 0
    check(house, tmp_path)


def test_a_cancelled_job_saves_and_its_next_attempt_goes_on(
    house: SlurmHouse, tmp_path: Path
) -> None:
    run = house.start(
        target=("--", *ONE_LAYER), faults=({"job": "train_sae/*", "kind": "slow", "seconds": 0.3},)
    )
    until_saved(house)
    (job,) = [event.job for event in house.events() if "state/train_sae" in event.folder]
    house.cluster.command("scancel", job)
    assert run.wait(timeout=300) == 0, (house.place / "screen").read_text()[-4000:]
    assert "asked to stop: saved at step" in house.said(1)
    assert "resuming from the checkpoint" in house.said(1)
    check(house, tmp_path)


def test_a_preempted_job_is_queued_again_and_goes_on(house: SlurmHouse, tmp_path: Path) -> None:
    run = house.start(
        # Snakemake takes the last --set-resources alone.
        *SHORT,
        "train_sae:slurm_partition=preemptible",
        target=("--", *ONE_LAYER),
        faults=({"job": "train_sae/*", "kind": "slow", "seconds": 0.3},),
    )
    until_saved(house)
    (job,) = [event.job for event in house.events() if "state/train_sae" in event.folder]
    house.cluster.command(
        "sbatch", "-p", "gpu", "--gpus=4", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    assert run.wait(timeout=600) == 0, (house.place / "screen").read_text()[-4000:]
    assert "Restarts=1" in house.cluster.command("scontrol", "show", "job", job)
    check(house, tmp_path)


def test_a_node_that_is_lost_gives_its_job_back_and_the_old_process_is_kept_out(
    house: SlurmHouse, tmp_path: Path
) -> None:
    run = house.start(
        target=("--", *ONE_LAYER), faults=({"job": "train_sae/*", "kind": "slow", "seconds": 0.3},)
    )
    until_saved(house)
    node = house.cluster.command("sinfo", "-h", "-o", "%n").split()[0]
    house.cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    until(60, lambda: _resumed(house.cluster, node), "the node's return")
    code = run.wait(timeout=600)
    screen = (house.place / "screen").read_text()
    if (
        code
    ):  # the old process still wrote when the new one asked for the lock: refused, with the remedy
        assert "is in use by process" in house.said(1) + screen
        until(120, lambda: not house.training(), "the end of the old process")
        assert house.run(target=("--", *ONE_LAYER)).returncode == 0
    check(house, tmp_path)


def _resumed(cluster: Cluster, node: str) -> bool:
    """Ask the node back; refused while its jobs are still being ended, and where it came back by itself."""
    with suppress(subprocess.CalledProcessError):
        cluster.command("scontrol", "update", f"nodename={node}", "state=resume")
    return "down" not in cluster.command("sinfo", "-h", "-n", node, "-o", "%T")


def test_an_extraction_that_runs_out_of_memory_takes_half_the_batch(
    house: SlurmHouse, tmp_path: Path
) -> None:
    shutil.rmtree(house.results / "activations")
    fault = {
        "job": "extract_activations/*",
        "kind": "out_of_memory",
        "after": 2000,
        "batch_above": 8,
    }
    result = house.run("--retries", "1", target=("--", *ONE_LAYER), faults=(fault,))
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    first, second = house.submitted("extract_activations")
    assert memory_asked(second) == 2 * memory_asked(first)
    check(house, tmp_path)
    # Another batch sums in another order: float32 rounding, which float16 shows as one step at most.
    for found, expected in house.extracted(tmp_path / "again"):
        np.testing.assert_allclose(
            found.astype(np.float32), expected.astype(np.float32), rtol=2**-10, atol=1e-4
        )


def test_24_layers_never_hold_more_than_four_gpus(house: SlurmHouse, tmp_path: Path) -> None:
    shutil.rmtree(house.results)  # of a model with fewer layers
    model = house.place / "config" / "models" / f"{MODEL}.yaml"
    model.write_text(re.sub(r"n_layers: 4", "n_layers: 24", model.read_text()))
    run = house.start()
    screen = house.place / "screen"
    until(
        900,
        lambda: len(house.training()) >= 3 or run.poll() is not None,
        "layers in training",
        screen.read_text,
    )
    keep_screen(house.command("cli.status", "--config", f"model={MODEL}", ONE_SHARD).stdout)
    assert run.wait(timeout=1500) == 0, screen.read_text()[-4000:]
    assert house.trained() == set(range(24))
    events = house.events()
    assert most_at_once(events, "state/train_sae") <= 4
    gpus = dict(re.findall(r"Slurm job (\d+), GPU (\d+)", "".join(map(house.said, range(24)))))
    held: dict[str, str] = {}
    for event in events:
        if "state/train_sae" in event.folder and event.event == "acquired":
            assert gpus[event.job] not in held.values()
            held[event.folder] = gpus[event.job]
        elif event.event == "released":
            held.pop(event.folder, None)
    assert set(gpus.values()) == {"0", "1", "2", "3"}
    check(house, tmp_path)


def test_four_jobs_outlive_a_killed_snakemake_and_none_is_repeated_or_written_twice(
    house: SlurmHouse, tmp_path: Path
) -> None:
    run = house.start(faults=({"job": "train_sae/*", "kind": "slow", "seconds": 0.5},))
    screen = house.place / "screen"
    until(
        600,
        lambda: len(house.training()) == 4 or run.poll() is not None,
        "four layers in training",
        screen.read_text,
    )
    run.kill()
    run.wait()
    house.run("--unlock")
    submitted = len(house.cluster.submissions())
    refused = house.run()
    assert refused.returncode == 1
    assert "make orphans" in refused.stdout + refused.stderr
    assert house.command("planning.orphans", "--wait").returncode == 0
    assert len(house.cluster.submissions()) == submitted
    assert house.trained() == {0, 1, 2, 3}
    before = house.saes()
    result = house.run()
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert house.saes() == before
    assert house.submitted("train_sae", submitted) == []
    assert most_at_once(house.events(), "state/train_sae") == 4
    check(house, tmp_path)


def test_a_layer_lost_after_everything_stood_is_repeated_with_its_followers_alone(
    house: SlurmHouse,
) -> None:
    fault = {"job": "train_sae/layer_01", "kind": "error"}
    result = house.run("--retries", "0", target=("--", "saes"), faults=(fault,))
    assert result.returncode == 1
    assert house.trained() == {0, 2, 3}
    again = house.run("-n", target=("--", "saes"))
    counts = job_counts(again.stdout + again.stderr)
    counts.pop("saes")
    assert counts == {"train_sae": 1, "evaluate_sae": 1}
