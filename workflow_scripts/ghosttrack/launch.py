"""`python -m ghosttrack.launch ARGS`: snakemake ARGS, after clearing the lock of a run that was killed.

A lock is stale when no Snakemake and none of its jobs work in this directory any more; a live one is never touched.
"""

import subprocess
import sys
from pathlib import Path

from ghosttrack import orphans, traps


def main(arguments: list[str]) -> int:
    """Run Snakemake here; return its exit code.

    1: another run, or what is left of one, works in this directory. 2: Snakemake could not read the arguments.
    """
    if reason := traps.refused_arguments(arguments):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    here = Path.cwd()
    if alive := orphans.runs(here):
        listed = ", ".join(f"{process.pid}" for process in alive)
        print(
            f"error: another run is working in this directory (process {listed}). "
            f"Wait for it, or end it with: kill {listed.replace(',', '')}",
            file=sys.stderr,
        )
        return 1
    if left := orphans.find(here):
        print(f"error: {orphans.described(left)}\n{orphans.REMEDY}", file=sys.stderr)
        return 1
    locks = here / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        print("clearing the lock of a run that was killed", file=sys.stderr)
        for path in locks.iterdir():
            path.unlink()
    return subprocess.call([sys.executable, "-m", "snakemake", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
