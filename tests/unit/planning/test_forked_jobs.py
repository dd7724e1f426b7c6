"""Jobs that are forked run as jobs that are started: same results, exit codes and measurements."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from snakemake.benchmark import BenchmarkRecord

from ghosttrack.planning import forked_jobs
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")

# A workflow of six jobs; every script writes what it sees of its process.
SNAKEFILE = """
from ghosttrack.planning import forked_jobs
forked_jobs.TORCH = ("json", "decimal")
forked_jobs.modules_of = lambda script: forked_jobs.TORCH
forked_jobs.install(workflow)
rule all:
    input: expand("{n}.json", n=range(5)), "two_threads.json"
rule one:
    output: "{n,[0-9]+}.json"
    benchmark: "{n}.tsv"
    script: "look.py"
rule two_threads:
    input: expand("{n}.json", n=range(5))
    output: "two_threads.json"
    threads: 2
    script: "look.py"
"""
LOOK = """
import json, os, sys, time
parent = open(f"/proc/{os.getppid()}/cmdline").read().replace(chr(0), " ")
names = ("OMP_NUM_THREADS", "TMPDIR", "GIVEN")
content = {
    "forked": "fork_server" in parent,
    "preloaded": "decimal" in sys.modules,
    "title": open("/proc/self/cmdline").read().replace(chr(0), " ").strip(),
    "argv": sys.argv, "main": __name__, "path": sys.path[0], "folder": os.getcwd(),
    "variables": {name: os.environ.get(name) for name in names},
    "threads": len(os.listdir("/proc/self/task")),
}
# Snakemake measures a job at its start, when it is a shell, and after half a second.
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
json.dump(content, open(snakemake.output[0], "w"))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[forked_jobs.Server]:
    monkeypatch.setattr(forked_jobs, "STARTED_AS_USUAL", 0)
    server = forked_jobs.Server(("json",))
    yield server
    server.close()


def _script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tmp1.train_sae.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_forked_jobs_of_snakemake_equal_started_ones(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "look.py").write_text(LOOK, encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"]
    scripts = str(ROOT / "workflow_scripts")
    environment = {**os.environ, "GIVEN": "value", "PYTHONPATH": scripts}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)

    jobs = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(5)]
    assert sorted(job["forked"] for job in jobs) == [False, False, True, True, True]
    for job in jobs:
        assert job["preloaded"] == job["forked"]
        assert job["title"] == f"{sys.executable} {job['argv'][0]}"
        (script,) = job["argv"]
        assert script.startswith(str(tmp_path / ".snakemake" / "scripts"))
        assert job["path"] == str(Path(script).parent)
        assert (job["main"], job["folder"], job["threads"]) == ("__main__", str(tmp_path), 1)
    assert len({json.dumps(job["variables"]) for job in jobs}) == 1
    assert jobs[0]["variables"]["GIVEN"] == "value"
    assert jobs[0]["variables"]["OMP_NUM_THREADS"] == "1"
    assert jobs[0]["variables"]["TMPDIR"]
    last = json.loads((tmp_path / "two_threads.json").read_text())
    assert (last["forked"], last["variables"]["OMP_NUM_THREADS"]) == (False, "2")
    for n in range(5):
        header, row = (tmp_path / f"{n}.tsv").read_text().splitlines()
        measured = dict(zip(header.split("\t"), row.split("\t"), strict=True))
        assert float(measured["max_rss"]) > 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('wrong')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import sys, atexit; atexit.register(print, 'ends'); sys.exit(143)", 143),
    ],
)
def test_the_exit_code_is_that_of_the_script(
    server: forked_jobs.Server, tmp_path: Path, text: str, code: int
) -> None:
    assert server.run(_script(tmp_path, text), dict(os.environ), None) == code


