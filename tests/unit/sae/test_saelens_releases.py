"""Published releases in small: SAELens's converters read a hub on disk, and ours does the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.peers
@pytest.mark.skipif(
    "GHOSTTRACK_PEERS" not in os.environ, reason="GHOSTTRACK_PEERS: a Python that has sae_lens"
)
def test_releases_that_saelens_converts_compute_the_same_here(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    program = Path(__file__).with_name("saelens_releases.py")
    done = subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], str(program), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(root / "workflow_scripts"),
            "HF_HUB_CACHE": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal ") == 9
    assert done.stdout.count("refused ") == 8
    assert int(done.stdout.rpartition("releases ")[2]) >= 100
