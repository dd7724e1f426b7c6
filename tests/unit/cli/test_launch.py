"""`launch` beside other runs: on another host, in a container, of another user, killed, asleep.

No live lock is removed and no job runs twice. Another host is simulated by separate namespaces
(where the kernel allows them) or by patching the host identity at the start of Python, with and
without flock.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from ghosttrack.cli import launch
from ghosttrack.runtime import files, lease, lease_file

SNAKEFILE = """
import time
from pathlib import Path
from ghosttrack.planning import orphans
from ghosttrack.runtime import lease
from ghosttrack.errors import UserError

while Path("reading").exists():
    time.sleep(0.05)

onstart:
    try:
        lease.hold_for_this_process(Path.cwd())
    except UserError:
        workflow.persistence.unlock = lambda: None
        raise
    orphans.refuse(Path.cwd(), require_slurm=False)

rule slow:
    output: "results/{name}.txt"
    script: "slow.py"

rule spawned:
    output: "results/spawned"
    run: Path(output[0]).touch()
"""
# It works until a file called `go` is there.
SLOW = """
import os, time
from pathlib import Path
with open("began", "a") as stream:
    stream.write(f"{os.getpid()}\\n")
while not Path("go").exists():
    time.sleep(0.05)
Path(snakemake.output[0]).write_text(f"{os.getpid()}")
"""
COMMAND = ("--cores", "2", "results/a.txt")
NODE7 = """
import os
from ghosttrack.runtime import files, lease, lease_process
lease_process.boot_id = lambda: "boot of node7"
here = os.uname()
os.uname = lambda: os.uname_result((here[0], "node7", *here[2:]))
"""
NO_FLOCK = """
def refused(handle):
    raise OSError(38, "no locks here")
files.flock = refused
"""
UNSHARE = (
    "unshare",
    "--user",
    "--map-root-user",
    "--pid",
    "--uts",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    'hostname node7 && exec "$@"',
    "sh",
)


def _interruptible() -> None:
    """Restore the default handling of Ctrl-C in a new process; a shell may have disabled it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Place(NamedTuple):
    """Where a command runs: the command prefix, and code that its Python runs first."""

    before: tuple[str, ...] = ()
    site: str = "from ghosttrack.runtime import files, lease\n"

    def start(self, folder: Path, *command: str, **options: object) -> "subprocess.Popen[str]":
        """Run a Python module there in a new session; its output is the file `screen_N`."""
        number = len(list(folder.glob("site_*")))
        site = folder / f"site_{number}"
        site.mkdir()
        (site / "sitecustomize.py").write_text(self.site)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{site}:{Path(files.__file__).parents[2]}",
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home"),
            "USER": "someone",
        }
        for name in (lease.VARIABLE, "SLURM_JOB_ID"):
            environment.pop(name, None)
        screen = folder / f"screen_{number}"
        with screen.open("w") as stream:
            run = subprocess.Popen(
                [*self.before, sys.executable, "-m", *command],
                cwd=folder,
                env=environment,
                text=True,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                umask=0o002,
                **{"preexec_fn": _interruptible, **options},
            )  # type: ignore[call-overload]
        screens[run.pid] = screen
        return run  # type: ignore[no-any-return]

    def run(self, folder: Path, *command: str) -> tuple[int, str]:
        """Exit code and output."""
        run = self.start(folder, *command)
        return run.wait(timeout=120), screens[run.pid].read_text()


screens: dict[int, Path] = {}
HERE = Place()
QUICK = Place(site=f"{HERE.site}lease.WATCH_SECONDS = 0.5\n")


def other_hosts() -> dict[str, Place]:
    """Node7 simulated in every way that works here."""
    allowed = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    real = {"namespaces": Place(UNSHARE)} if allowed else {}
    return {**real, "flock": Place(site=NODE7), "no flock": Place(site=NODE7 + NO_FLOCK)}


HOSTS = other_hosts()
everywhere = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A small workflow; processes that a test leaves running are killed."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "slow.py").write_text(SLOW)
    for name in ("home", "results", ".snakemake"):
        (tmp_path / name).mkdir()
    yield tmp_path
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == tmp_path:
                process.kill()


