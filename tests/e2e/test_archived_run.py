"""A finished run is archived, and refused with other settings, from the command line."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from tests.conftest import ROOT
from tests.e2e.tiny_runs import MODEL, environment

pytestmark = pytest.mark.e2e


def archive(house: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ghosttrack.cli.archive", f"results/{MODEL}", *options],
        cwd=house,
        env=environment(house),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_finished_run_is_archived_and_other_settings_are_refused(house_to_change: Path) -> None:
    for name in ("LICENSE", "CITATION.cff", "README.md"):
        shutil.copy(ROOT / name, house_to_change)
    other = archive(house_to_change, "--config", "sae={k: 5}")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "sae.k" in other.stderr
    done = archive(house_to_change, "--weights")
    assert (done.returncode, done.stderr) == (0, "")
    path = house_to_change / done.stdout.strip()
    described = ROCrate(path)
    results = house_to_change / "results" / MODEL
    with zipfile.ZipFile(path) as archived:
        for name in ("report.html", "evaluation/metrics.csv", "saes/layer_01/cfg.json"):
            entity = described.get(f"results/{MODEL}/{name}")
            content = archived.read(f"results/{MODEL}/{name}")
            assert content == (results / name).read_bytes()
            assert int(entity["contentSize"]) == len(content)
