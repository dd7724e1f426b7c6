import csv
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghosttrack.planning import run_state
from ghosttrack.report import costs
from report import summarise_costs

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with known costs."""
    jobs = {
        "fetch_model.tsv": (30, 1500, 12.5),
        "train_sae/layer_02.tsv": (100, 600, 90),
        "train_sae/layer_04.tsv": (80, 700, 75),
        "track_features/cities.tsv": (5, 300, 4),
        "evaluate_sae/layer_02.tsv": (0.3, "NA", "NA"),
        "verify_activations.tsv": (9, 100, 8),
    }
    for name, (seconds, memory, cpu) in jobs.items():
        path = tmp_path / "mine" / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEAD}{seconds}\t0:00:00\t{memory}\t1\t1\t1\t1\t1\t90\t{cpu}\n")
    (path.parent / "train_sae" / "layer_02.gpu.tsv").write_text("time\tutilisation\n")
    for name, size in {
        "activations/layer_02/c/0": 3000,
        "model/model.safetensors": 5000,
        "report.html": 700,
        "mine.txt": 11,
    }.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return tmp_path / "mine"


def test_jobs_of_a_rule_are_summed_and_the_longest_is_named(run: Path) -> None:
    found = {each.rule: each for each in costs.of_jobs(run / "benchmarks")}
    assert list(found) == [
        "fetch_model",
        "train_sae",
        "evaluate_sae",
        "track_features",
        "verify_activations",
    ]
    *sums, peak, longest, seconds = found["train_sae"]
    assert sums == ["autoencoders", "train_sae", 2, 165, 180]
    assert peak == pytest.approx(700 * 2**20 / 1e6)  # Snakemake's MB are 2^20 bytes
    assert (longest, seconds) == ("layer_02", 100)
    assert found["verify_activations"].step == "on request"


def test_a_job_too_short_to_be_looked_at_has_no_cpu_time_and_takes_none_from_its_step(
    run: Path,
) -> None:
    found = costs.of_jobs(run / "benchmarks")
    short = next(each for each in found if each.rule == "evaluate_sae")
    assert math.isnan(short.cpu_seconds)
    assert math.isnan(short.peak_rss_mb)
    step = next(each for each in costs.by_step(found) if each.step == "autoencoders")
    assert (step.jobs, step.cpu_seconds) == (3, 165)
    assert step.peak_rss_mb == pytest.approx(700 * 2**20 / 1e6)
    assert step.wall_seconds == pytest.approx(180.3)
    assert (step.longest_job, step.longest_seconds) == ("train_sae layer_02", 100)


def test_what_the_last_attempt_logged_counts_and_not_what_was_sampled(run: Path) -> None:
    attempts = (
        "peak memory 9,000 MB, CPU time 1,000.00 s",
        "peak memory 900 MB, CPU time 130.25 s",
    )
    for name, lines in {
        "train_sae/layer_02": attempts,
        "evaluate_sae/layer_02": ("peak memory 80 MB, CPU time 0.50 s",),
        "fetch_model": ("peak memory 1,600 MB",),  # by an earlier version
    }.items():
        path = run / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"12:00:00 INFO {line}\n" for line in lines))
    found = {each.rule: each for each in costs.of_jobs(run / "benchmarks")}
    assert found["train_sae"].cpu_seconds == 130.25 + 75
    assert found["train_sae"].peak_rss_mb == 900
    assert found["evaluate_sae"].cpu_seconds == 0.5
    assert found["evaluate_sae"].peak_rss_mb == 80
    assert (found["fetch_model"].cpu_seconds, found["fetch_model"].peak_rss_mb) == (12.5, 1600)


def test_every_byte_of_the_folder_is_of_one_kind(run: Path) -> None:
    found = {each.kind: each for each in costs.of_disk(run)}
    assert found["training activations"] == ("training activations", 3000, 1)
    assert found["figures and pages"].bytes == 700
    assert found["other"].bytes == 11
    everything = [path for path in run.rglob("*") if path.is_file()]
    assert sum(each.bytes for each in found.values()) == sum(
        path.stat().st_size for path in everything
    )
    assert sum(each.files for each in found.values()) == len(everything)


def test_a_file_that_another_job_removes_meanwhile_does_not_count(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = costs.of_disk(run)
    walk = os.walk

    def late(home: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, inside, names in walk(home):
            yield folder, inside, [*names, "checkpoint.partial"]

    monkeypatch.setattr(os, "walk", late)
    assert costs.of_disk(run) == before


def test_the_script_writes_tables_and_a_page_with_the_budget(run: Path) -> None:
    folder = run / "benchmarks"
    summarise_costs.main(
        page=folder / "costs.html",
        jobs=folder / "costs.csv",
        disk=folder / "disk.csv",
        model="<b>mine</b>",
        planned_kb=2_000_000,
        budget_kb=3_000_000,
    )
    with (folder / "costs.csv").open() as stream:
        rows = {row["rule"]: row for row in csv.DictReader(stream)}
    assert rows["evaluate_sae"]["cpu_seconds"] == ""
    assert float(rows["train_sae"]["cpu_seconds"]) == 165
    page = (folder / "costs.html").read_text()
    assert "<b>mine" not in page
    assert "6 jobs took 3m 10s of CPU time and 3m 44s of wall time" in page
    assert "2 GB of a budget of 3 GB" in page
    assert not re.search(r'(?:src|href)="https?://', page)


def test_every_rule_of_a_run_has_a_step() -> None:
    known = {rule for rules in costs.STEPS.values() for rule in rules}
    assert set(run_state.PHASES) - known == {"summarise_costs"}
