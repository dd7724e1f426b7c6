"""What was trained here computes the same in SAELens, and SAEBench finds its names."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sae_fakes import SMALL, MemoryBatches, planted, train_one

from ghosttrack import sae
from ghosttrack.sae import model, quality, splicing
from ghosttrack.sae.rows import blocks

ARCHITECTURES = ("batchtopk", "topk", "jumprelu", "matryoshka")
PROGRAM = """
import sys, safetensors.torch, torch
from pathlib import Path
from sae_lens import SAE
home = Path(sys.argv[1])
x = safetensors.torch.load_file(home / "x.safetensors")["x"]
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(str(home / name))
    with torch.no_grad():
        code = sae.encode(x)
        safetensors.torch.save_file({"code": code.to_dense(), "xhat": sae.decode(code)}, home / name / "computed.safetensors")
"""


@pytest.mark.peers
@pytest.mark.skipif(
    "GHOSTTRACK_PEERS" not in os.environ, reason="GHOSTTRACK_PEERS: a Python that has sae_lens"
)
def test_every_architecture_that_is_trained_here_encodes_and_decodes_the_same_in_saelens(
    tmp_path: Path,
) -> None:
    store, _ = planted(rows=2048, d_model=16, features=32, active=3.0, seed=0)
    x = next(blocks(store))
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    for name in ARCHITECTURES:
        (tmp_path / f"state_{name}").mkdir()
        settings = SMALL.model_copy(update={"architecture": name})
        trained = train_one(
            store,
            MemoryBatches(store, SMALL.batch),
            settings,
            seed=0,
            state=tmp_path / f"state_{name}",
            micro_batch=1024,
        )
        model.save(
            trained.sae,
            tmp_path / name / model.WEIGHTS_NAME,
            tmp_path / name / model.CFG_NAME,
            hook_name="blocks.3.hook_resid_post",
            model_name="m",
        )
    subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], "-c", PROGRAM, str(tmp_path), *ARCHITECTURES],
        check=True,
        timeout=300,
    )
    for name in ARCHITECTURES:
        theirs = safetensors.torch.load_file(tmp_path / name / "computed.safetensors")
        ours = sae.load(tmp_path / name)
        assert json.loads((tmp_path / name / "cfg.json").read_text())["architecture"] == (
            "topk" if name == "topk" else "jumprelu"
        )
        code = ours.encode(x)
        assert 2.0 < float((code > 0).sum(1).double().mean()) < 6.0, name
        torch.testing.assert_close(theirs["code"], code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["xhat"], ours.decode(code), rtol=1e-5, atol=1e-5)


def test_quality_has_the_names_of_saebench_s_core_evaluation() -> None:
    names = {*quality.Reconstruction._fields, *quality.Sparsity._fields, *splicing.Spliced._fields}
    assert names >= {
        "explained_variance",
        "mse",
        "cossim",
        "l2_ratio",
        "relative_reconstruction_bias",
        "l0",
        "frac_alive",
        "ce_loss_score",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
        "ce_loss_with_ablation",
        "kl_div_score",
        "kl_div_with_sae",
        "kl_div_with_ablation",
    }