def test_jobs_side_by_side_each_get_their_exit_code(
    server: forked_jobs.Server, tmp_path: Path
) -> None:
    script = _script(tmp_path, "import os, sys; sys.exit(int(os.environ['CODE']))")
    codes: dict[int, int | None] = {}

    def run(code: int) -> None:
        codes[code] = server.run(script, {**os.environ, "CODE": str(code)}, None)

    threads = [threading.Thread(target=run, args=[code]) for code in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {code: code for code in range(12)}


def test_the_measurement_is_that_of_the_job(server: forked_jobs.Server, tmp_path: Path) -> None:
    text = "import time\nblock = bytearray(90_000_000)\nblock[:] = b'1' * len(block)\ntime.sleep(2)"
    record = BenchmarkRecord()
    assert server.run(_script(tmp_path, text), dict(os.environ), record) == 0
    assert record.max_rss > 90  # MB
    assert record.running_time > 2


def test_a_job_that_ends_before_it_is_measured_has_its_exit_code(
    server: forked_jobs.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = forked_jobs._measured

    def late(process: int, record: BenchmarkRecord) -> contextlib.AbstractContextManager[Any]:
        end = time.monotonic() + 30
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
            time.sleep(0.05)
        return measured(process, record)

    monkeypatch.setattr(forked_jobs, "_measured", late)
    for text, code in (("pass", 0), ("raise SystemExit(3)", 3)):
        assert server.run(_script(tmp_path, text), dict(os.environ), BenchmarkRecord()) == code
    assert server.process is not None
    assert not _children_after(server.process.pid)


def _children_after(process: int) -> list[psutil.Process]:
    """Children of a process that are left after some seconds."""
    end = time.monotonic() + 10
    while (found := psutil.Process(process).children(recursive=True)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_job_starts_as_usual_when_the_server_is_gone(
    server: forked_jobs.Server, tmp_path: Path
) -> None:
    script = _script(tmp_path, "pass")
    assert server.run(script, dict(os.environ), None) == 0
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert server.run(script, dict(os.environ), None) is None


def test_a_job_starts_as_usual_when_the_imports_start_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()",
        encoding="utf-8",
    )
    monkeypatch.setattr(forked_jobs, "STARTED_AS_USUAL", 0)
    server = forked_jobs.Server(("with_thread",))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    assert server.run(_script(tmp_path, "pass"), environment, None) is None
    server.close()


def test_a_job_whose_watcher_is_killed_is_ended(server: forked_jobs.Server, tmp_path: Path) -> None:
    text = (
        "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\ntime.sleep(60)"
    )
    script = _script(tmp_path, text.replace("'pids'", repr(str(tmp_path / "pids"))))
    results: list[int | None] = []
    thread = threading.Thread(
        target=lambda: results.append(server.run(script, dict(os.environ), None))
    )
    thread.start()
    pids = _read(tmp_path / "pids")
    os.kill(pids[1], signal.SIGKILL)
    thread.join(30)
    assert results == [-signal.SIGKILL]
    _ended(pids[0])


def test_the_server_ends_with_its_client_and_the_job_continues(tmp_path: Path) -> None:
    text = (
        "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\ntime.sleep(60)"
    )
    script = _script(tmp_path, text.replace("'pids'", repr(str(tmp_path / "pids"))))
    client = (
        "import os\nfrom ghosttrack.planning import forked_jobs as f\n"
        f"f.STARTED_AS_USUAL = 0\nf.Server(('json',)).run({script!r}, dict(os.environ), None)"
    )
    process = subprocess.Popen([sys.executable, "-c", client])
    job, watcher = _read(tmp_path / "pids")
    server = psutil.Process(watcher).ppid()
    process.kill()
    process.wait()
    _ended(server)
    assert psutil.pid_exists(job)
    os.kill(job, signal.SIGTERM)
    _ended(job)
    _ended(watcher)


def test_which_server_a_script_is_forked_from() -> None:
    expected = {
        forked_jobs.TORCH: ("train_sae", "find_neighbours", "measure_answers"),
        forked_jobs.MODEL: ("check_model", "extract_examples", "save_detector"),
        forked_jobs.ANALYSIS: ("audit_dataset", "train_detectors"),
        (): ("fetch_dataset", "write_report", "of_another_workflow"),
    }
    for modules, rules in expected.items():
        for rule in rules:
            assert forked_jobs.modules_of(f".snakemake/scripts/tmp12.{rule}.py") == modules


@pytest.mark.parametrize("modules", [forked_jobs.MODEL, forked_jobs.ANALYSIS])
def test_the_modules_start_no_thread(modules: tuple[str, ...]) -> None:
    code = (
        "import importlib, os, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert len(os.listdir('/proc/self/task')) == 1"
    )
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, **forked_jobs.NO_THREADS}
    assert set(forked_jobs.TORCH) < set(forked_jobs.MODEL)
    subprocess.run([sys.executable, "-c", code, *modules], env=environment, check=True)


def _read(path: Path) -> list[int]:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    return [int(word) for word in path.read_text().split()]


def _ended(process: int) -> None:
    end = time.monotonic() + 30
    while psutil.pid_exists(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(process)
