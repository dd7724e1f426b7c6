"""Event files are read back whole, also while they are written, and hold no point twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from event_reader import events, points

from ghosttrack.errors import UserError
from ghosttrack.runtime.event_files import EventFile
from tests.conftest import ROOT


def test_points_can_be_read_while_the_job_runs(tmp_path: Path) -> None:
    file = EventFile(tmp_path, [])
    file.add(10, {"loss": 0.5, "dead": 3})
    assert points(tmp_path) == {"loss": [(10, 0.5)], "dead": [(10, 3.0)]}
    file.add(20, {"loss": 0.25, "dead": 2})
    assert points(tmp_path)["loss"] == [(10, 0.5), (20, 0.25)]
    file.close()


def test_another_attempt_replaces_the_file_and_an_open_tensorboard_forgets_the_old_points(
    tmp_path: Path,
) -> None:
    first = EventFile(tmp_path, [])
    for step in (10, 20, 30):
        first.add(step, {"loss": 1 / step})
    second = EventFile(tmp_path, [(10, {"loss": 0.5})])
    second.add(20, {"loss": 0.25})
    assert points(tmp_path) == {"loss": [(10, 0.5), (20, 0.25)]}
    version, start = events(tmp_path)[:2]
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START
    assert start.step == 0
    first.close()
    second.close()


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


def test_the_package_is_imported_only_when_an_event_file_is_written() -> None:
    code = "import sys, ghosttrack.sae.training; assert 'tensorboardX' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow_scripts", check=True, timeout=120
    )
