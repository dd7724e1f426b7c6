"""The GPU check without a GPU: every part in its small size on a CPU, and the error messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from develop import check_gpu as develop_check
from ghosttrack.cli import check_gpu
from ghosttrack.cli.gpu import agreement, card, speed, tiny_run
from ghosttrack.errors import UserError
from ghosttrack.settings import SaeSettings
from tests.conftest import ROOT

CPU = torch.device("cpu")
SMALL = SaeSettings(d_sae=64, k=4, batch=64, precision="fp32")


def test_everything_agrees_with_itself() -> None:
    checks = list(agreement.all_checks(CPU))
    assert [check.name for check in checks if not check.holds] == []
    assert len(checks) == 13
    # The two back ends of training are different code, so they differ by rounding.
    assert max(check.difference for check in checks if "gradients" in check.name) > 0.0


def test_a_difference_beyond_rounding_is_called_one() -> None:
    check = agreement.Check("gradients of topk", 3e-3, 1e-4)
    assert not check.holds
    assert (
        check.line
        == "gradients of topk: DIFFERS, relative difference 3.0e-03 (rounding: below 1e-04)"
    )


def test_the_figures_of_a_step_are_consistent() -> None:
    timing = speed.time_steps(32, SMALL, CPU, 64, 0.05)
    # The sparse step on a CPU: one product of 64 x 32 x 64 and four over 4 active features a row.
    assert timing.teraflops == pytest.approx(
        timing.tokens_per_second * 2 * 32 * (64 + 4 * 4) / 1e12
    )
    assert 0.0 < timing.share < 1.5
    assert "tokens/s" in timing.line


def test_a_rehearsal_runs_every_part_and_writes_all_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card.json"
    assert check_gpu.main(["--rehearse", "--without", "run", "--out", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["errors"] == {}
    parts = {row["part"] for row in content["measurements"]}
    assert parts == {"limits", "SAE step", "feeding", "extraction", "generation"}
    assert all(row["value"] > 0.0 for row in content["measurements"])
    printed = capsys.readouterr().out
    for row in content["measurements"]:
        assert f"{row['part']}: {row['name']}: " in printed
    for name in card.PRECISIONS:
        assert sum(name in row["name"] for row in content["measurements"]) >= 3


def test_a_part_that_fails_keeps_the_results_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(speed, "step_speed", broken)
    out = tmp_path / "card.json"
    left_out = [f"--without={name}" for name in ("agreement", "feeding", "extraction", "run")]
    assert check_gpu.main(["--rehearse", *left_out, "--out", str(out)]) == 1
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["errors"] == {"steps": "RuntimeError: out of memory"}
    assert {row["part"] for row in content["measurements"]} == {"limits", "generation"}
    assert "error: these parts failed: steps" in capsys.readouterr().out


def test_runs_that_differ_are_told_from_equal_ones(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    homes = [tmp_path / name for name in ("cpu", "gpu")]
    for home, fvu, shift in zip(homes, (0.1, 0.2), (0.0, 1.0), strict=True):
        (home / "saes" / "layer_00").mkdir(parents=True)
        (home / "saes" / "layer_00" / "quality.json").write_text(json.dumps({"fvu": fvu}))
        (home / "examples" / "capitals").mkdir(parents=True)
        table = pd.DataFrame({"logprob_sum": [-3.0 + shift, -2.0]})
        table.to_parquet(home / "examples" / "capitals" / "outputs.parquet")
    assert all(check.holds for check in tiny_run.compare(homes[0], homes[0]))
    checks = list(tiny_run.compare(*homes))
    assert [check.name for check in checks] == [
        "FVU of the SAE of layer_00",
        "log-probabilities of capitals",
    ]
    assert not any(check.holds for check in checks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    message = r"no GPU: torch .* sees none .* CUDA_VISIBLE_DEVICES is '1'"
    with pytest.raises(UserError, match=message) as error:
        develop_check.main(d_model=32, sae=SMALL)
    assert "\n" not in str(error.value)
    assert check_gpu.main([]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"
    command = [sys.executable, "workflow_scripts/develop/check_gpu.py", "--d_model", "32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: no GPU")


def test_a_gpu_that_differs_fails_the_check_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = agreement.Check("steps of topk", 1.0, 1e-3)
    timing = speed.Timing("a step", 1.0, 1.0, 0.5, 10.0)
    monkeypatch.setattr(card, "require_gpu", lambda: CPU)
    monkeypatch.setattr(card, "described", lambda _: "a GPU")
    monkeypatch.setattr(agreement, "all_checks", lambda _: iter([bad]))
    monkeypatch.setattr(speed, "time_steps", lambda *_, **__: timing)
    with pytest.raises(UserError, match=r"do not agree in: steps of topk\. Do not train"):
        develop_check.main(d_model=32, sae=SMALL)
