"""Memory and time that the jobs of a dry run ask for: by formulas, and more memory on Slurm."""

import math
from pathlib import Path

import memory as benchmark
import pytest

from ghosttrack.planning import forecast, memory
from ghosttrack.planning.configuration import load
from tests.conftest import copy_house

pytestmark = pytest.mark.dag
MODEL = "tiny-gpt2"
ASIDE = ("paper", "transfer", "seed_variance", "sae_sweep", "reproduce_leak", "ablations", "tuning")
# Targets without jobs' work of their own ask for nothing on one machine.
TARGETS = {"all", *ASIDE}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_house(tmp_path_factory.mktemp("asked") / "house")


def test_on_slurm_a_job_also_asks_for_snakemake_and_for_the_libraries_of_a_gpu(house: Path) -> None:
    here, slurm = (
        benchmark.asked(MODEL, house, *options)
        for options in (("--cores", "1"), ("--profile", "slurm"))
    )
    more = {rule: slurm[rule] - size for rule, size in here.items() if rule != "all"}
    without_gpu = memory.SNAKEMAKE + memory.CUDA_BUILD
    with_gpu = math.ceil(without_gpu + memory.MARGIN * memory.GPU_LIBRARIES)
    assert more["find_neighbours"] == without_gpu
    assert more["train_sae"] == with_gpu
    assert set(more.values()) == {without_gpu, with_gpu}


def test_every_rule_of_every_target_asks_for_memory(house: Path) -> None:
    found = benchmark.asked(MODEL, house, "--cores", "1", "all", *ASIDE)
    assert {rule for rule, size in found.items() if not size} <= TARGETS
    assert {"track_arm", "sweep_sae", "transfer_detectors", "vary_seeds", "score_leak"} <= set(
        found
    )
    assert min(size for rule, size in found.items() if rule not in TARGETS) > memory.PLAIN


def test_long_jobs_ask_for_four_times_their_expected_minutes(house: Path) -> None:
    models = house / "config" / "models"
    plan = "plan: {teraflops: 1.0e-7, gpus: 1, device: cpu}\n"
    (models / "slow.yaml").write_text((models / "tiny-gpt2.yaml").read_text() + plan)
    (slow,) = load({"model": "slow"}, house / "config").values()
    expected = {
        "extract_activations": forecast.extraction_minutes(slow, slow.layers),
        "train_sae": forecast.training_minutes(slow),
        "sweep_sae": forecast.sweep_minutes(slow),
    }
    targets = ("--cores", "1", "all", "sae_sweep")
    quick = benchmark.asked(MODEL, house, *targets, resource="runtime")
    long = benchmark.asked("slow", house, *targets, resource="runtime")
    for rule, base in (("extract_activations", 120), ("train_sae", 120), ("sweep_sae", 720)):
        assert quick[rule] == base
        assert long[rule] == round(4 * expected[rule]) > base
    assert long["fetch_model"] == quick["fetch_model"]


def test_two_models_in_one_run_ask_for_what_each_asks_for_alone(house: Path) -> None:
    together = benchmark.asked("both", house)
    for model, suffix in (("gpt2-small", "gpt2_small"), ("gpt2-medium", "gpt2_medium")):
        alone = benchmark.asked(model, house)
        for rule in ("extract_heldout", "extract_examples", "track_features"):
            assert together[f"{rule}_{suffix}"] == alone[rule], (rule, model)
