"""check_gpu without a GPU: both back ends on a CPU, the timing, and the error message."""

import os
import subprocess
import sys

import pytest
import torch

from develop import check_gpu
from ghosttrack.cli import gpu_check
from ghosttrack.errors import UserError
from ghosttrack.settings import SaeSettings
from tests.conftest import ROOT

CPU = torch.device("cpu")
SMALL = SaeSettings(d_sae=64, k=4, batch=64, precision="fp32")


def test_every_architecture_and_layer_agrees_between_the_back_ends() -> None:
    checks = [*gpu_check.training_checks(CPU), gpu_check.extraction_check(CPU)]
    assert [check.name for check in checks if not check.holds] == []
    assert len(checks) == 9
    assert max(check.difference for check in checks[:-1]) > 0.0


def test_a_difference_beyond_rounding_is_called_one() -> None:
    check = gpu_check.Check("gradients of topk", 3e-3, 1e-4)
    assert not check.holds
    assert (
        check.line
        == "gradients of topk: DIFFERS, relative difference 3.0e-03 (rounding: below 1e-04)"
    )


def test_the_figures_of_a_step_are_consistent() -> None:
    found = gpu_check.time_steps(32, SMALL, CPU, 64, 0.05)
    # The sparse step on a CPU: one product of 64 x 32 x 64 and four over 4 active features a row.
    assert found.teraflops == pytest.approx(found.tokens_per_second * 2 * 32 * (64 + 4 * 4) / 1e12)
    assert 0.0 < found.share < 1.5
    assert "tokens/s" in found.line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(
        UserError, match=r"no GPU: torch .* sees none .* CUDA_VISIBLE_DEVICES is '1'"
    ) as error:
        check_gpu.main(d_model=32, sae=SMALL)
    assert "\n" not in str(error.value)
    command = [sys.executable, "workflow_scripts/develop/check_gpu.py", "--d_model", "32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: no GPU")


def test_a_gpu_that_differs_fails_the_check_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = gpu_check.Check("steps of topk", 1.0, 1e-3)
    timing = gpu_check.Timing("a step", 1.0, 1.0, 0.5, 10.0)
    for name, value in {
        "require_gpu": lambda: CPU,
        "described": lambda _: "a GPU",
        "training_checks": lambda _: iter([bad]),
        "graph_check": lambda _: bad._replace(name="graph", difference=0.0),
        "extraction_check": lambda _: bad._replace(name="activations", difference=0.0),
        "time_steps": lambda *_, **__: timing,
    }.items():
        monkeypatch.setattr(gpu_check, name, value)
    with pytest.raises(UserError, match=r"do not agree in: steps of topk\. Do not train"):
        check_gpu.main(d_model=32, sae=SMALL)
