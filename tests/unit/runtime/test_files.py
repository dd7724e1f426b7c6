"""Atomic writes and locks."""

import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import pytest
from disk_spy import Disk, run_until

from ghosttrack.errors import UserError
from ghosttrack.runtime import files


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        _write_half(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def _write_half(target: Path) -> None:
    with files.atomic_write(target) as stream:
        stream.write("half")
        raise RuntimeError


def test_a_directory_is_replaced_atomically(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "stale").write_text("x")
    with files.atomic_directory(target) as partial:
        (partial / "fresh").write_text("y")
        assert (target / "stale").exists()
    assert [path.name for path in target.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_directory_leaves_the_old_one_and_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError):
        _make_half(target)
    assert list(tmp_path.rglob("*")) == [target, target / "old"]


def _make_half(target: Path) -> None:
    with files.atomic_directory(target) as partial:
        (partial / "half").touch()
        raise RuntimeError


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_a_damaged_or_missing_json_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json is not valid JSON"):
        files.read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"gone\.json is missing"):
        files.read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_a_json_file_without_an_object_is_named_in_the_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=r"bad\.json does not hold a JSON object: delete it"):
        files.read_object(tmp_path / "bad.json")


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from ghosttrack.runtime import files\n"
        "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid}"),
            files.lock(tmp_path),
        ):
            pass
        assert files.locked(tmp_path)
        holder.kill()
    assert not files.locked(tmp_path)
    assert not files.locked(tmp_path / "never")
    with files.lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "short", "long" * 100_000])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_is_on_disk_before_it_is_renamed(
    content: str, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    if replaced:
        files.write_json(target, "old")
    disk = Disk(monkeypatch)
    with files.atomic_write(target) as stream:
        stream.write(content)
    assert target.read_text() == content
    assert disk.renamed == [target]
    assert not disk.lost


@pytest.mark.parametrize("replaced", [True, False])
def test_a_directory_is_on_disk_before_it_is_renamed(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "folder" / "store"
    if replaced:
        target.mkdir(parents=True)
    disk = Disk(monkeypatch)
    with files.atomic_directory(target) as partial:
        (partial / "a" / "b").mkdir(parents=True)
        for name in ("first", "a/second", "a/b/third"):
            (partial / name).write_text("content")
    assert disk.renamed == [target]
    assert not disk.lost


def write_pair(folder: Path) -> None:
    """A directory, and a file that is written after it."""
    (folder / "vouch.json").unlink(missing_ok=True)
    with files.atomic_directory(folder / "store") as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "new").write_text("new")
    files.write_json(folder / "vouch.json", "new")


@pytest.mark.parametrize("replaced", [True, False])
def test_a_kill_at_any_file_operation_leaves_complete_files_or_none(
    replaced: bool, tmp_path: Path
) -> None:
    def start(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if replaced:
            write_pair(folder)
        return folder

    operations = run_until(None, lambda: write_pair(start("whole")))
    expected = content_of(tmp_path / "whole")
    for operation in range(operations):
        folder = start(str(operation))
        run_until(operation, lambda folder=folder: write_pair(folder))  # type: ignore[misc]
        if (folder / "vouch.json").exists():
            assert (folder / "vouch.json").read_text() == '"new"\n'
            assert (folder / "store/inside/new").read_text() == "new"
        write_pair(folder)
        files.sweep_writes(folder / "vouch.json")
        assert content_of(folder) == expected


def content_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "a.json", 1)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    others = {".b.json.1.partial", "a.json", ".a.json.partial.txt", "a.json.1.partial"}
    for name in (".a.json.1.partial", ".a.json.2.partial", *others):
        (tmp_path / name).touch()
    files.sweep_writes(tmp_path / "a.json")
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_sweep_keeps_the_given_files_and_their_folders(tmp_path: Path) -> None:
    for name in ("lock", "kept/one", "kept/two", "gone/deep/three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files.sweep(tmp_path, keep={tmp_path / "kept/one"})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "kept",
        "kept/one",
    ]
    files.sweep(tmp_path, keep=set())
    assert tmp_path.is_dir(), "the folder itself stays"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "remade", [True, False], ids=["a new one in its place", "nothing in its place"]
)
def test_a_lock_is_refused_if_its_folder_was_renamed_before_it_was_taken(
    remade: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, take = tmp_path / "store.partial", fcntl.flock

    def finished_meanwhile(stream: IO[Any], how: int) -> None:
        folder.rename(tmp_path / "store")
        if remade:
            folder.mkdir()
            (folder / "lock").touch()
        take(stream, how)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    with pytest.raises(
        UserError, match=r"store\.partial was just completed by another process: run the same"
    ):
        files.lock(folder).__enter__()


def test_a_lock_file_has_its_current_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.owner_of(tmp_path) == ""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "lock").write_text("process 123456789 on a node with a longer name, Slurm job 7")
    with files.lock(tmp_path):
        assert files.owner_of(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"


@pytest.mark.parametrize(("refusals", "had"), [(0, True), (1, True), (3, True), (4, False)])
def test_a_lock_that_is_held_for_an_instant_is_waited_for(
    refusals: int, had: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, slept, take = [BlockingIOError] * refusals, list[float](), fcntl.flock

    def sometimes_held(stream: IO[Any], how: int) -> None:
        if answers:
            raise answers.pop()
        take(stream, how)

    monkeypatch.setattr(fcntl, "flock", sometimes_held)
    monkeypatch.setattr(time, "sleep", slept.append)
    folder = tmp_path / "new" / "folder"
    with (
        nullcontext() if had else pytest.raises(UserError, match="in use by an unknown process"),
        files.lock(folder),
    ):
        assert (folder / "lock").exists()
    assert sum(slept) == pytest.approx(0.1 * min(refusals, 3))  # no pause after the last try


def test_weight_files_of_all_formats_are_found(tmp_path: Path) -> None:
    weights = {
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "pytorch_model-00001.bin",
        "model.gguf",
    }
    for name in (*weights, "config.json", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).touch()
    assert {path.name for path in files.weight_files(tmp_path)} == weights


def test_digests_of_files_and_of_canonical_json(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.sha256_file(tmp_path / "a") == known
    assert (
        files.sha256_json({"b": Path("x"), "a": [1]})
        == hashlib.sha256(b'{"a":[1],"b":"x"}').hexdigest()
    )


def test_json_keeps_non_ascii_letters(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", "Łódź 北京")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '"Łódź 北京"\n'
