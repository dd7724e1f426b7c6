"""State of each job, from the queue, the logs and the processes of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghosttrack.cli import status
from ghosttrack.planning import job_status, plan, run_state
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.planning.run_state import Job
from ghosttrack.planning.slurm import SlurmJob
from tests.conftest import ROOT

HERE = os.uname().nodename
PROGRESS = (
    "12:00:10 INFO SAE of layer 1: 4,096/16,384 tokens, 1,234.5 tokens/s, 1m 05s left; "
    "loss 0.1, dead 4"
)


def write_log(results: Path, name: str, *lines: str) -> None:
    path = results / "tiny-gpt2" / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def look(results: Path, job: Job, *queue: SlurmJob) -> job_status.Activity:
    (found,) = job_status.look("tiny-gpt2", [job], queue, results)
    return found


def queued(
    state: str, wildcards: str = "tiny-gpt2_01", rule: str = "train_sae", number: str = "7"
) -> SlurmJob:
    return SlurmJob(number, state, "" if state == "PENDING" else "node3", "1:05", rule, wildcards)


LAYER = Job("train_sae", "layer_01", False)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[int]:
    """A living process that runs a rule's script."""
    path = tmp_path / ".snakemake" / "scripts" / "tmp.train_sae.py"
    path.parent.mkdir(parents=True)
    path.write_text("print('up', flush=True)\nimport time\ntime.sleep(60)\n")
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_job_that_never_started_waits_and_a_finished_one_is_done(tmp_path: Path) -> None:
    assert look(tmp_path, LAYER).state == "waiting"
    assert look(tmp_path, LAYER._replace(done=True)).state == "done"


def test_the_state_in_slurm_has_priority(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        "train_sae/layer_01",
        f"12:00:00 INFO process 5 on {HERE}, Slurm job 7, GPU 2",
        PROGRESS,
    )
    assert look(tmp_path, LAYER, queued("PENDING"))[2:5] == ("queued", "7", "")
    found = look(tmp_path, LAYER, queued("RUNNING"))
    assert found[2:5] == ("running", "7", "node3")
    assert found.progress == (4096, 16384, "tokens", 1234.5, "1m 05s")
    # The log is still that of the first attempt.
    assert look(tmp_path, LAYER, queued("RUNNING", number="8")).progress is None


def test_a_job_of_this_machine_runs_while_its_process_is_a_living_script(
    tmp_path: Path, script: int
) -> None:
    write_log(tmp_path, "train_sae/layer_01", f"12:00:00 INFO process {script} on {HERE}", PROGRESS)
    found = look(tmp_path, LAYER)
    assert found.state == "running"
    assert found.progress is not None
    # Another process got the process id of a dead job.
    write_log(
        tmp_path, "train_sae/layer_01", f"12:00:00 INFO process {os.getpid()} on {HERE}", PROGRESS
    )
    assert look(tmp_path, LAYER)[2:] == ("cut off", "", "", None, None, PROGRESS)


def test_a_failed_job_shows_its_last_line_and_only_the_last_attempt_counts(tmp_path: Path) -> None:
    start, error = (
        f"12:00:00 INFO process 5 on {HERE}, Slurm job 7",
        "12:00:11 ERROR sae.k: 8 of 8 features",
    )
    write_log(tmp_path, "train_sae/layer_01", start, PROGRESS, error)
    assert look(tmp_path, LAYER)[2:] == ("failed", "7", "", None, None, error)
    write_log(tmp_path, "train_sae/layer_01", start, error, start, PROGRESS)
    assert look(tmp_path, LAYER).state == "cut off"
    write_log(tmp_path, "train_sae/layer_01", start, error, start, PROGRESS)
    assert look(tmp_path, LAYER, queued("RUNNING")).state == "running"


def test_the_end_of_a_long_log_is_enough(tmp_path: Path) -> None:
    start = f"12:00:00 INFO process 5 on {HERE}"
    write_log(tmp_path, "train_sae/layer_01", *["an older line"] * 9000, start, "12:00:11 ERROR no")
    assert look(tmp_path, LAYER).state == "failed"


@pytest.mark.parametrize("gpus", ["", ", GPU 0, 1"])
def test_a_job_that_started_hours_ago_still_runs(tmp_path: Path, script: int, gpus: str) -> None:
    start = f"12:00:00 INFO process {script} on {HERE}{gpus}"
    write_log(tmp_path, "train_sae/layer_01", start, *[PROGRESS] * 2000)
    found = look(tmp_path, LAYER)
    assert found.state == "running"
    assert found.progress is not None


@pytest.mark.parametrize(
    ("rule", "wildcards", "phase", "name"),
    [
        ("train_sae", "tiny-gpt2_01", "train_sae", "layer_01"),
        (
            "extract_activations_tiny_gpt2_wave_02",
            "0013",
            "extract_activations",
            "wave_02_shard_0013",
        ),
        ("extract_heldout_tiny_gpt2", "", "extract_heldout", ""),
        ("extract_examples_tiny_gpt2", "us_cities", "extract_examples", "us_cities"),
        ("track_features_tiny_gpt2", "tiny-gpt2_cities", "track_features", "cities"),
        ("audit_dataset", "tiny-gpt2_us_cities", "audit_dataset", "us_cities"),
        ("evaluate_detectors", "tiny-gpt2", "evaluate_detectors", ""),
    ],
)
def test_slurm_jobs_are_identified_by_their_comment(
    rule: str, wildcards: str, phase: str, name: str
) -> None:
    job = queued("RUNNING", wildcards, rule)
    assert job_status.by_job("tiny-gpt2", [job]) == {(phase, name): job}
    assert job_status.by_job("tiny", [job]) == {}


