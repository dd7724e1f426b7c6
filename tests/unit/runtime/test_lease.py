"""The lease of a folder: live by process, lock or date; taken over by exactly one run."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, lease, lease_file, lease_process

PLACES = ("this host", "other host", "other boot", "other container", "other user")
PROCESSES = ("alive", "dead", "reused")
AGES = ("fresh", "expired")
PACKAGE = {**os.environ, "PYTHONPATH": str(Path(lease.__file__).parents[2])}
# An unknown user id. Child processes of root switch to it; those of other users do not.
STRANGER = 65534 if os.getuid() == 0 else os.getuid()


def python(code: str, *words: str, folder: Path) -> "subprocess.Popen[str]":
    """A Python process with the package in `folder`; stderr goes to stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=PACKAGE,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def process() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(["sleep", "600"], text=True) as running:
        yield running
        running.kill()


@pytest.fixture(scope="module")
def stranger() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(["sleep", "600"], text=True, user=STRANGER) as running:
        yield running
        running.kill()


def ended_process() -> int:
    with subprocess.Popen(["true"]) as run:
        pass
    return run.pid


def left_behind(folder: Path, age: float = 0.0, **fields: Any) -> Path:
    """A lease that is neither held nor released, last renewed `age` seconds ago."""
    held = lease.acquire(folder, "snakemake saes")
    record = held.lease._replace(**fields)
    held.path.write_bytes(lease_file.packed(record))
    held.leave()
    then = lease_file.file_clock(folder) - age
    os.utime(held.path, (then, then))
    return held.path


def lease_status(folder: Path) -> lease.LeaseStatus:
    found = lease.current(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("locked", [False, True], ids=["without flock", "flock held"])
@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("state", PROCESSES)
@pytest.mark.parametrize("place", PLACES)
def test_whether_a_lease_is_live_follows_from_host_process_date_and_lock(
    tmp_path: Path,
    process: "subprocess.Popen[str]",
    stranger: "subprocess.Popen[str]",
    place: str,
    state: str,
    age: str,
    locked: bool,
) -> None:
    pid = (
        ended_process() if state == "dead" else (stranger if place == "other user" else process).pid
    )
    here = lease.for_this_process("", set())
    fields = {
        "this host": {},
        "other user": {"user": "ann"},
        "other host": {"host": "node7", "boot": "b7"},
        "other boot": {"boot": "b7"},  # or another machine with the same name
        "other container": {"namespaces": "1 1"},
    }[place]
    ticks = lease_process.start_ticks(process.pid if state == "dead" else pid) + (state == "reused")
    seconds = 5.0 if age == "fresh" else lease.EXPIRY_SECONDS + 5
    path = left_behind(
        tmp_path, seconds, **{"host": here.host, **fields, "pid": pid, "ticks": ticks}
    )
    seen_from_here = place in ("this host", "other user")
    with path.open() as stream:
        if locked:
            fcntl.flock(stream, fcntl.LOCK_EX)
        live = lease_status(tmp_path).live
    assert live == (locked or (state == "alive" if seen_from_here else age == "fresh"))


def test_a_copy_of_a_folder_is_not_held_by_the_run_in_the_original(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path / "original", "snakemake saes")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    assert lease_status(tmp_path / "original").live
    assert not lease_status(tmp_path / "copy").live
    (tmp_path / "original").rename(tmp_path / "moved")
    assert lease_status(tmp_path / "moved").live
    held.leave()


AS_STRANGER = """
import os, sys
from pathlib import Path
from ghosttrack.runtime import files, lease
from ghosttrack.errors import UserError
if os.getuid() == 0:
    os.setgroups([])
    os.setuid(int(sys.argv[1]))
try:
    lease.acquire(Path("."), "")
except UserError as error:
    print(error)
"""


def said_to_a_stranger(folder: Path) -> str:
    """The error for another user who tries to take the lease of an accessible `folder`."""
    folder.chmod(0o755)
    return python(AS_STRANGER, str(STRANGER), folder=folder).communicate()[0]


def test_another_user_sees_that_a_process_is_alive(tmp_path: Path) -> None:
    left_behind(tmp_path, 500)
    said = said_to_a_stranger(tmp_path)
    assert f"another run is active in this folder: {files.user_name(os.getuid())} on " in said
    assert (
        "its process is stopped" in said.lower()
    )  # its process was found, although the lease is expired


def test_the_error_about_an_unreadable_lease_names_its_owner(tmp_path: Path) -> None:
    path = left_behind(tmp_path, 0, pid=ended_process())
    path.parent.chmod(0o700 if os.getuid() == 0 else 0)  # umask 077
    said = said_to_a_stranger(tmp_path)
    path.parent.chmod(0o700)
    assert (
        f"results/.run belongs to {files.user_name(os.getuid())}, and you have no permission to "
        "read it" in said
    )
    assert "chmod -R g+rwX results" in said


def test_the_error_about_an_unwritable_folder_names_its_owner(tmp_path: Path) -> None:
    path = left_behind(tmp_path, 0, pid=ended_process())
    path.parent.chmod(0o755 if os.getuid() == 0 else 0o500)
    said = said_to_a_stranger(tmp_path)
    path.parent.chmod(0o700)
    assert (
        "results/.run cannot be written (Permission denied): it belongs to "
        f"{files.user_name(os.getuid())}" in said
    )


def test_another_user_of_a_shared_folder_takes_over_from_a_dead_run(tmp_path: Path) -> None:
    path = left_behind(tmp_path, 0, pid=ended_process())
    for place in (path.parent.parent, path.parent):
        place.chmod(0o777)
    assert said_to_a_stranger(tmp_path) == ""
    found = lease_status(tmp_path)
    assert found.lease is not None
    assert found.lease.users == sorted({os.getuid(), STRANGER})
    assert not path.exists()


def test_the_date_decides_if_proc_hides_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: "subprocess.Popen[str]"
) -> None:
    left_behind(tmp_path, 5, pid=process.pid, ticks=lease_process.start_ticks(process.pid))
    monkeypatch.setattr(lease_process, "_stat", lambda _: ("", 0))
    assert lease_status(tmp_path).alive is None
    assert lease_status(tmp_path).live


