"""`python -m ghosttrack.launch ARGS`: snakemake ARGS, after clearing the lock of a run that was killed.

A lock is stale when no process works in this directory any more; a live one is never touched.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil


def main(arguments: list[str]) -> int:
    """Run Snakemake here; return its exit code, or 1 when another run is alive in this directory."""
    here = Path.cwd()
    if alive := workers(here):
        listed = ", ".join(f"{process.pid}" for process in alive)
        print(
            f"error: another run is working in this directory (process {listed}). "
            f"Wait for it, or end it with: kill {listed.replace(',', '')}",
            file=sys.stderr,
        )
        return 1
    snakemake = [sys.executable, "-m", "snakemake"]
    locks = here / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        print("clearing the lock of a run that was killed", file=sys.stderr)
        for path in locks.iterdir():
            path.unlink()
    return subprocess.call([*snakemake, *arguments])


def workers(directory: Path) -> list[psutil.Process]:
    """Snakemake processes and their jobs that run in `directory`, this process and its parents left out."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if process.pid in mine or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        command = " ".join(process.info["cmdline"] or [])
        if "snakemake" not in command or "python" not in command:
            continue
        try:
            if Path(process.cwd()) == directory:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