def test_slurm_jobs_of_a_model_with_dots_are_identified_by_their_rules() -> None:
    rule = f"extract_heldout_{plan.rule_names(['Llama-3.1-8B'])['Llama-3.1-8B']}"
    job = queued("RUNNING", "", rule)
    assert job_status.by_job("Llama-3.1-8B", [job]) == {("extract_heldout", ""): job}


def test_status_shows_every_state_and_the_layers(tmp_path: Path) -> None:
    home = tmp_path / "tiny-gpt2"
    (home / "saes" / "layer_00").mkdir(parents=True)
    for name in ("sae_weights.safetensors", "cfg.json"):
        (home / "saes" / "layer_00" / name).touch()
    write_log(
        tmp_path, "train_sae/layer_01", f"12:00:00 INFO process 5 on {HERE}, Slurm job 7", PROGRESS
    )
    write_log(
        tmp_path,
        "train_sae/layer_02",
        f"12:00:00 INFO process 5 on {HERE}, Slurm job 8",
        "12:00:11 ERROR no room",
    )
    samples = home / "benchmarks" / "train_sae" / "layer_01.gpu.tsv"
    samples.parent.mkdir(parents=True)
    samples.write_text("time\tutilisation\tmemory_used\tmemory_total\nt\t87.0\t12288\t40960\n")
    queue = [queued("RUNNING"), queued("PENDING", "tiny-gpt2_03", number="9")]
    ((_, settings),) = load({"model": "tiny-gpt2"}, ROOT / "config").items()
    found = status.look(
        settings,
        {n: load_dataset(n, ROOT / "config") for n in settings.datasets},
        tmp_path,
        queue=queue,
    )
    lines = status.as_text(found).splitlines()
    assert "  train_sae                1     4        1       1       1" in lines
    assert [
        line.split("  ")[-1] for line in lines if line.split()[:1] in (["0"], ["1"], ["2"], ["3"])
    ] == ["trained", "training, 25%", "failed", "queued"]
    (running,) = [line for line in lines if "running" in line and "layer_01" in line]
    assert (
        "Slurm job 7 on node3  4,096/16,384 tokens, 1,234/s, 1m 05s left  GPU 87 %, 12.0 of 40.0 "
        "GiB" in running
    )
    (failed,) = [line for line in lines if "failed" in line and "layer_02" in line]
    assert failed.endswith("12:00:11 ERROR no room")
    jobs = {each["name"]: each for each in status.as_json(found)["jobs"]}
    assert jobs["layer_01"]["progress"]["rate"] == 1234.5
    assert jobs["layer_03"]["state"] == "queued"


@pytest.mark.parametrize(
    ("phase", "rule", "wildcards", "name"),
    [
        (
            "extract_activations",
            "extract_activations_tiny_gpt2_wave_01",
            "0002",
            "layers_02_to_03_shard_0002",
        ),
        (
            "fit_detector_class",
            "fit_detector_class",
            "tiny-gpt2_mine_us_cities.v2",
            "mine.us_cities.v2",
        ),
    ],
)
def test_a_job_whose_log_has_another_name_than_its_slurm_job_runs(
    tmp_path: Path, phase: str, rule: str, wildcards: str, name: str
) -> None:
    write_log(tmp_path, f"{phase}/{name}", "12:00:00 INFO process 5 on node3, Slurm job 7")
    jobs = [
        Job(phase, name, False),
        Job("extract_activations", "layers_00_to_01_shard_0002", False),
    ]
    queue = [queued("RUNNING", wildcards, rule)]
    found = job_status.look("tiny-gpt2", jobs, queue, tmp_path, [[0, 1], [2, 3]])
    assert [one.state for one in found] == ["running", "waiting"]


def test_the_queue_names_every_job_of_a_run(tmp_path: Path) -> None:
    """The names of `run_state.jobs`, read back from Slurm's comments of these jobs."""
    (settings,) = load({"model": "tiny-gpt2"}, ROOT / "config").values()
    datasets = {name: load_dataset(name, ROOT / "config") for name in settings.datasets}
    waves = [[0, 2], [1, 3]]
    for job in run_state.jobs(settings, waves, datasets, tmp_path):
        rule, rest = job.phase, job.name.removeprefix("layer_")
        wildcards = f"tiny-gpt2_{rest}" if rest else "tiny-gpt2"
        if job.phase == "extract_activations":
            layers, _, wildcards = job.name.partition("_shard_")
            rule += f"_tiny_gpt2_wave_{['layers_00_to_02', 'layers_01_to_03'].index(layers):02d}"
        (found,) = job_status.look(
            "tiny-gpt2", [job], [queued("PENDING", wildcards, rule)], tmp_path, waves
        )
        assert found.state == "queued", job