def until(wanted: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def began(folder: Path) -> list[str]:
    """Process ids of the started jobs in their namespace."""
    return (folder / "began").read_text().split() if (folder / "began").exists() else []


def at_work(
    folder: Path, place: Place, *command: str, **options: object
) -> "subprocess.Popen[str]":
    """A run in the middle of its job."""
    before = len(began(folder))
    run = place.start(folder, *(command or ("ghosttrack.cli.launch", *COMMAND)), **options)
    until(lambda: len(began(folder)) > before or run.poll() is not None, "the job")
    assert run.poll() is None, screens[run.pid].read_text()
    return run


def locks(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in lease.snakemake_locks(folder)}


def kill(run: "subprocess.Popen[str]") -> None:
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def finish(folder: Path, run: "subprocess.Popen[str]") -> None:
    (folder / "go").touch()
    assert run.wait(timeout=60) == 0, screens[run.pid].read_text()


def age(folder: Path, seconds: float) -> None:
    """Set the age of the lease and of Snakemake's lock."""
    found = lease.current(folder)
    then = lease_file.file_clock(folder) - seconds
    for path in [*lease.snakemake_locks(folder), *([found.path] if found else [])]:
        os.utime(path, (then, then))


@everywhere
def test_a_run_of_another_host_is_left_alone(folder: Path, host: Place) -> None:
    run = at_work(folder, host)
    held = locks(folder)
    assert held

    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert code == 1
    assert "another run is active in this folder: " in said
    assert " on node7, process " in said
    assert "end it on node7: kill " in said
    assert "last sign of life " in said

    code, said = HERE.run(folder, "ghosttrack.cli.launch", "--cores", "1", "results/b.txt")
    assert (code, " on node7, process " in said) == (1, True)
    code, said = HERE.run(folder, "snakemake", "--cores", "1", "results/b.txt")
    assert (code, " on node7, process " in said) == (1, True)
    code, said = HERE.run(folder, "snakemake", *COMMAND)
    assert (code, "cannot be locked" in said) == (1, True)

    for choice in ((), ("--cancel",)):
        code, said = HERE.run(folder, "ghosttrack.planning.orphans", *choice)
        assert code == 1
        assert "A run is active in this folder" in said
        assert "its jobs are no orphans" in said
    assert {name: text for name, text in locks(folder).items() if name in held} == held

    finish(folder, run)
    assert len(began(folder)) == 1
    assert not (folder / "results/b.txt").exists()
    assert lease.current(folder) is None
    assert locks(folder) == {}


def test_a_dry_run_beside_a_run_needs_no_lease(folder: Path) -> None:
    run = at_work(folder, HERE)
    held = locks(folder)
    code, said = HERE.run(folder, "ghosttrack.cli.launch", "-n", *COMMAND)
    assert (code, "This was a dry-run" in said) == (0, True)
    assert locks(folder) == held
    finish(folder, run)


@everywhere
def test_a_killed_run_of_another_host_is_waited_for_and_then_replaced(
    folder: Path, host: Place
) -> None:
    kill(at_work(folder, host))
    held = locks(folder)
    code, said = QUICK.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert code == 1
    assert "If node7 is gone for good, its lease expires in 1" in said
    assert locks(folder) == held
    age(folder, 200)
    (folder / "go").touch()
    code, said = QUICK.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert code == 0, said
    assert "the lease of the run of" in said.lower()
    assert "clearing the lock of a run that was killed" in said


@pytest.mark.parametrize(
    ("name", "starter"),
    [(name, "ghosttrack.cli.launch") for name in HOSTS] + [("no flock", "snakemake")],
)
def test_a_run_that_lost_its_lease_ends_with_its_jobs_and_leaves_the_others_files_alone(
    folder: Path, name: str, starter: str
) -> None:
    host = HOSTS[name]
    asleep = host._replace(site=f"{host.site}lease.RENEW_SECONDS = 0.3\n")
    ignore = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    }  # as a shell does for `command &`
    run = at_work(folder, asleep, starter, "--keep-going", *COMMAND, **ignore)
    found = lease.current(folder)
    assert found is not None
    assert found.lease is not None
    other = found.lease._replace(token="other", user="bob", host="node8")
    assert lease_file.create(folder, found.number + 1, other) is not None
    (folder / "results/a.txt").write_text("of the other run")
    assert run.wait(timeout=30) == 1
    said = screens[run.pid].read_text()
    assert said.count("the run of bob on node8") == 1, said
    assert "This run ends now, so that no job runs twice" in said
    assert "Terminating processes on user request" in said
    assert (folder / "results/a.txt").read_text() == "of the other run"
    assert not (folder / "go").exists()
    until(lambda: not jobs(folder), "the end of the job", 10)