def test_a_zombie_process_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as run:
        left_behind(tmp_path, 5, pid=run.pid, ticks=lease_process.start_ticks(run.pid))
        assert lease_status(tmp_path).live
        run.kill()
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
        assert not lease_status(tmp_path).live


def test_a_wrong_clock_of_this_machine_does_not_expire_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path, 5, boot="b7")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert lease_status(tmp_path).live
    assert 0 <= lease_status(tmp_path).silent < 60


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"host": "node7", "check": "0"}'])
def test_an_incomplete_lease_is_live_until_it_expires(tmp_path: Path, text: bytes) -> None:
    path = left_behind(tmp_path, 5)
    path.write_bytes(text)
    assert lease_status(tmp_path).lease is None
    with pytest.raises(UserError, match="a host that is not known yet"):
        lease.acquire(tmp_path, "")
    then = lease_file.file_clock(tmp_path) - 200
    os.utime(path, (then, then))
    assert not lease_status(tmp_path).live


def test_a_record_that_is_being_replaced_is_read_as_old_new_or_none() -> None:
    old = lease.for_this_process("snakemake", set())
    new = old._replace(pid=old.pid + 1, ticks=old.ticks + 123456)
    before, after = lease_file.packed(old), lease_file.packed(new)
    assert len(before) == len(after)
    assert lease_file.unpacked(after) == new
    for cut in range(len(before)):
        assert lease_file.unpacked(after[:cut] + before[cut:]) in (None, old, new)


