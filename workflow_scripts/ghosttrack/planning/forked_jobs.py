"""Jobs on this machine are forked from processes that have imported large libraries.

Snakemake starts a new Python for every job. In a run with many small jobs the imports are a quarter
of all CPU time. See `runtime/fork_server.py`.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghosttrack.settings import code_digest

# Jobs that start as usual before a server starts: a rerun of one or two jobs does not pay for it.
STARTED_AS_USUAL = 2
# What jobs with torch import, jobs that load a language model, and the jobs of ANALYSED. Each has a
# server, because what a job has imported counts as its memory.
TORCH: tuple[str, ...] = (
    "torch",
    "scipy.sparse",
    "pydantic",
    "snakemake.iocontainers",
    "snakemake.logging",
)
MODEL: tuple[str, ...] = (
    *TORCH,
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "scipy.stats",
    "zarr",
)
ANALYSIS: tuple[str, ...] = (
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "snakemake.iocontainers",
    "snakemake.logging",
)
# pyarrow, which pandas imports, has a memory allocator with a thread of its own.
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Rules with a job per data set that import scikit-learn in their functions.
ANALYSED = ("audit_dataset", "train_detectors")
# Variables by which Snakemake limits the threads of a job; libraries read them when imported.
_THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB", "NUMEXPR")


def install(workflow: Any) -> None:
    """Let the jobs that this Snakemake runs itself be forked, where that is the same as a start.

    A job starts as usual if its script does not import torch at its start and its rule is not in
    ANALYSED, if it has more than one thread or an environment of its own, on a machine with a GPU
    (a driver does not survive a fork), and on other systems than Linux. A Snakemake that runs one
    job, as in a Slurm job, forks none.
    """
    from snakemake.script import PythonScript

    if (
        sys.platform != "linux"
        or shutil.which("nvidia-smi")
        or not workflow.is_main_process
        or hasattr(PythonScript, "_as_usual")
    ):
        return
    servers = {modules: Server(modules) for modules in (TORCH, MODEL, ANALYSIS)}

    def execute(script: Any, command: str, **details: Any) -> Any:
        path = str(details.get("fname", ""))
        plain = details.get("is_python_script") and _is_plain(script)
        modules = modules_of(path) if plain else ()
        code = None
        if modules:
            code = servers[modules].run(path, _environment(script), script.bench_record)
        if code is None:
            return script._as_usual(command, **details)
        if code:
            shown = f"{shlex.quote(sys.executable)} {shlex.quote(path)}"
            raise subprocess.CalledProcessError(128 - code if code < 0 else code, shown)
        return None

    PythonScript._as_usual = PythonScript._execute_cmd
    PythonScript._execute_cmd = execute


def _is_plain(script: Any) -> bool:
    """Whether a job runs in the environment of this process, on one thread."""
    own = (script.conda_env, script.container_img, script.env_modules, script.shadow_dir)
    return not any(own) and script.threads == 1


def _environment(script: Any) -> dict[str, str]:
    """Environment variables of a job, those that Snakemake sets included."""
    variables = {**os.environ, **{f"{name}_NUM_THREADS": "1" for name in _THREADS}}
    if folder := script.resources.get("tmpdir"):
        variables |= dict.fromkeys(("TMPDIR", "TMP", "TEMPDIR", "TEMP"), str(folder))
    return variables


class Server:
    """A process that has imported `modules`; it starts with the third job that it is for."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._lock = threading.Lock()
        self._jobs = 0
        self._control: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, script: str, environment: dict[str, str], record: Any) -> int | None:
        """Run a script in a fork of the server, and wait for it.

        Args:
            script: path of the script that Snakemake has written, ending in RULE.py.
            environment: variables of the job.
            record: Snakemake's record of the job's time and memory, or None.
        Returns:
            The exit code; minus the signal that ended the job; None if the job was not started.
        """
        if not (connection := self._connect(environment)):
            return None
        with connection, connection.makefile("r", encoding="utf-8") as answers:
            try:
                job = json.dumps({"script": script, "environment": environment})
                connection.sendall(job.encode() + b"\n")
                process = answers.readline()
            except OSError:
                return None
            if not process:  # the server could not start
                return None
            with _measured(int(process), record):
                code = answers.readline()
            if not code:  # its watcher was killed: nobody would see how the job ends
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
                return -signal.SIGKILL
            return int(code)

    def close(self) -> None:
        """End the server; running jobs continue."""
        if self._control and self.process:
            self._control.close()
            self.process.wait()

    def _connect(self, environment: dict[str, str]) -> socket.socket | None:
        """A connection for one job; None if the job is to start as usual."""
        with self._lock:
            self._jobs += 1
            if self._jobs <= STARTED_AS_USUAL:
                return None
            if self._control is None:
                self._control, self.process = _start(self._modules, environment)
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._control, [b"."], [theirs.fileno()])
                except OSError:  # the server has ended
                    ours.close()
                    return None
            return ours


def _start(
    modules: Sequence[str], environment: dict[str, str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the server; it ends when the socket is closed, at the latest with this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ghosttrack.runtime.fork_server",
                str(theirs.fileno()),
                *modules,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment | NO_THREADS,
        )
    return ours, server


def modules_of(script: str) -> tuple[str, ...]:
    """Modules of the server for a script of a rule of this workflow; empty: it starts as usual."""
    rule = Path(script).name.split(".")[-2]
    if rule in ANALYSED:
        return ANALYSIS
    try:
        if not code_digest.imports_at_start(rule, "torch"):
            return ()
        return MODEL if code_digest.imports_at_start(rule, "ghosttrack.inputs.models") else TORCH
    except ValueError:  # a script of another workflow
        return ()


def _measured(process: int, record: Any) -> contextlib.AbstractContextManager[Any]:
    """Snakemake's measurement of a job with a file of benchmarks."""
    if record is None:
        return contextlib.nullcontext()
    from snakemake.benchmark import benchmarked

    measured: contextlib.AbstractContextManager[Any] = benchmarked(process, record)
    return measured
