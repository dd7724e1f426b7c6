"""The lock log: every event of every process, and the check that no folder had two writers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, lock_log


def event(kind: str, process: int, folder: str = "state") -> lock_log.Event:
    return lock_log.Event(
        "2026-01-01T00:00:00.000000+00:00", kind, folder, process, "node1", "", ""
    )


def test_every_lock_is_in_the_lock_log_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with lock_log.kept(tmp_path / "logs" / lock_log.NAME), files.lock(tmp_path / "state"):
        assert files.owner_of(tmp_path / "state").endswith(", Slurm job 17")
        with pytest.raises(UserError, match="make orphans"), files.lock(tmp_path / "state"):
            pass
    events = lock_log.read(tmp_path / "logs" / lock_log.NAME)
    assert [each.event for each in events] == ["acquired", "refused", "released"]
    assert {(each.folder, each.process, each.job) for each in events} == {
        (str(tmp_path / "state"), os.getpid(), "17")
    }
    assert (
        events[1].remark == f"held by process {os.getpid()} on {os.uname().nodename}, Slurm job 17"
    )
    assert [each.time for each in events] == sorted(each.time for each in events)
    assert list(lock_log.overlaps(events)) == []


def test_lines_of_concurrent_processes_are_complete(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ghosttrack.runtime import lock_log\n"
        "with lock_log.kept(Path(sys.argv[1])):\n"
        "    for number in range(200): lock_log.note('acquired', Path('x' * 50), str(number))\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "log")],
            env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])},
        )
        for _ in range(2)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    events = lock_log.read(tmp_path / "log")
    for writer in writers:
        assert [each.remark for each in events if each.process == writer.pid] == [
            str(number) for number in range(200)
        ]


def test_a_lock_log_that_cannot_be_written_does_not_stop_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    with lock_log.kept(tmp_path / "logs" / lock_log.NAME), files.lock(tmp_path / "state"):
        pass
    assert "cannot be written" in caplog.text


def test_a_damaged_line_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("half a line\n")
    with pytest.raises(
        UserError, match=r"log, line 1: expected 7 tab-separated fields, found 'half a line'"
    ):
        lock_log.read(tmp_path / "log")
    assert lock_log.read(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("events", "writers"),
    [
        ([("acquired", 1), ("released", 1), ("acquired", 2), ("released", 2)], []),
        ([("acquired", 1), ("refused", 2), ("released", 1)], []),
        # The first writer was killed, so it never logs `released`.
        ([("acquired", 1), ("acquired", 2), ("released", 2), ("acquired", 1), ("released", 1)], []),
        ([("acquired", 1), ("acquired", 2), ("released", 1), ("released", 2)], [(1, 2)]),
        ([("acquired", 1), ("acquired", 2), ("released", 2), ("released", 1)], [(1, 2)]),
        ([("acquired", 1), ("acquired", 2), ("acquired", 3), ("released", 1)], [(1, 2), (1, 3)]),
    ],
)
def test_two_writers_at_once_are_found_and_a_killed_writer_is_not_counted(
    events: list[tuple[str, int]], writers: list[tuple[int, int]]
) -> None:
    found = lock_log.overlaps(event(*each) for each in events)
    assert [(each.first.process, each.second.process) for each in found] == writers


def test_writers_of_different_folders_do_not_overlap() -> None:
    events = [
        event("acquired", 1, "a"),
        event("acquired", 2, "b"),
        event("released", 1, "a"),
        event("released", 2, "b"),
    ]
    assert list(lock_log.overlaps(events)) == []
