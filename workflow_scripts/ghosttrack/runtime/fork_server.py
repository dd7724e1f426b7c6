"""`python -m ghosttrack.runtime.fork_server SOCKET MODULE ...`: a process that jobs are forked from.

Importing torch and transformers costs 5 to 10 CPU seconds, scikit-learn and pandas 2: most jobs on
small data take less. This process imports the modules once; each job is a fork of it and finds them imported. The client is
`planning/forked_jobs.py`, which sends a connection per job over the socket with the given file
descriptor. Over the connection go one line of JSON with the job, then from here the process id of
the job, and its exit code when it ends. The server ends with its client; running jobs continue.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import setproctitle


def main(arguments: list[str]) -> int:
    """Import the modules, then fork a job for every connection until the client ends.

    Returns:
        0, also in every job whose script ends by itself; 1 if the imports started threads, which a
        fork would lose.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs
    for name in arguments[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return 1
    setproctitle.getproctitle()  # finds the memory of the command line before anything changes it
    gc.freeze()  # the collector of a job does not write to what it shares with this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no watcher stays as a zombie
    control = socket.socket(fileno=int(arguments[0]))
    while True:
        handles = socket.recv_fds(control, 1, 1)[1]
        if not handles:
            return 0
        with socket.socket(fileno=handles[0]) as connection:
            if os.fork() == 0:
                control.close()
                _watch(connection)
                return 0  # in a job, whose script has ended by itself


def _watch(connection: socket.socket) -> None:
    """Fork the job and report how it ends. Only the job returns from here."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the job ends by it, and this process reports it
    with connection.makefile("r", encoding="utf-8") as lines:
        job = json.loads(lines.readline())
    if (process := os.fork()) == 0:
        connection.close()
        _run(job)
        return
    with contextlib.suppress(OSError):  # the client was killed: the job continues
        connection.sendall(b"%d\n" % process)
    # A short job stays a zombie until the client has closed the connection, so that the client can
    # measure it whenever it gets to that.
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    if ended is not None:
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % code)
            connection.recv(1)
    os.waitpid(process, 0)
    os._exit(0)


def _run(job: dict[str, Any]) -> None:
    """Run the script of a job as `python SCRIPT` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(job["environment"])
    tempfile.tempdir = None
    script = job["script"]
    setproctitle.setproctitle(f"{sys.executable} {script}")
    sys.argv[:] = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