def test_a_released_lease_leaves_the_folder_free(tmp_path: Path) -> None:
    with lease.hold(tmp_path, "first", pytest.fail) as first:
        assert not first.after_killed
        assert lease_status(tmp_path).live
    assert lease.current(tmp_path) is None
    with lease.hold(tmp_path, "second", pytest.fail) as second:
        assert not second.after_killed
        assert second.number == first.number + 1


def test_the_next_run_after_a_killed_one_on_this_host_starts_at_once(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, pid=ended_process())
    began = time.monotonic()
    with lease.hold(tmp_path, "second", pytest.fail) as second:
        assert second.after_killed
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("fields", "age", "words"),
    [
        ({}, 5, ["process {pid}", "last sign of life 5 s ago", "kill {pid}"]),
        (
            {"boot": "b7", "host": "node7", "pid": 12},
            5,
            ["on node7: kill 12", "node7 is gone for good", "in 115 s"],
        ),
        ({"namespaces": "1 1", "host": "box", "pid": 12}, 5, ["on box: kill 12", "expires"]),
        ({}, 500, ["its process is stopped", "kill -CONT {pid}"]),
    ],
    ids=["this host", "other host", "other container", "stopped"],
)
def test_a_refusal_gives_the_holder_the_times_and_the_remedy(
    tmp_path: Path, fields: dict[str, Any], age: float, words: list[str]
) -> None:
    left_behind(tmp_path, age, user="ann", **fields)
    with pytest.raises(UserError) as refused:
        lease.acquire(tmp_path, "")
    said = str(refused.value)
    for word in ["ann on ", "(snakemake saes)", "since 20", "model=both", "use two clones", *words]:
        assert word.format(pid=os.getpid()).lower() in said.lower(), said


def test_the_remedy_for_a_lock_of_a_lost_machine_works(tmp_path: Path) -> None:
    path = left_behind(tmp_path, 500, boot="b7", host="node7")
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"node7 is gone for good: delete results/\.run"):
            lease.acquire(tmp_path, "")
        path.unlink()
        path.parent.rmdir()
        lease.acquire(tmp_path, "").release()


def test_an_expired_lease_of_another_host_is_watched_before_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1.0)
    path = left_behind(tmp_path, 500, boot="b7", host="node7")
    renewal = threading.Timer(0.4, os.utime, [path])
    renewal.start()
    with pytest.raises(UserError, match=r"another run is active.*node7"):
        lease.acquire(tmp_path, "")
    renewal.join()
    then = time.time() - 500
    os.utime(path, (then, then))
    held = lease.acquire(tmp_path, "")
    assert held.after_killed
    assert "Watching for 1 s" in capsys.readouterr().err
    held.release()


# Each turn takes the lease, checks that no other process has it, and releases or leaves it.
TURNS = """
import os, sys, time
from pathlib import Path
from ghosttrack.runtime import files, lease
from ghosttrack.errors import UserError
def refused(handle):
    raise OSError(38, "no locks here")
if sys.argv[1] == "without flock":
    files.flock = refused
folder, turns, others = Path.cwd(), 0, 0
end = time.monotonic() + 6
while time.monotonic() < end:
    try:
        held = lease.acquire(folder, "turn")
    except UserError:
        others += 1
        continue
    os.close(os.open("inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
    time.sleep(0.001)
    os.unlink("inside")
    turns += 1
    if turns % 3:
        held.release()
    else:
        held.hand_over(int(sys.argv[2]))
        held.leave()
print(turns, others)
"""


@pytest.mark.parametrize("flock", ["with flock", "without flock"])
def test_exactly_one_of_several_runs_takes_the_lease(tmp_path: Path, flock: str) -> None:
    dead = str(ended_process())
    runs = [python(TURNS, flock, dead, folder=tmp_path) for _ in range(5)]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 5, said
    counts = [[int(number) for number in text.split()] for text in said]
    assert sum(turns for turns, _ in counts) > 10, counts
    assert sum(others for _, others in counts) > 0, counts