def jobs(folder: Path) -> list[int]:
    """Processes of all namespaces that run the job's script."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):
            if (
                any(".slow.py" in word for word in process.info["cmdline"] or [])
                and Path(process.cwd()) == folder
            ):
                found.append(process.pid)
    return found


def test_after_kill_9_the_same_command_goes_on_at_once(folder: Path) -> None:
    kill(at_work(folder, HERE))
    assert locks(folder)
    (folder / "go").touch()
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert code == 0, said
    assert "clearing the lock of a run that was killed" in said
    assert "watching" not in said
    assert lease.current(folder) is None


@pytest.mark.parametrize("starter", ["ghosttrack.cli.launch", "snakemake"])
def test_jobs_that_outlive_their_snakemake_stop_the_next_run_and_cancel_ends_them(
    folder: Path, starter: str
) -> None:
    run = at_work(folder, HERE, starter, *COMMAND)
    family = [run.pid, *(child.pid for child in psutil.Process(run.pid).children())]
    for pid in family if starter == "ghosttrack.cli.launch" else family[:1]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert (code, "1 job of an earlier run still running" in said) == (1, True), said
    code, said = HERE.run(folder, "ghosttrack.planning.orphans", "--cancel")
    assert (code, "no orphans" in said) == (0, True), said
    (folder / "go").touch()
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert code == 0, said


def test_a_snakemake_whose_launch_alone_was_killed_keeps_the_lease(folder: Path) -> None:
    run = at_work(folder, HERE)
    (snakemake,) = psutil.Process(run.pid).children()
    run.kill()
    run.wait()
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert (code, f"kill {snakemake.pid}" in said) == (1, True), said
    (folder / "go").touch()
    until(lambda: lease.current(folder) is None, "the end of the run")
    assert len(began(folder)) == 1


@pytest.mark.parametrize(
    "place", [HERE, Place(site=HERE.site + NO_FLOCK)], ids=["flock", "no flock"]
)
def test_a_snakemake_that_still_reads_its_workflow_keeps_the_lease_of_its_killed_launch(
    folder: Path, place: Place
) -> None:
    (folder / "reading").touch()
    run = place.start(folder, "ghosttrack.cli.launch", *COMMAND)
    until(
        lambda: (found := lease.current(folder)) and found.lease and found.lease.pid != run.pid,
        "Snakemake",
    )
    (snakemake,) = psutil.Process(run.pid).children()
    run.kill()
    run.wait()
    code, said = place.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert (
        code,
        f"another run is active in this folder: {files.user_name(os.getuid())}" in said,
    ) == (1, True), said
    assert f"kill {snakemake.pid}" in said
    (folder / "go").touch()
    (folder / "reading").unlink()
    until(lambda: lease.current(folder) is None, "the end of the run")
    assert len(began(folder)) == 1


def test_a_snakemake_that_was_killed_under_launch_leaves_a_dead_lease(folder: Path) -> None:
    run = at_work(folder, HERE)
    (snakemake,) = psutil.Process(run.pid).children()
    snakemake.kill()
    assert run.wait(timeout=30) != 0
    found = lease.current(folder)
    assert found is not None
    assert not found.live
    for pid in jobs(folder):
        os.kill(pid, signal.SIGKILL)
    (folder / "go").touch()
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert (code, "clearing the lock" in said) == (0, True), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_snakemake_which_ends_in_order(
    folder: Path, number: signal.Signals
) -> None:
    run = at_work(folder, HERE)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # Ctrl-C goes to everyone
    else:
        run.send_signal(number)
        time.sleep(1)
        (folder / "go").touch()  # Snakemake lets running jobs finish
    run.wait(timeout=60)
    said = screens[run.pid].read_text()
    assert "launch.py" not in said  # no traceback of its own
    assert (
        "Terminating processes" if number == signal.SIGINT else "Will exit after finishing"
    ) in said
    assert lease.current(folder) is None
    assert locks(folder) == {}


def test_a_lock_without_a_lease_is_cleared_only_when_it_is_old(folder: Path) -> None:
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.output.lock").write_text("results/a.txt\n")
    age(folder, 20)
    (folder / "go").touch()
    for _ in range(2):  # being refused changes nothing
        code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
        assert code == 1
        assert ".snakemake/locks was made 2" in said
        assert "no Snakemake is at work in this folder on any host" in said
        assert "snakemake --unlock" in said
        assert locks(folder)
    age(folder, 200)
    code, said = HERE.run(folder, "ghosttrack.cli.launch", *COMMAND)
    assert (code, "clearing the lock" in said) == (0, True), said


def test_a_job_that_reads_the_workflow_again_takes_no_lease(folder: Path) -> None:
    code, said = HERE.run(folder, "ghosttrack.cli.launch", "--cores", "1", "results/spawned")
    assert code == 0, said
    assert [path.name for path in (folder / lease_file.DIRECTORY).iterdir()] == [
        "lease_000001.ended"
    ]


@pytest.mark.parametrize(
    "words",
    ["-n", "-np", "--dry-run", "--dryrun", "--summary", "--dag=dot", "--list-rules", "--lt"],
)
def test_what_only_reads_needs_no_lease(words: str) -> None:
    assert launch._READ_ONLY.fullmatch(words)


@pytest.mark.parametrize(
    "words", ["saes", "-j10", "-R", "--unlock", "--touch", "--delete-all-output", "--nolock", "-k"]
)
def test_what_changes_files_needs_a_lease(words: str) -> None:
    assert not launch._READ_ONLY.fullmatch(words)


# ---- two users of one folder
def user(number: int) -> Place:
    """Another user of the group, who may read every file, since the interpreter may be in a home."""
    if os.getuid() == 0:
        capability = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        return Place(
            ("setpriv", f"--reuid={number}", "--regid=54321", "--clear-groups", *capability, "--")
        )
    return Place(site=f"{HERE.site}files.user_name = lambda uid: 'user {number}'\n")


@pytest.fixture
def shared(folder: Path) -> Path:
    """The folder with write access for the group."""
    if os.getuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, -1, 54321)
            path.chmod(0o2775)
    return folder


def test_a_run_of_another_user_is_left_alone(shared: Path) -> None:
    run = at_work(shared, user(54001))
    held = locks(shared)
    code, said = user(54002).run(shared, "ghosttrack.cli.launch", *COMMAND)
    assert (code, "another run is active in this folder: user 54001 on " in said) == (1, True), said
    code, said = user(54002).run(shared, "ghosttrack.planning.orphans", "--cancel")
    assert (code, "user 54001 on " in said) == (1, True), said
    assert locks(shared) == held
    finish(shared, run)
    assert len(began(shared)) == 1


def test_a_user_goes_on_at_once_where_another_ones_run_was_killed(shared: Path) -> None:
    kill(at_work(shared, user(54001)))
    (shared / "go").touch()
    code, said = user(54002).run(shared, "ghosttrack.cli.launch", *COMMAND)
    assert (code, "clearing the lock" in said) == (0, True), said


def test_a_job_that_another_users_killed_run_left_is_found(shared: Path) -> None:
    run = at_work(shared, user(54001))
    for process in [*psutil.Process(run.pid).children(), psutil.Process(run.pid)]:
        process.kill()
    run.wait()
    for _ in range(2):
        code, said = user(54002).run(shared, "ghosttrack.cli.launch", *COMMAND)
        assert (code, "1 job of an earlier run still running" in said) == (1, True), said
    assert ("of 54001" in said) == (os.getuid() == 0)
    assert len(began(shared)) == 1
    (shared / "go").touch()
