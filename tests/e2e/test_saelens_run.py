"""A run with SAEs by their names in SAELens, from the local cache of a hub."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import copy_house, job_counts
from tests.e2e.tiny_runs import MODEL

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.peers,
    pytest.mark.skipif(
        "GHOSTTRACK_PEERS" not in os.environ,
        reason="GHOSTTRACK_PEERS: a Python that has the workflow's packages and sae_lens",
    ),
]
D_MODEL, D_SAE, LAYERS, COMMIT = 64, 256, 4, "a" * 40


def publish(hub: Path) -> None:
    """SAEs of every layer of the tiny model, in the format of Llama Scope."""
    home = hub / "models--fnlp--Llama3_1-8B-Base-LXR-8x"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(layer)
        weight = torch.randn(D_SAE, D_MODEL, generator=generator)
        folder = home / "snapshots" / COMMIT / f"Llama3_1-8B-Base-L{layer}R-8x"
        (folder / "checkpoints").mkdir(parents=True)
        safetensors.torch.save_file(
            {
                "encoder.weight": weight,
                "encoder.bias": torch.zeros(D_SAE),
                "decoder.weight": weight.T.contiguous() / D_MODEL,
                "decoder.bias": torch.zeros(D_MODEL),
            },
            folder / "checkpoints" / "final.safetensors",
        )
        about = {
            "d_model": D_MODEL,
            "d_sae": D_SAE,
            "jump_relu_threshold": 0.4,
            "hook_point_in": f"blocks.{layer}.hook_resid_post",
            "dataset_average_activation_norm": {"in": 1.0},
        }
        (folder / "hyperparams.json").write_text(json.dumps(about))


def test_saes_by_name_are_fetched_checked_and_measured_and_nothing_is_fetched_twice(
    tmp_path: Path,
) -> None:
    house = copy_house(tmp_path / "house")
    publish(tmp_path / "hub")
    saes = house / "results" / MODEL / "saes"

    def run(source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [
                *(os.environ["GHOSTTRACK_PEERS"], "-m", "snakemake", "--cores", "1"),
                *("--config", f"model={MODEL}", f"sae={{source: '{source}'}}"),
                *(*arguments, "--", f"results/{MODEL}/saes/layer_01/quality.json"),
            ],
            cwd=house,
            env={
                **os.environ,
                "PYTHONPATH": str(house / "workflow_scripts"),
                "HF_HUB_CACHE": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "1",
            },
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    source = "saelens:llama_scope_lxr_8x/l{layer}r_8x"
    refused = run(source.replace("}r_8x", "}x_8x"))
    assert refused.returncode != 0
    assert "holds no SAE l0x_8x; most similar of 32: " in refused.stdout + refused.stderr
    done = run(source)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = job_counts(done.stdout + done.stderr)
    assert counts["fetch_sae"] == counts["evaluate_sae"] == 1
    assert "train_sae" not in counts
    origin = json.loads((saes / "layer_01" / "cfg.json").read_text())["metadata"]["pretrained"]
    assert origin["source"] == "saelens:llama_scope_lxr_8x/l1r_8x"
    assert (origin["revision"], origin["repository"]) == (COMMIT, "fnlp/Llama3_1-8B-Base-LXR-8x")
    assert len(origin["sha256"]) == 2
    assert json.loads((saes / "layer_01" / "quality.json").read_text())["pretrained"] == origin
    assert "trained on a model named meta-llama/Llama-3.1-8B" in (
        (house / "results" / MODEL / "logs" / "fetch_sae" / "layer_01.log").read_text()
    )
    again = run(source, "-n")
    assert again.returncode == 0, again.stderr[-3000:]
    assert job_counts(again.stdout + again.stderr) == {}
