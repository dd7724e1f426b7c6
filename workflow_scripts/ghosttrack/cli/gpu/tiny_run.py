"""The whole workflow on a tiny model, once on the CPU and once on the GPU, and what differs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ghosttrack.cli.gpu.agreement import Check
from ghosttrack.errors import UserError
from ghosttrack.runtime import tables
from ghosttrack.runtime.files import read_object

HOME = Path(__file__).resolve().parents[4]
# What a run needs of the project.
_PARTS = ("Snakefile", "config", "envs", "profiles", "rules", "workflow_scripts")
MODEL = "tiny-gpt2"
# An SAE is trained for some sixty steps of fp32 arithmetic in another order. A feature near the
# batch threshold may be active on one device only, and the difference then grows.
FVU_TOLERANCE = 0.02
# Log-probabilities come from one forward pass.
LOGPROB_TOLERANCE = 1e-4
LIMIT_SECONDS = 420


class TinyRun(NamedTuple):
    """A finished run."""

    results: Path
    seconds: float


def run(folder: Path, *, gpu: bool) -> TinyRun:
    """Run the workflow in a copy of the project under `folder`.

    Raises:
        UserError: the run failed or took too long; with the end of its output.
    """
    folder.mkdir(parents=True)
    for part in _PARTS:
        source = HOME / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow_scripts")}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [
        *(sys.executable, "-m", "ghosttrack.cli.launch", "--profile", "profiles/local"),
        *("--resources", f"gpu={1 if gpu else 2}"),
        *("--config", f"model={MODEL}", "sae={precision: fp32}"),
    ]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"the tiny run on the {'GPU' if gpu else 'CPU'} took longer than {LIMIT_SECONDS} s"
        ) from error
    if done.returncode:
        ending = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UserError(f"the tiny run on the {'GPU' if gpu else 'CPU'} failed:\n{ending}")
    return TinyRun(folder / "results" / MODEL, time.perf_counter() - began)


def compare(cpu: Path, gpu: Path) -> Iterator[Check]:
    """Reconstruction by the SAEs, and log-probabilities of all given texts, of two runs."""
    for path in sorted((cpu / "saes").glob("layer_*/quality.json")):
        layer = path.parent.name
        fvu, other = (
            read_object(home / "saes" / layer / "quality.json")["fvu"] for home in (cpu, gpu)
        )
        yield Check(f"FVU of the SAE of {layer}", abs(fvu - other) / fvu, FVU_TOLERANCE)
    for path in sorted((cpu / "examples").glob("*/outputs.parquet")):
        dataset = path.parent.name
        if (cpu / "datasets" / dataset / "samples.parquet").is_file():
            continue  # generated answers may differ after one rounded probability
        one, other = (
            tables.read_parquet(home / "examples" / dataset / "outputs.parquet")["logprob_sum"]
            for home in (cpu, gpu)
        )
        difference = np.linalg.norm(one - other) / np.linalg.norm(one)
        yield Check(f"log-probabilities of {dataset}", float(difference), LOGPROB_TOLERANCE)
