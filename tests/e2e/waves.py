"""Runs of six layers in waves, under a disk budget that holds one, two or three layers."""

import os
import subprocess
import sys
import time
from pathlib import Path

from ghosttrack.planning import plan
from ghosttrack.planning.configuration import load
from ghosttrack.settings import Settings
from tests.conftest import ROOT
from tests.e2e.tiny_runs import MODEL, RUN, environment

# Six layers of two stores each, so that groups of one, two and three layers are different plans.
SIZES = {
    "dimensions": {"n_layers": 6, "d_model": 64},
    "corpus": {"tokens": 32_768, "heldout_tokens": 4096},
    "activations": {"rows_per_job": 16_384},
    "sae": {"epochs": 1},
}


def limited(group: int) -> Settings:
    """The settings with the smallest budget that holds `group` layers."""
    (free,) = load({"model": MODEL, **SIZES}, ROOT / "config").values()
    budget = (group * plan.layer_bytes(free) + plan.heldout_bytes(free) + 1000) / 1e9
    return free.model_copy(
        update={"activations": free.activations.model_copy(update={"disk_budget_gb": budget})}
    )


def arguments(settings: Settings) -> list[str]:
    """As on the command line."""
    budget = settings.activations.disk_budget_gb
    asked = {
        **SIZES,
        "activations": {
            **SIZES["activations"],
            "disk_budget_gb": "null" if budget is None else budget,
        },
    }
    return [f"{key}={values}".replace("'", "") for key, values in asked.items()]


def disk_used(house: Path) -> int:
    """Bytes of training and held-out activations, as the file system counts them."""
    total = 0
    for name in ("activations", "heldout"):
        for folder, _, names in os.walk(house / "results" / MODEL / name):
            for each in names:
                try:
                    total += (Path(folder) / each).stat().st_blocks * 512
                except FileNotFoundError:  # just deleted or renamed
                    continue
    return total


def run_and_watch(house: Path, *config: str, target: str = "saes") -> tuple[int, str, int]:
    """Exit code, screen, and the most disk that was seen in use."""
    with (house / "screen").open("w+") as screen:
        command = [sys.executable, "-m", "ghosttrack.cli.launch", *RUN, *config, "--", target]
        peak = 0
        with subprocess.Popen(
            command, cwd=house, env=environment(house), stdout=screen, stderr=screen
        ) as run:
            while run.poll() is None:
                peak = max(peak, disk_used(house))
                time.sleep(0.05)
        screen.seek(0)
        return run.returncode, screen.read(), peak
