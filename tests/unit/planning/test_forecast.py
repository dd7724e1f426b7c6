"""Expected time and disk use: operations by hand, rates from benchmark files, remaining stores."""

import os
from pathlib import Path
from typing import Any

import pytest

from ghosttrack.planning import data_sizes, forecast, plan, roofline
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.runtime import files, records
from ghosttrack.settings import DatasetSettings, Settings
from tests.conftest import ROOT


def settings(**config: object) -> Settings:
    (found,) = load(config, ROOT / "config").values()
    return found


# Rates at which feeding, writing and copying never limit.
FAST = {"feed_gb_s": 1e6, "write_gb_s": 1e6, "copy_gb_s": 1e6}


def data(found: Settings) -> dict[str, DatasetSettings]:
    return {name: load_dataset(name, ROOT / "config") for name in found.datasets}


def benchmark(path: Path, seconds: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t1.0\n")


def test_a_conflict_set_has_twice_the_rows_of_its_minimal_pairs() -> None:
    found = settings(model="gpt2-small")
    plain, after = (
        data_sizes.estimated_rows(found, load_dataset(name, ROOT / "config"))
        for name in ("capitals", "conflict_capitals")
    )
    assert after == 2 * plain > 0


def test_operations_worked_by_hand() -> None:
    # GPT-2 medium: 24 blocks of 12 d^2 weights, 302 M in all, with two operations per weight and
    # token; attention adds 8 %.
    assert forecast.block_operations(1024, 512) == 24 * 1024**2 + 4 * 512 * 1024 == 27_262_976


def test_hours_of_gpt2_medium_at_the_assumed_rate(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", activations={"storage": "fp16"}, plan=FAST)
    waves = plan.waves(medium)
    extraction = forecast.extraction(medium, waves, tmp_path)
    assert extraction.rate == (40.0, 0, 1.0)
    # 3 + 6 + ... + 24 = 108 blocks for each of 10,000,384 tokens.
    assert extraction.gpu_hours == pytest.approx(10_000_384 * 108 * 27_262_976 / 40e12 / 3600)
    # Ten jobs on four accelerators take three rounds of a full job.
    assert extraction.hours == pytest.approx(3 * 1_048_576 * 108 * 27_262_976 / 40e12 / 3600)
    training = forecast.training(medium, waves, tmp_path)
    # Five products of batch x d_model x d_sae at the assumed rate: at batch 4096 arithmetic is the
    # limit.
    assert training.steps == 10_000_384 * 20 // 4096 == 48_830
    one = 48_830 * 10 * 4096 * 1024 * 5120 / 40e12 / 3600
    assert training.effort.gpu_hours == pytest.approx(24 * one)
    assert training.effort.hours == pytest.approx(8 * one)
    assert training.effort.rate == (40.0, 0, 1.0)


def test_hours_of_gpt2_medium_at_the_batch_of_the_original_work_are_bound_by_memory_traffic(
    tmp_path: Path,
) -> None:
    medium = settings(model="gpt2-medium", activations={"storage": "fp16"}, plan=FAST)
    waves = plan.waves(medium)
    training = forecast.training(medium, waves, tmp_path, batch=128)
    traffic = 54 * 2 * 1024 * 5120 + 40 * 128 * 5120
    assert training.step.traffic == traffic
    assert (
        training.step.intensity
        == pytest.approx(10 * 128 * 1024 * 5120 / traffic)
        == pytest.approx(11.33, abs=0.01)
    )
    assert roofline.balance(medium.plan) == pytest.approx(40e12 / 1200e9)
    assert training.bound.name == "memory traffic"
    assert training.effort.gpu_hours == pytest.approx(24 * 1_562_560 * traffic / 1200e9 / 3600)
    ours = forecast.training(medium, waves, tmp_path)
    assert ours.bound.name == "arithmetic"
    assert training.effort.hours > 2 * ours.effort.hours


def test_a_sparse_step_on_a_cpu_counts_one_product_and_the_active_features() -> None:
    small = settings(model="smollm2-135m")
    found = roofline.step(small.sae, 576, "cpu")
    assert found.operations == 2 * 512 * 576 * (2048 + 4 * 64)
    assert found.traffic == 54 * 2 * 576 * 2048 + 12 * 512 * 2048 + 16 * 512 * 64 * 576
    assert roofline.step(small.sae, 576, "gpu").operations == 10 * 512 * 576 * 2048


def test_minutes_of_a_job_are_its_part_of_the_forecast(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", plan={"gpus": 1})
    waves = plan.waves(medium)
    training = forecast.training(medium, waves, tmp_path).effort.gpu_hours
    assert 24 * forecast.training_minutes(medium) == pytest.approx(60 * training, rel=1e-3)
    one, all_layers = (forecast.training_minutes(medium, saes) for saes in (1, 24))
    assert all_layers == pytest.approx(24 * one)
    arms = len(medium.sweep.k) * len(medium.sweep.seeds)
    assert forecast.sweep_minutes(medium) == pytest.approx(arms * forecast.training_minutes(medium))
    shards = sum(forecast.extraction_minutes(medium, layers) for layers in waves)
    share = medium.contexts_per_shard / medium.contexts
    extraction = forecast.extraction(medium, waves, tmp_path).gpu_hours
    assert shards == pytest.approx(60 * extraction * share)


def test_finished_jobs_replace_the_assumed_rate(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", activations={"storage": "fp16"}, plan=FAST)
    waves = plan.waves(medium)
    folder = tmp_path / "gpt2-medium" / "benchmarks"
    operations = 1_048_576 * 3 * 27_262_976
    benchmark(
        folder / "extract_activations" / "layers_00_to_02_shard_0000.tsv", f"{operations / 20e12}"
    )
    assert forecast.extraction(medium, waves, tmp_path).rate == pytest.approx((20.0, 1, 2.0))
    # The last shard is shorter, the second wave deeper.
    benchmark(
        folder / "extract_activations" / "layers_00_to_02_shard_0009.tsv",
        f"{operations * 1100 / 2048 / 10e12}",
    )
    benchmark(
        folder / "extract_activations" / "layers_03_to_05_shard_0000.tsv",
        f"{operations * 2 / 12e12}",
    )
    assert forecast.extraction(medium, waves, tmp_path).rate == pytest.approx((12.0, 3, 40 / 12))
    assert forecast.training(medium, waves, tmp_path).effort.rate.jobs == 0
    benchmark(folder / "train_sae" / "layer_03.tsv", "100.0")
    measured = forecast.training(medium, waves, tmp_path).effort
    assert measured.rate.jobs == 1
    assert measured.gpu_hours == pytest.approx(24 * 100 / 3600)
    assert (
        forecast.training(medium, waves, tmp_path, batch=128).effort.rate.jobs == 0
    )  # says nothing of another batch


def test_a_measured_rate_does_not_depend_on_the_current_waves(tmp_path: Path) -> None:
    cuts = [
        settings(model="gpt2-medium", activations={"storage": storage}, plan=FAST)
        for storage in ("fp16", "int8s")
    ]
    assert [len(plan.waves(cut)) for cut in cuts] == [8, 6]
    folder = tmp_path / "gpt2-medium" / "benchmarks" / "extract_activations"
    for layers in plan.waves(cuts[0])[:2]:
        operations = 1_048_576 * (layers[-1] + 1) * 27_262_976
        benchmark(folder / f"{plan.pass_name(layers)}_shard_0000.tsv", f"{operations / 20e12}")
    for cut in cuts:
        assert forecast.extraction(cut, plan.waves(cut), tmp_path).rate == pytest.approx(
            (20.0, 2, 2.0)
        )


def test_jobs_on_an_older_corpus_and_files_with_other_names_are_not_used(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium")
    folder = tmp_path / "gpt2-medium" / "benchmarks" / "extract_activations"
    for name in ("layers_00_to_03_shard_0000", "layers_00_to_03_shard_0010", "wave_00_shard_0001"):
        benchmark(folder / f"{name}.tsv", "100")
    assert (
        forecast.extraction(medium, plan.waves(medium), tmp_path).rate.jobs == 1
    )  # ten shards: the last is 0009
    corpus = tmp_path / "gpt2-medium" / "corpus" / "train.json"
    files.write_json(corpus, {})
    later = (folder / "layers_00_to_03_shard_0000.tsv").stat().st_mtime + 1
    os.utime(corpus, (later, later))
    assert forecast.extraction(medium, plan.waves(medium), tmp_path).rate.jobs == 0


def test_a_job_on_two_accelerators_takes_the_hours_of_both(tmp_path: Path) -> None:
    one, two = (
        settings(
            model="gpt2-medium",
            activations={"disk_budget_gb": None},
            plan={**FAST, "gpus": 2 * count, "gpus_per_model": count},
        )
        for count in (1, 2)
    )
    single, spread = (forecast.extraction(each, plan.waves(each), tmp_path) for each in (one, two))
    assert spread.hours == single.hours
    assert spread.gpu_hours == 2 * single.gpu_hours


def test_a_job_on_fewer_tokens_took_the_time_of_these(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", plan=FAST)
    waves, home = plan.waves(medium), tmp_path / "results" / "gpt2-medium"
    files.write_json(home / "corpus" / "train.json", {})
    os.utime(home / "corpus" / "train.json", (0, 0))
    made = records.Description({"corpus": {"tokens": 10_240, "context": 512}}, {})
    records.write("fetch_corpus", made, {}, [str(home / "corpus" / "train.json")])
    token = forecast.token_bound(medium, 4, 4).seconds
    folder = home / "benchmarks" / "extract_activations"
    benchmark(folder / "layers_00_to_03_shard_0000.tsv", f"{3 * 10_240 * token}")
    assert forecast.extraction(medium, waves, home.parent).rate[1:] == pytest.approx((1, 3))
    benchmark(folder / "layers_00_to_03_shard_0001.tsv", "100")  # of a larger corpus before
    assert forecast.extraction(medium, waves, home.parent).rate.jobs == 1


@pytest.mark.parametrize("content", ["", "s\n", "s\tx\n-\t1\n", "s\nnan\n", "s\n0\n", "t\n3\n"])
def test_a_benchmark_without_a_time_is_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.tsv").write_text(content)
    assert forecast.wall_seconds(tmp_path / "a.tsv") is None
    assert forecast.wall_seconds(tmp_path / "missing.tsv") is None


def test_kept_stores_are_counted_from_manifests_and_estimated_without(tmp_path: Path) -> None:
    small = settings(model="gpt2-small", datasets=["cities", "questions", "halueval"])
    found = forecast.kept(small, data(small), tmp_path)
    # 100,000 tokens fill 196 contexts, 25 chunks, in each of twelve layers.
    assert found.heldout == 12 * plan.store_bytes(196 * 512, 768, "fp16", 512)
    facts = (ROOT / "workflow_scripts/ghosttrack/data/facts/cities.csv").read_text().count("\n") * 8
    guesses = [facts, 200 * 12, 2000 * 8]
    assert found.examples == sum(13 * plan.store_bytes(rows, 768, "fp16", 512) for rows in guesses)
    assert found.estimated == 3
    files.write_json(
        tmp_path / "gpt2-small" / "examples" / "cities" / "embedding.json", {"rows": 978}
    )
    counted = forecast.kept(small, data(small), tmp_path)
    assert counted.estimated == 2
    assert found.examples - counted.examples == 13 * (1 + plan.NORM_BYTES) * (
        facts - 978
    )  # both fill one chunk


# ---- feeding, writing and copying
def parts(bound: roofline.Bound) -> dict[str, float]:
    return {part.name: part.seconds for part in bound.parts}


def test_a_wave_that_writes_slowly_takes_the_time_of_writing(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", plan={"write_gb_s": 0.1, "copy_gb_s": 10})
    waves = plan.waves(medium)
    assert [len(layers) for layers in waves] == [4] * 6
    found = forecast.extraction(medium, waves, tmp_path)
    # int8s: 1,024 values and a scale of 4 bytes, in four layers.
    stored = 4 * (1024 + 4)
    assert parts(found.bound)["writing"] == pytest.approx(stored / 0.1e9)
    assert parts(found.bound)["copying"] == pytest.approx(stored / 10e9)
    assert found.bound.name == "writing"
    assert found.bound.limit.setting == "write_gb_s"
    assert found.gpu_hours == pytest.approx(10_000_384 * 6 * stored / 0.1e9 / 3600)
    fast = settings(model="gpt2-medium", plan=FAST)
    assert forecast.extraction(fast, waves, tmp_path).bound.name == "arithmetic"


def test_feeding_counts_once_per_epoch_unless_a_layer_stays_on_the_accelerator() -> None:
    machine = {"feed_gb_s": 0.2, "copy_gb_s": 10}
    large, small = (
        settings(model="gpt2-medium", plan={**machine, "gpu_memory_gb": memory})
        for memory in (80, 8)
    )
    assert forecast.is_resident(large)
    assert not forecast.is_resident(small)
    stored = 4096 * (1024 + 4)
    _, once = forecast.step_bound(large, large.sae)
    _, each = forecast.step_bound(small, small.sae)
    assert parts(each)["feeding"] == pytest.approx(stored / 0.2e9)
    assert parts(each)["copying"] == pytest.approx(stored / 10e9)
    assert parts(once)["feeding"] == pytest.approx(stored / 0.2e9 / 20)
    assert (once.name, each.name) == ("arithmetic", "feeding")
    assert each.seconds == pytest.approx(stored / 0.2e9)


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_the_rates_are_bytes_so_rows_per_second_scale_with_the_width(storage: str) -> None:
    narrow, wide = (
        settings(
            model="gpt2-small",
            activations={"storage": storage},
            plan={"gpu_memory_gb": 0.1},
            dimensions={"n_layers": 12, "d_model": width},
            sae={"d_sae": 256},
        )
        for width in (512, 2048)
    )
    slow, slower = (forecast.step_bound(found, found.sae)[1] for found in (narrow, wide))
    assert parts(slower)["feeding"] / parts(slow)["feeding"] == pytest.approx(4, rel=0.01)


def test_on_a_cpu_feeding_and_writing_add_to_the_arithmetic() -> None:
    found = settings(model="smollm2-135m", plan={"feed_gb_s": 0.001, "write_gb_s": 0.001})
    _, step = forecast.step_bound(found, found.sae)
    known = parts(step)
    assert "copying" not in known
    slower = max(known["arithmetic"], known["memory traffic"])
    assert step.seconds == pytest.approx(slower + known["feeding"])
    token = forecast.token_bound(found, 21, 6)
    assert token.seconds == pytest.approx(parts(token)["arithmetic"] + parts(token)["writing"])


def test_measured_times_replace_those_of_a_wave_that_writing_limits(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", plan={"write_gb_s": 0.1})
    waves = plan.waves(medium)
    before = forecast.extraction(medium, waves, tmp_path)
    seconds = 1_048_576 * 4 * 1028 / 0.1e9
    folder = tmp_path / "gpt2-medium" / "benchmarks" / "extract_activations"
    for layers in waves[:2]:  # a third of the expected time, whatever the depth
        benchmark(folder / f"{plan.pass_name(layers)}_shard_0000.tsv", f"{seconds / 3}")
    after = forecast.extraction(medium, waves, tmp_path)
    assert after.rate.slower == pytest.approx(1 / 3)
    assert after.hours == pytest.approx(before.hours / 3)
    assert after.rate.jobs == 2


WARM = {"dictionaries": "warm_start", "warm_start_epochs": 5, "warm_start_layer": 2}


def test_layers_with_a_warm_start_train_for_their_epochs_after_the_first(tmp_path: Path) -> None:
    medium = settings(model="gpt2-medium", plan=FAST, sae=WARM)
    waves = [[0, 1, 2, 3, 4, 5], [*range(6, 24)]]
    whole, short = (10_000_384 * epochs // 4096 for epochs in (20, 5))
    training = forecast.training(medium, waves, tmp_path)
    second = training.bound.seconds / 3600
    assert (training.steps, training.later_steps) == (whole, short)
    assert training.effort.gpu_hours == pytest.approx((whole + 23 * short) * second)
    # Four accelerators: the first layer alone, the other five in two rounds, the rest in five.
    assert training.effort.hours == pytest.approx((whole + 7 * short) * second)
    # Jobs that took as long as assumed leave the hours as they were.
    folder = tmp_path / "gpt2-medium" / "benchmarks" / "train_sae"
    for layer, steps in ((2, whole), (3, short), (4, short)):
        benchmark(folder / f"layer_{layer:02d}.tsv", f"{steps * training.bound.seconds}")
    measured = forecast.training(medium, waves, tmp_path).effort
    assert measured.rate.jobs == 3
    assert measured.gpu_hours == pytest.approx(training.effort.gpu_hours)


def test_one_job_that_trains_all_layers_is_measured(tmp_path: Path) -> None:
    shared = settings(model="gpt2-medium", plan=FAST, sae={"dictionaries": "shared"})
    waves = [shared.layers]
    before = forecast.training(shared, waves, tmp_path).effort
    benchmark(tmp_path / "gpt2-medium/benchmarks/train_sae/layer_03.tsv", "7")
    benchmark(
        tmp_path / "gpt2-medium/benchmarks/train_shared_sae.tsv", f"{before.hours * 3600 * 2}"
    )
    after = forecast.training(shared, waves, tmp_path).effort
    assert after.rate.jobs == 1
    assert after.rate.slower == pytest.approx(2)
    assert after.hours == pytest.approx(2 * before.hours)


@pytest.mark.parametrize(
    ("inside", "params", "measured"),
    [
        ("saes/layer_03/sae_weights.safetensors", {"sae": {"epochs": 20, "k": 64}}, (1, 1)),
        ("saes/layer_03/sae_weights.safetensors", {"sae": {"epochs": 2}}, (1, 0)),
        ("corpus/train.json", {"corpus": {"tokens": 5000, "source": "a"}}, (1, 0)),
        ("corpus/train.json", {"corpus": {"tokens": 10_000_000, "source": "a"}}, (1, 1)),
        ("activations/layer_00/shard_0000.json", {"contexts_per_shard": 7}, (0, 1)),
        ("activations/layer_00/shard_0000.json", {"contexts_per_shard": 2048}, (1, 1)),
    ],
)
def test_jobs_with_other_settings_are_not_measured(
    tmp_path: Path, inside: str, params: dict[str, Any], measured: tuple[int, int]
) -> None:
    medium = settings(model="gpt2-medium", plan=FAST)
    waves = plan.waves(medium)
    home = tmp_path / "results" / "gpt2-medium"
    benchmark(home / "benchmarks/extract_activations/layers_00_to_03_shard_0000.tsv", "100")
    benchmark(home / "benchmarks/train_sae/layer_03.tsv", "100")
    (home / inside).parent.mkdir(parents=True)
    (home / inside).write_text("{}")
    os.utime(home / inside, (0, 0))
    records.write("a_rule", records.Description(params, {}), {}, [str(home / inside)])
    extraction = forecast.extraction(medium, waves, tmp_path / "results")
    training = forecast.training(medium, waves, tmp_path / "results")
    assert (extraction.rate.jobs, training.effort.rate.jobs) == measured
