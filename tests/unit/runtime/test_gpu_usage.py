"""GPU samples, with a fake nvidia-smi."""

import os
import time
from pathlib import Path

import pytest

from ghosttrack.runtime import gpu_usage


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_the_first_visible_gpu_of_the_job_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; echo "87, 12345, 40960"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = gpu_usage.ask()
    assert found is not None
    assert found[1:] == (87.0, 12345.0, 40960.0)
    assert (tmp_path / "asked").read_text().endswith("-i 2\n")


@pytest.mark.parametrize(
    "script", ["exit 9", "echo No devices were found", "echo '[N/A], 1, 2'", "true"]
)
def test_an_invalid_answer_of_nvidia_smi_counts_as_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    tool(tmp_path, monkeypatch, script)
    assert gpu_usage.ask() is None


def test_a_job_without_a_visible_gpu_does_not_run_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, 'echo "87, 12345, 40960"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_usage.ask() is None


def test_samples_are_written_while_the_job_runs_and_the_last_one_is_read_back(
    tmp_path: Path,
) -> None:
    made = iter(gpu_usage.Sample(f"t{number}", 10.0 * number, 1.0, 2.0) for number in range(1000))
    path = tmp_path / "benchmarks" / "train_sae" / "layer_00.gpu.tsv"
    with gpu_usage.sampled(path, every=0.01, look=lambda: next(made)):
        while not path.exists() or path.read_text().count("\n") < 4:
            time.sleep(0.01)
    lines = path.read_text().splitlines()
    assert lines[0] == "time\tutilisation\tmemory_used\tmemory_total"
    assert lines[1:3] == ["t0\t0.0\t1.0\t2.0", "t1\t10.0\t1.0\t2.0"]
    last = gpu_usage.last_sample(path)
    assert last is not None
    assert last.time == f"t{len(lines) - 2}"
    with path.open("a") as stream:
        stream.write("t99\t1")  # cut off
    assert gpu_usage.last_sample(path) is None


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    with gpu_usage.sampled(tmp_path / "a" / "b.gpu.tsv", look=lambda: None):
        pass
    assert list(tmp_path.iterdir()) == []
    assert gpu_usage.last_sample(tmp_path / "a" / "b.gpu.tsv") is None


def test_samples_are_next_to_the_benchmark_file() -> None:
    log = Path("results/tiny/logs/train_sae/layer_00.log")
    assert gpu_usage.samples_beside(log) == Path(
        "results/tiny/benchmarks/train_sae/layer_00.gpu.tsv"
    )
