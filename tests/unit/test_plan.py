"""Waves under a disk budget, and weights that do not belong to the results they would join."""

from pathlib import Path

import pytest

from ghosttrack import files, plan
from ghosttrack.errors import UserError
from ghosttrack.settings import Settings, load
from tests.conftest import ROOT


def settings(**config: object) -> Settings:
    (found,) = load(config, ROOT / "config").values()
    return found


def test_ten_million_tokens_of_medium_take_the_promised_disk() -> None:
    medium = settings(model="gpt2-medium")
    assert plan.layer_bytes(medium) == pytest.approx(20.5e9, rel=0.01)
    assert [len(wave) for wave in plan.waves(medium)] == [3] * 8


def test_small_keeps_one_layer_at_a_time_within_25_gb() -> None:
    small = settings(model="gpt2-small")
    assert plan.waves(small) == [[layer] for layer in range(12)]


def test_without_a_budget_there_is_one_wave() -> None:
    free = settings(model="gpt2-small", activations={"disk_budget_gb": None})
    assert plan.waves(free) == [list(range(12))]


def test_a_budget_below_one_layer_names_the_number_that_would_do() -> None:
    with pytest.raises(UserError, match=r"at least 15\.[0-9]"):
        plan.waves(settings(model="gpt2-small", activations={"disk_budget_gb": 15}))


def test_other_weights_under_a_name_with_results_are_refused(tmp_path: Path) -> None:
    small = settings(model="gpt2-small")
    manifest = tmp_path / "gpt2-small" / "model" / "source.json"
    files.write_json(manifest, {**small.source.model_dump(), "weights_sha256": "x"})
    plan.check_sources({"gpt2-small": small}, tmp_path)
    files.write_json(manifest, {"kind": "directory", "id": "elsewhere", "revision": None})
    with pytest.raises(UserError, match="results/gpt2-small was made with directory elsewhere"):
        plan.check_sources({"gpt2-small": small}, tmp_path)
