"""Done means right: settings, files and copies of a finished run, and what the second command makes of them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ghosttrack.runtime import files, records
from tests.conftest import copy_house, job_counts, snakemake
from tests.e2e.tiny_runs import MODEL, RUN, contents, launch, planned
from tests.e2e.waves import arguments, limited

pytestmark = pytest.mark.e2e

LAYERS = 4


def results(house: Path) -> Path:
    return house / "results" / MODEL


def said(house: Path, *given: str) -> str:
    """What a dry run prints."""
    result = snakemake(house, "-n", *RUN, *given)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def test_a_changed_setting_whose_first_job_fails_is_not_forgotten(
    house_to_change: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("activations={site: mlp_out}", "--", "saes")
    monkeypatch.setenv(
        "GHOSTTRACK_FAULTS", '[{"job": "extract_activations/*", "kind": "no_space"}]'
    )
    failed = launch(house_to_change, *given)
    assert failed.returncode == 1
    assert "site resid_post -> mlp_out" in failed.stderr
    monkeypatch.delenv("GHOSTTRACK_FAULTS")
    again = launch(house_to_change, *given)
    assert again.returncode == 0, again.stderr[-4000:]
    assert job_counts(again.stdout + again.stderr)["train_sae"] == LAYERS
    for path in (results(house_to_change) / "saes").glob("*/cfg.json"):
        assert json.loads(path.read_text())["metadata"]["hook_name"].endswith("hook_mlp_out")


def test_without_snakemakes_folder_a_changed_setting_plans_exactly_training_and_what_follows(
    house_to_change: Path,
) -> None:
    shutil.rmtree(house_to_change / ".snakemake")
    assert planned(house_to_change) == {}
    text = said(house_to_change, "sae={k: 8}")
    assert f"train_sae ({LAYERS} jobs): settings: sae.k 16 -> 8" in text
    counts = job_counts(text)
    assert counts["train_sae"] == counts["evaluate_sae"] == counts["describe_features"] == LAYERS
    assert counts["write_report"] == counts["write_explorer"] == counts["save_detector"] == 1
    assert not [
        name for name in counts if name.startswith(("fetch", "extract", "generate", "audit"))
    ]


def test_a_report_is_not_written_over_saes_of_another_k(house_to_change: Path) -> None:
    """One data set fewer, and a k that nothing was trained with: Snakemake alone would write the report."""
    shutil.rmtree(house_to_change / ".snakemake")
    counts = job_counts(said(house_to_change, "sae={k: 8}", "datasets=[capitals,questions]"))
    assert counts["train_sae"] == LAYERS
    target = f"results/{MODEL}/evaluation/checks.json"
    other = snakemake(
        house_to_change,
        *RUN,
        "--allowed-rules",
        "check_results",
        "-R",
        "check_results",
        "--",
        target,
    )
    assert other.returncode == 0, other.stderr[-3000:]
    wrong = snakemake(
        house_to_change,
        *RUN,
        "sae={k: 8}",
        "--allowed-rules",
        "check_results",
        "-R",
        "check_results",
        "--",
        target,
    )
    assert wrong.returncode == 1
    assert "made with sae.k 16, but this run has 8" in wrong.stdout + wrong.stderr


def test_another_warm_start_layer_makes_every_warm_started_sae_due(tmp_path: Path) -> None:
    house = copy_house(tmp_path / "house")
    given = "sae={dictionaries: warm_start, epochs: 1}"
    first = snakemake(house, *RUN, given, "activations={layers: [0, 1]}", "--", "saes")
    assert first.returncode == 0, first.stderr[-3000:]
    text = said(house, given, "activations={layers: [0, 1, 2, 3]}")
    assert job_counts(text)["train_sae"] == LAYERS
    assert "sae.warm_start_layer 1 -> 2" in text
    assert job_counts(said(house, given, "activations={layers: [1]}")).get("train_sae") is None


def test_a_data_set_file_with_an_older_date_is_read_again(house_to_change: Path) -> None:
    table = house_to_change / "mine.csv"
    table.write_text("text,label\nA b.,1\nA c.,0\nA d.,1\nA e.,0\n")
    (house_to_change / "config/datasets/mine.yaml").write_text("{source: file, path: mine.csv}")
    target = f"results/{MODEL}/datasets/mine/examples.parquet"
    assert launch(house_to_change, "datasets=[mine]", "--", target).returncode == 0
    table.touch()
    assert "Nothing to be done" in said(house_to_change, "datasets=[mine]", "--", target)
    table.write_text("text,label\nA b.,0\nA c.,1\nA d.,0\nA e.,1\n")
    os.utime(table, (1_000_000_000, 1_000_000_000))
    text = said(house_to_change, "datasets=[mine]", "--", target)
    assert job_counts(text) == {"fetch_dataset": 1}
    assert "fetch_dataset: the content of mine.csv changed" in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_directory_that_changed_is_refused(
    finished: Path, tmp_path: Path, name: str
) -> None:
    house = copy_house(tmp_path / "house")
    source = Path(shutil.copytree(results(finished) / "model", tmp_path / "weights"))
    (source / "source.json").unlink()
    given = ("--profile", "profiles/local", "--config", "model=mine", f"model_path={source}")
    result = snakemake(house, *given, "--", "results/mine/model/source.json")
    assert result.returncode == 0, result.stderr[-3000:]
    content, dates = bytearray((source / name).read_bytes()), (source / name).stat()
    place = content.rindex(b"0") if name.endswith(".json") else len(content) // 3
    content[place] ^= 1
    (source / name).write_bytes(content)
    os.utime(source / name, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    result = snakemake(house, *given, "-n")
    assert result.returncode == 1
    assert (
        "has other weights, another configuration or another tokenizer"
        in result.stdout + result.stderr
    )


@pytest.mark.parametrize("kept", [True, False], ids=["with .snakemake", "without .snakemake"])
def test_a_copy_of_a_finished_run_has_nothing_to_do_whatever_its_dates(
    finished: Path, tmp_path: Path, kept: bool
) -> None:
    left_out = () if kept else (".snakemake",)
    house = Path(
        shutil.copytree(
            finished,
            tmp_path / "a copy",
            symlinks=True,
            copy_function=shutil.copy,
            ignore=shutil.ignore_patterns(*left_out),
        )
    )
    for path in results(house).rglob(
        "*.zarr"
    ):  # as though everything had been made before what it was made from
        os.utime(path, (1, 1))
    (results(house) / "model" / "model.safetensors").touch()
    assert planned(house) == {}


def test_results_that_are_a_link_and_moved_results_have_nothing_to_do(
    finished: Path, tmp_path: Path
) -> None:
    house = copy_house(tmp_path / "clone")
    shutil.copytree(finished / "results", tmp_path / "elsewhere")
    (house / "results").symlink_to(tmp_path / "elsewhere")
    assert planned(house) == {}


def test_one_lost_sae_costs_one_extraction_pass_and_one_training(
    three_at_once: tuple[Path, str, int], tmp_path: Path
) -> None:
    house = Path(shutil.copytree(three_at_once[0], tmp_path / "house", symlinks=True))
    given = arguments(limited(3))
    before = contents(house)
    assert not list(results(house).rglob("activations/*/*.zarr"))
    (results(house) / "saes/layer_01/sae_weights.safetensors").unlink()
    again = launch(house, *given, "--", "saes")
    assert again.returncode == 0, again.stderr[-3000:]
    counts = job_counts(again.stdout + again.stderr)
    counts.pop("saes", None)
    assert counts == {"extract_activations_tiny_gpt2_wave_00": 2, "train_sae": 1}
    assert contents(house) == before


def test_what_was_made_again_with_other_bytes_ends_the_run_with_an_error(
    house_to_change: Path,
) -> None:
    """As on another processor: the lost file comes back different, and what was made from the first one stands."""
    path = results(house_to_change) / "evaluation/metrics.csv"
    path.unlink()
    record = records.record_path(path.relative_to(house_to_change))
    content = json.loads((house_to_change / record).read_text())
    (house_to_change / record).write_text(json.dumps({**content, "sha256": "0" * 64}))
    for follower in results(house_to_change).glob(
        "records/**/*.json"
    ):  # they were made from those other bytes
        text = follower.read_text()
        if follower != house_to_change / record:
            follower.write_text(text.replace(content["sha256"], "0" * 64))
    ended = launch(house_to_change)
    assert ended.returncode == 1
    assert "results do not match their inputs" in ended.stdout + ended.stderr
    again = launch(house_to_change)
    assert again.returncode == 0, again.stderr[-3000:]
    assert job_counts(again.stdout + again.stderr)["write_report"] == 1
    assert planned(house_to_change) == {}


DAMAGED = {
    "model/model.safetensors": "fetch_model",
    "model/tokenizer.json": "fetch_model",
    "saes/layer_01/sae_weights.safetensors": "train_sae",
    "saes/layer_01/cfg.json": "train_sae",
    "datasets/capitals/examples.parquet": "fetch_dataset",
    "examples/capitals/outputs.parquet": "extract_examples",
    "tracks/capitals.default.json": "track_features",
    "signals/capitals.default.parquet": "measure_signals",
    "detection/capitals/scores.parquet": "train_detectors",
    "detection/scores.parquet": "evaluate_detectors",
    "detection/detector.safetensors": "save_detector",
    "evaluation/ledger.csv": "evaluate_detectors",
    "report.html": "write_report",
}


def test_one_flipped_bit_in_any_result_is_named_and_made_again_by_its_job_alone(
    house_to_change: Path,
) -> None:
    before = contents(house_to_change)
    for name in DAMAGED:
        path = results(house_to_change) / name
        content, dates = bytearray(path.read_bytes()), path.stat()
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    text = said(house_to_change)
    counts = job_counts(text)
    for name, rule in DAMAGED.items():
        assert any(job.startswith(rule) for job in counts), name
        assert name in text, name
    assert sum(counts.values()) - counts.get("all", 0) == len(
        {(rule, *_layer(name)) for name, rule in DAMAGED.items()}
    )
    ended = launch(house_to_change)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert contents(house_to_change) == before


def _layer(name: str) -> tuple[str, ...]:
    return tuple(part for part in Path(name).parts if part.startswith("layer_"))


def test_a_job_refuses_an_input_that_changes_under_a_run(house_to_change: Path) -> None:
    ledger = results(house_to_change) / "evaluation/ledger.csv"
    (results(house_to_change) / "report.html").unlink()
    ledger.write_bytes(ledger.read_bytes() + b"\n")
    alone = snakemake(
        house_to_change,
        *RUN,
        "--allowed-rules",
        "write_report",
        "--",
        f"results/{MODEL}/report.html",
    )
    assert alone.returncode == 1
    assert (
        "evaluation/ledger.csv was damaged or edited since its job wrote it"
        in alone.stdout + alone.stderr
    )
    assert not (results(house_to_change) / "report.html").exists()


def test_every_result_has_a_record_and_no_record_names_a_folder_of_this_machine(
    finished: Path,
) -> None:
    for path in results(finished).rglob("*"):
        name = path.relative_to(finished)
        inside = any(parent.suffix == ".zarr" for parent in path.parents)
        if (
            path.is_file()
            and not inside
            and name.parts[2] not in ("logs", "benchmarks", "state", "records")
        ):
            if name.as_posix().startswith(f"results/{MODEL}/model/") and path.suffix == ".json":
                continue  # what tokenizers bring along: in source.json, checked when the model is loaded
            found = json.loads((finished / records.record_path(name)).read_text())
            assert found["sha256"] == files.sha256_file(path)
            assert str(finished) not in json.dumps(found)


def test_a_run_of_another_target_does_not_show_the_report_of_other_settings(
    house_to_change: Path,
) -> None:
    target = f"results/{MODEL}/datasets/capitals/examples.parquet"
    ended = launch(house_to_change, "seed=1", "--", target)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (results(house_to_change) / "report.html").exists()
    assert "Report: " not in ended.stdout + ended.stderr


def test_code_that_is_edited_during_a_run_ends_it_with_an_error(house_to_change: Path) -> None:
    script = house_to_change / "workflow_scripts/fetch/fetch_dataset.py"
    text = script.read_text()
    edit = (
        "from ghosttrack.facts import statements\n"
        "Path(statements.__file__).open('a').write('EDITED = 1\\n')\n"
    )
    script.write_text(text.replace("\ndef main(", f"\n{edit}\ndef main(", 1))
    target = f"results/{MODEL}/datasets/capitals/examples.parquet"
    ended = launch(house_to_change, "--", target)
    assert ended.returncode == 1
    assert "the code of fetch_dataset was edited during the run" in ended.stdout + ended.stderr
    script.write_text(text)
    again = launch(house_to_change, "--", target)
    assert again.returncode == 0, again.stderr[-3000:]
    assert job_counts(again.stdout + again.stderr)["fetch_dataset"] == 1
