"""Makes the package importable in every job, whichever folder its script is in."""

import os
from pathlib import Path


def provide(scripts: Path) -> None:
    """Put `scripts`, the folder of the package, first in PYTHONPATH of this process and its jobs.

    Under Snakemake a script can only import from its own folder. A Slurm job reads the Snakefile
    again, which calls this function again.
    """
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(scripts) not in others:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(scripts), *others])
