"""Checkpoints are atomic, the two newest are kept, and a reason is logged for unused files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_spy import Disk, run_until

from ghosttrack.sae.checkpoints import Checkpoint, Checkpoints


def save(folder: Path, *steps: int, fingerprint: str = "run") -> None:
    """One process that saves these steps, one after the other."""
    checkpoints = Checkpoints(folder, fingerprint)
    checkpoints.latest()
    for step in steps:
        checkpoints.save(Checkpoint(step, {"step": torch.tensor(step)}))


def latest(folder: Path, fingerprint: str = "run") -> int | None:
    found = Checkpoints(folder, fingerprint).latest()
    assert found is None or found.tensors["step"].item() == found.step
    return None if found is None else found.step


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.iterdir())


def with_header(path: Path, **changed: Any) -> None:
    """Change fields of the first line; None takes a field out."""
    line, _, payload = path.read_bytes().partition(b"\n")
    header = {
        key: value for key, value in {**json.loads(line), **changed}.items() if value is not None
    }
    path.write_bytes(json.dumps(header).encode() + b"\n" + payload)


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.tensor(7.0, dtype=torch.float64),
        "c": torch.arange(4),
        "transposed": torch.randn(3, 5).T,
    }
    Checkpoints(tmp_path, "f").save(Checkpoint(12, tensors))
    found = Checkpoints(tmp_path, "f").latest()
    assert found is not None
    assert found.step == 12
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert Checkpoints(tmp_path, "g").latest() is None


@pytest.mark.parametrize(
    ("processes", "left"),
    [
        ([[1]], [1]),
        ([[1, 2]], [1, 2]),
        ([[1, 2, 3]], [2, 3]),
        ([[1, 2, 3, 4, 5]], [4, 5]),
        ([[1, 2], [3]], [2, 3]),  # a second process drops what the first one left
        ([[1, 2], [2, 3]], [2, 3]),
        ([[1, 2], [2]], [1, 2]),  # saved again: one file
        ([[999_999_999, 1_000_000_000]], [999_999_999, 1_000_000_000]),
    ],
)
def test_the_two_newest_of_a_run_are_kept(
    processes: list[list[int]], left: list[int], tmp_path: Path
) -> None:
    for steps in processes:
        save(tmp_path, *steps)
    assert steps_in(tmp_path) == left


def test_a_checkpoint_that_someone_deleted_is_not_missed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    for step in (1, 2, 3):
        checkpoints.save(Checkpoint(step, {}))
        for path in tmp_path.iterdir():
            path.unlink()
    assert Checkpoints(tmp_path / "never", "run").latest() is None


def test_the_newest_is_found_and_files_of_another_run_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 8, 9, fingerprint="other")
    assert latest(tmp_path) is None
    save(tmp_path, 1, 2, 3)
    assert steps_in(tmp_path) == [2, 3, 8, 9]
    assert (latest(tmp_path), latest(tmp_path, "other")) == (3, 9)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": 2}, "its format is 2, expected 1"),
        ({"format": None}, "its first line is damaged"),
        ({"fingerprint": "x"}, "it is from other activations, settings, seed or code"),
        ({"fingerprint": None}, "its first line is damaged"),
        ({"sha256": "0" * 64}, "its checksum is wrong"),
        ({"sha256": None}, "its first line is damaged"),
        ({"step": "many"}, "its first line is damaged"),
        ({"step": None}, "its first line is damaged"),
        ({"step": 3}, "its first line says step 3"),
    ],
)
def test_a_file_that_is_refused_is_named_with_the_reason_and_the_one_before_it_is_used(
    changed: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    with_header(tmp_path / "step_000000002.checkpoint", **changed)
    assert latest(tmp_path) == 1
    assert f"checkpoint step_000000002.checkpoint is not used: {reason}" in caplog.text
    save(tmp_path, 3)
    assert steps_in(tmp_path) == [1, 2, 3], "a refused file is nobody's to delete"


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    save(tmp_path, 1, 2, 3)
    assert [path.name for path in disk.renamed] == [
        f"step_{step:09d}.checkpoint" for step in (1, 2, 3)
    ]
    assert not disk.lost


def test_a_kill_at_any_file_operation_loses_at_most_the_checkpoint_under_way(
    tmp_path: Path,
) -> None:
    operations = run_until(None, lambda: save(tmp_path / "whole", 1, 2, 3))
    before = 0
    for operation in range(operations):
        folder = tmp_path / str(operation)
        run_until(operation, lambda folder=folder: save(folder, 1, 2, 3))  # type: ignore[misc]
        found = latest(folder) or 0
        assert before <= found <= before + 1
        before = found
    assert before == 3
