"""Peaks of small jobs in processes of their own, against what these jobs ask for.

The sizes are such that arrays, not libraries, decide the peak.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttrack.planning import memory
from ghosttrack.planning.configuration import load
from ghosttrack.planning.memory import Run
from tests.conftest import ROOT

ROWS, D_MODEL, D_SAE = 4096, 256, 6144
SETTINGS = {
    "model": "tiny-gpt2",
    "dimensions": {"n_layers": 3, "d_model": D_MODEL},
    "corpus": {"tokens": ROWS, "heldout_tokens": ROWS, "context": 128},
    "sae": {"d_sae": D_SAE, "k": 16, "batch": 512, "epochs": 1},
}

# Jobs with their inputs, in the variables `folder` and `settings`.
TRAIN = f"""
from small_stores import Header, make_rows, write
from sae import train_sae

header = Header("tiny", "weights", 0, "resid_post", 128, "tokens")
store, manifest = write(folder, make_rows({ROWS}, width={D_MODEL}), header)
(folder / "source.json").write_text('{{"weights_sha256": "weights"}}')
train_sae.main(
    stores=[store], manifests=[manifest], model_source=folder / "source.json", warm_start_layer=[],
    weights=folder / "sae" / "sae_weights.safetensors", cfg=folder / "sae" / "cfg.json",
    history=folder / "sae" / "history.csv", sae=settings.sae, seed=0, layer=0, threads=1,
    micro_batch=4096, resident_mb=1536, state=folder / "state", model="tiny-gpt2",
    training_digest="",
)
"""
COMPARE = f"""
import torch

from ghosttrack import sae
from ghosttrack.sae import model
from track import find_neighbours

weights = []
for layer in range(3):
    generator = torch.Generator().manual_seed(layer)
    W_dec = torch.randn({D_SAE}, {D_MODEL}, generator=generator)
    target = folder / f"layer_{{layer:02d}}"
    made = sae.Sae(
        W_dec.T.contiguous(), torch.zeros({D_SAE}), W_dec, torch.zeros({D_MODEL}),
        torch.zeros({D_SAE}), metadata={{"k": 16}},
    )
    model.save(
        made, target / "sae_weights.safetensors", target / "cfg.json", hook_name=f"blocks.{{layer}}.hook_resid_post",
        model_name="tiny",
    )
    weights.append(target / "sae_weights.safetensors")
    del W_dec, made
find_neighbours.main(
    weights=weights, stores=[], manifests=[], neighbours=folder / "layer_00.npz", layer=0,
    tracking=settings.tracking, seed=0, threads=1,
)
"""
AROUND = """
import json, sys
from pathlib import Path

from ghosttrack.planning.configuration import load
from ghosttrack.runtime import resource_use

folder = Path(sys.argv[1])
settings = load(json.loads(sys.argv[2]), Path(sys.argv[3]))["tiny-gpt2"]
{job}
print(resource_use.peak_bytes() / 1e6)
"""


@pytest.mark.parametrize(
    ("job", "formula"), [(TRAIN, memory.training), (COMPARE, memory.neighbours)]
)
def test_a_small_job_holds_half_to_all_of_what_it_asks_for(
    job: str, formula: object, tmp_path: Path
) -> None:
    settings = load(SETTINGS, ROOT / "config")["tiny-gpt2"]
    asked = memory.asked(formula(Run(settings, D_SAE, {}, 5000)))  # type: ignore[operator]
    script = tmp_path / "job.py"
    script.write_text(AROUND.format(job=job))
    result = subprocess.run(
        [sys.executable, script, tmp_path, json.dumps(SETTINGS), ROOT / "config"],
        env={
            "PYTHONPATH": f"{ROOT / 'workflow_scripts'}:{ROOT / 'tests' / 'unit'}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    peak = float(result.stdout.splitlines()[-1])
    # The peak of `neighbours` is near half of what it asks for, and varies by some 10 %.
    least = 0.4 if formula is memory.neighbours else 0.5
    assert least <= peak / asked <= 1.0, f"{peak:.0f} of {asked} MB"
