"""Lets every job import the package, wherever its script lies."""

import os
from pathlib import Path


def provide(scripts: Path) -> None:
    """Put `scripts`, which holds the package, first in PYTHONPATH of this process and of every job that it starts.

    Snakemake lets a script import from the script's own folder alone. A Slurm job reads the Snakefile again, and so
    gets the same path.
    """
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(scripts) not in others:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(scripts), *others])
