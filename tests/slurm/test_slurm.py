"""The cluster command on a real Slurm: one node, four fake GPUs, the tiny model."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import copy_house, snakemake
from tests.slurm.cluster import Cluster, missing_tools

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing_tools()), reason=f"Slurm is not installed: {', '.join(missing_tools())} missing"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="gt-slurm-"))
    try:
        with Cluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_cluster_command_trains_every_layer_on_gpus_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    house = copy_house(tmp_path / "house")
    profile = house / "profiles" / "slurm" / "config.yaml"
    # Short waits, because the jobs are short.
    profile.write_text(re.sub(r"(status-checks:) \d+", r"\1 5", profile.read_text()))
    result = snakemake(
        house, "--profile", "slurm", "--config", "model=tiny-gpt2", "--until", "train_sae", "--", "saes",
        timeout=900, **cluster.environment,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    for layer in range(4):
        assert (house / f"results/tiny-gpt2/saes/layer_{layer:02d}/sae_weights.safetensors").stat().st_size > 1000
    jobs = cluster.command("scontrol", "show", "jobs")
    trained = [job for job in jobs.split("\n\n") if "rule_train_sae" in job]
    assert len(trained) == 4
    for job in trained:
        assert "JobState=COMPLETED" in job
        assert "gpu:1" in job or "gres/gpu=1" in job or "gres:gpu:1" in job
