"""The cluster command on a real Slurm: one node, two fake GPUs, the tiny model with four layers, and everything that goes wrong.

One story, because Slurm jobs are slow: a run whose Snakemake is killed while layers train; the documented restart, with
one layer that runs out of memory and one that fails; and the run that repeats what failed. Each test reads a part of it.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ghosttrack.runtime import lock_log
from tests.slurm.cluster import Cluster, missing_tools
from tests.slurm.conftest import (
    MODEL,
    ONE_SHARD,
    SlurmHouse,
    memory_asked,
    most_at_once,
    temporary_cluster,
    until,
)

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(missing_tools()),
        reason=f"Slurm is not installed: {', '.join(missing_tools())} missing",
    ),
]


class Output(NamedTuple):
    """What one command said, and how many sbatch calls there were when it ended."""

    code: int
    text: str
    submitted: int


class Story(NamedTuple):
    """The workflow's folder after all commands, and what each of them said."""

    house: SlurmHouse
    shown: dict[str, Any]  # what `status --json` said then of the jobs at work, by name
    queue: dict[str, tuple[str, str, str]]  # what squeue said then: state, job and node, by layer
    orphaned: set[str]  # layers that trained when Snakemake was killed
    refused: Output
    cancelled: Output
    failed: Output
    repeated: Output


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with temporary_cluster(gpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def house(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmHouse]:
    made = SlurmHouse(tmp_path_factory.mktemp("slurm") / "house", cluster)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def story(cluster: Cluster, house: SlurmHouse) -> Story:

    def output(result: "subprocess.CompletedProcess[str]") -> Output:
        return Output(result.returncode, result.stdout + result.stderr, len(cluster.submissions()))

    slow = {"job": "train_sae/*", "kind": "slow", "seconds": 1.0}
    run = house.start(faults=(slow,))
    screen = house.place / "screen"
    until(
        600,
        lambda: len(house.training()) == 2 or run.poll() is not None,
        "two layers in training",
        screen.read_text,
    )
    status = house.command("cli.status", "--json", "--config", f"model={MODEL}", ONE_SHARD)
    shown = {job["name"]: job for job in json.loads(status.stdout)[MODEL]["jobs"]}
    lines = [
        line.split("|")
        for line in cluster.command("squeue", "-h", "-o", "%k|%T|%i|%N").splitlines()
    ]
    queue = {f"layer_{comment[-2:]}": (state, job, node) for comment, state, job, node in lines}
    orphaned = house.training()
    run.kill()
    run.wait()

    house.run("--unlock")
    refused = output(house.run())
    cancelled = output(house.command("planning.orphans", "--cancel"))
    failed = output(
        house.run(
            "--retries",
            "1",
            faults=(
                {
                    "job": "train_sae/layer_00",
                    "kind": "out_of_memory",
                    "after": 10_000,
                    "batch_above": 2048,
                },
                {"job": "train_sae/layer_01", "kind": "error", "after": 12_000},
            ),
        )
    )
    return Story(house, shown, queue, orphaned, refused, cancelled, failed, output(house.run()))


def test_status_from_another_shell_agrees_with_squeue(story: Story) -> None:
    states = {"RUNNING": "running", "PENDING": "queued"}
    assert sorted(state for state, _, _ in story.queue.values()) == [
        "PENDING",
        "PENDING",
        "RUNNING",
        "RUNNING",
    ]
    assert {
        name: (job["state"], job["slurm_job"], job["node"]) for name, job in story.shown.items()
    } == {name: (states[state], job, node) for name, (state, job, node) in story.queue.items()}


def test_jobs_of_a_killed_run_stop_the_next_one_before_it_submits_anything(story: Story) -> None:
    assert story.refused.code == 1
    assert len(story.orphaned) == 2
    for layer in story.orphaned:
        assert f"train_sae {MODEL}_{layer[-2:]}" in story.refused.text, story.refused.text
    assert "make orphans ARGS=--cancel" in story.refused.text
    assert "Traceback" not in story.refused.text
    assert story.refused.submitted == story.cancelled.submitted


def test_they_end_on_request_and_go_on_from_their_checkpoints(story: Story) -> None:
    assert story.cancelled.code == 0, story.cancelled.text
    for layer in story.orphaned:
        log = story.house.said(int(layer[-2:]))
        assert "asked to stop: saved at step" in log
        assert "resuming from the checkpoint" in log


def test_a_failing_layer_is_named_with_its_log_and_every_other_layer_is_finished(
    story: Story,
) -> None:
    assert story.failed.code == 1
    assert f"results/{MODEL}/logs/train_sae/layer_01.log" in story.failed.text
    assert "Error in rule train_sae" in story.failed.text
    assert story.house.said(1).count("a fault of GHOSTTRACK_FAULTS (traceback") == 2  # one retry


def test_after_an_out_of_memory_half_the_batch_goes_on_from_the_checkpoint(story: Story) -> None:
    log = story.house.said(0)
    assert "out of memory with micro_batch=4096" in log
    assert log.index("out of memory") < log.rindex("resuming from the checkpoint")
    first, second = story.house.submitted(
        f"train_sae_wildcards_{MODEL}_00", story.cancelled.submitted
    )
    assert memory_asked(second) == 2 * memory_asked(first)


def test_the_next_run_repeats_the_failed_layer_and_nothing_else(story: Story) -> None:
    assert story.repeated.code == 0, story.repeated.text[-4000:]
    (again,) = story.house.cluster.submissions()[story.failed.submitted :]
    assert f"rule_train_sae_wildcards_{MODEL}_01" in again


def test_no_layer_ever_had_two_writers(story: Story) -> None:
    events = story.house.events()
    acquired = [
        event for event in events if event.event == "acquired" and "state/train_sae" in event.folder
    ]
    assert (
        len(acquired) >= 4 + len(story.orphaned) + 2
    )  # each layer, the killed run's, the memory's and the fault's
    assert {Path(event.folder).name for event in acquired} == {
        f"layer_{layer:02d}" for layer in range(4)
    }
    assert all(event.job for event in acquired)
    assert list(lock_log.overlaps(events)) == []


def test_as_many_layers_train_as_there_are_gpus_each_on_its_own(story: Story) -> None:
    assert most_at_once(story.house.events(), "state/train_sae") == 2
    gpus = dict(re.findall(r"Slurm job (\d+), GPU (\d+)", "".join(map(story.house.said, range(4)))))
    held: dict[str, str] = {}
    for event in story.house.events():
        if "state/train_sae" in event.folder and event.event == "acquired":
            assert gpus[event.job] not in held.values()
            held[event.folder] = gpus[event.job]
        elif event.event == "released":
            held.pop(event.folder, None)
    assert set(gpus.values()) == {"0", "1"}


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        ("extract_activations_tiny_gpt2_wave_00", ["--gpus=a100:1", "-t 120"]),
        (f"train_sae_wildcards_{MODEL}_02", ["--gpus=a100:1", "-t 120"]),
    ],
)
def test_a_rules_jobs_ask_for_what_it_promises(story: Story, rule: str, asked: list[str]) -> None:
    call = story.house.submitted(rule)[0]
    for words in [*asked, "--signal=TERM@60", "-p accelerated", "--export=ALL"]:
        assert words in call, call
    # Of a process with a GPU and the processes of Snakemake around it, and a tiny model.
    assert 4000 <= memory_asked(call) < 5000


def test_the_saes_are_those_of_a_run_that_nothing_disturbed(story: Story, tmp_path: Path) -> None:
    assert story.house.trained() == {0, 1, 2, 3}
    found, expected = story.house.saes(), story.house.undisturbed(tmp_path)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