def test_a_delayed_run_withdraws(tmp_path: Path) -> None:
    first = lease.acquire(tmp_path, "first")
    first.release()
    second = lease.acquire(tmp_path, "second")
    late = lease.for_this_process("late", set())
    assert (
        lease_file.create(tmp_path, first.number, late) is None
    )  # it read the folder before the first run started
    assert lease_file.create(tmp_path, second.number, late) is None
    assert second.renew()
    assert [path.name for path in second.path.parent.iterdir()] == [second.path.name]
    second.release()
    assert lease_file.create(tmp_path, second.number, late) is None
    assert lease.current(tmp_path) is None


def test_the_old_holder_notices_a_takeover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    said: list[str] = []
    with lease.hold(tmp_path, "old", said.append) as old:
        time.sleep(0.3)
        assert said == []
        new = old.lease._replace(user="bob", host="node7", token="other")
        lease_file.create(tmp_path, old.number + 1, new)
        time.sleep(0.5)
    assert len(said) == 1
    assert "the run of bob on node7" in said[0]
    assert "no sign of life for more than 120 s" in said[0]
    found = lease_status(tmp_path)
    assert found.lease == new._replace(
        inode=found.inode
    )  # the old holder does not release the new lease


def test_a_deleted_lease_is_created_again(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path, "")
    held.path.unlink()
    held.path.parent.rmdir()
    assert held.renew()
    assert lease_status(tmp_path).locked
    assert lease_status(tmp_path).lease == held.lease._replace(inode=held.path.stat().st_ino)
    held.release()


def test_renewing_keeps_a_lease_fresh(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path, "")
    then = time.time() - 500
    os.utime(held.path, (then, then))
    assert lease_status(tmp_path).expired
    assert held.renew()
    assert not lease_status(tmp_path).expired
    held.release()


ADOPT = """
import os, sys
from pathlib import Path
from ghosttrack.runtime import lease
held = lease.hold_for_this_process(Path.cwd())
assert lease.hold_for_this_process(Path.cwd()) is held
print(held.number, held.lease.token, held.lease.pid == os.getpid(), lease.VARIABLE in os.environ, flush=True)
sys.stdin.read()
"""


def test_a_plain_snakemake_takes_the_lease_and_releases_it_at_its_end(tmp_path: Path) -> None:
    with python(ADOPT, folder=tmp_path) as run:
        assert run.stdout is not None
        assert run.stdout.readline().split()[0::2] == ["1", "True"]
        assert lease_status(tmp_path).live
        run.communicate()
    assert run.returncode == 0
    assert lease.current(tmp_path) is None


def test_the_snakemake_of_launch_shares_its_lease_and_jobs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease.acquire(tmp_path, "launch")
    monkeypatch.setitem(PACKAGE, lease.VARIABLE, f"{held.lease.token} {os.getpid()}")
    with python(ADOPT, folder=tmp_path) as run:
        assert run.stdout is not None
        assert run.stdout.readline().split() == [
            str(held.number),
            held.lease.token,
            "True",
            "False",
        ]
        found = lease_status(tmp_path)
        assert found.lease is not None
        assert found.lease.pid == run.pid
        run.communicate()
    assert not held.renew()  # released by both, without a message about a takeover
    assert held._done.is_set()


def test_a_snakemake_is_refused_if_its_launch_has_lost_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = lease.acquire(tmp_path, "old")
    lease_file.create(tmp_path, old.number + 1, old.lease._replace(token="other", user="bob"))
    monkeypatch.setitem(PACKAGE, lease.VARIABLE, f"{old.lease.token} {os.getpid()}")
    with python(ADOPT, folder=tmp_path) as run:
        said, _ = run.communicate()
    assert run.returncode == 1
    assert "another run is active in this folder: bob" in said
    old.leave()


def test_a_lease_keeps_the_ids_of_all_earlier_holders(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, pid=ended_process(), users=[4711])
    assert lease.users(tmp_path) == {4711}
    lease.acquire(tmp_path, "").release()
    assert lease.users(tmp_path) == {4711, os.getuid()}
