"""Event files are read back whole, also while they are written, and hold no point twice."""

import sys
from pathlib import Path

import pytest
from event_reader import events, points

from ghosttrack.errors import UserError
from ghosttrack.runtime.event_files import EventFile


def test_points_can_be_read_while_the_job_runs(tmp_path: Path) -> None:
    file = EventFile(tmp_path, [])
    file.add(10, {"loss": 0.5, "dead": 3})
    assert points(tmp_path) == {"loss": [(10, 0.5)], "dead": [(10, 3.0)]}
    file.add(20, {"loss": 0.25, "dead": 2})
    assert points(tmp_path)["loss"] == [(10, 0.5), (20, 0.25)]
    file.close()


def test_another_attempt_replaces_the_points(tmp_path: Path) -> None:
    first = EventFile(tmp_path, [])
    for step in (10, 20, 30):
        first.add(step, {"loss": 1 / step})
    first.close()
    second = EventFile(tmp_path, [(10, {"loss": 0.5})])
    second.add(20, {"loss": 0.25})
    assert points(tmp_path) == {"loss": [(10, 0.5), (20, 0.25)]}
    assert events(tmp_path)[0].file_version == "brain.Event:2"
    second.close()


def test_a_reader_that_is_open_reads_on_after_a_kill(tmp_path: Path) -> None:
    steps = range(100, 900, 100)  # step numbers of one byte and of two
    file = EventFile(tmp_path, [])
    for step in steps[:6]:
        file.add(step, {"loss": 0.5, "dead": 0})
    file.close()
    (path,) = tmp_path.iterdir()
    with path.open("rb") as reader:  # TensorBoard keeps its place in the file
        seen = reader.read()
        file = EventFile(tmp_path, [(step, {"loss": 0.5, "dead": 0}) for step in steps[:2]])
        assert not reader.read()
        for step in steps[2:]:
            file.add(step, {"loss": 0.25, "dead": 7})
        file.close()
        seen += reader.read()
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "tfevents").write_bytes(seen)
    assert [step for step, _ in points(tmp_path / "seen")["loss"]] == list(steps)


def test_a_folder_keeps_what_is_no_event_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    EventFile(tmp_path, []).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_without_the_package_the_error_names_the_setting_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"event_files: true .*tensorboardX.*envs/requirements"):
        EventFile(tmp_path / "events", [])
    assert not (tmp_path / "events").exists()
