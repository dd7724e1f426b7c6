"""Atomic writes and locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttrack import files
from ghosttrack.errors import UserError


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


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "stale").write_text("x")
    with files.atomic_directory(target) as partial:
        (partial / "fresh").write_text("y")
        assert (target / "stale").exists()
    assert [path.name for path in target.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_a_damaged_or_missing_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json is not valid JSON"):
        files.read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"gone\.json is missing"):
        files.read_json(tmp_path / "gone.json")


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from ghosttrack import files\n"
        "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"), files.lock(tmp_path):
            pass
        assert files.locked(tmp_path)
        holder.kill()
    assert not files.locked(tmp_path)
    assert not files.locked(tmp_path / "never")
    with files.lock(tmp_path):
        pass
