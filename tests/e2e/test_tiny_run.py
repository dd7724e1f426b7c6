"""The real workflow on the tiny model: it finishes, repeats nothing, and reruns exactly what an edit touches."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.numpy

from ghosttrack.runtime import lease
from tests.conftest import ROOT, copy_house, job_counts, snakemake
from tests.e2e.tiny_runs import MODEL, RUN, contents, environment, launch, planned

pytestmark = pytest.mark.e2e

# Jobs that must not run again because of anything that comes after them.
EXPENSIVE = ("fetch", "extract", "generate", "train_sae", "evaluate_sae", "describe")


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    assert planned(finished) == {}


def test_the_report_is_one_page_that_needs_no_network(finished: Path) -> None:
    page = (finished / "results" / MODEL / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="https?://', page)
    for name in ("capitals", "element_symbol", "questions"):
        assert name in page


def test_the_metric_table_has_every_control_beside_the_detector(finished: Path) -> None:
    table = pd.read_csv(finished / "results" / MODEL / "evaluation" / "metrics.csv")
    for _, rows in table[table["dataset"] == "capitals"].groupby("mode"):
        assert {
            "ghosttrack",
            "answer_logprob_mean",
            "raw_probe",
            "text_only",
            "embedding_probe",
        } <= set(rows["score"])
        assert rows["n"].nunique() == 1
        shown = rows.dropna(subset=["auroc"])
        assert (shown["auroc_low"] <= shown["auroc"]).all()
        assert (shown["auroc"] <= shown["auroc_high"]).all()


def test_the_notebook_opens_a_finished_run(finished: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "e2e" / "notebook.py"),
            str(ROOT / "docs" / "read_a_run.ipynb"),
        ],
        cwd=finished,
        env={**environment(finished), "GHOSTTRACK_RUN": str(finished / "results" / MODEL)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    texts = pd.read_parquet(
        finished / "results" / MODEL / "datasets" / "capitals" / "examples.parquet"
    )["text"]
    assert texts[0] in result.stdout
    assert "(context: 16, position: 128, channel: 64)" in result.stdout


def test_the_notebook_is_stored_without_outputs() -> None:
    book = json.loads((ROOT / "docs" / "read_a_run.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    assert not [
        cell for cell in book["cells"] if cell.get("outputs") or cell.get("execution_count")
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda scripts: [path.touch() for path in scripts.rglob("*.py")], id="touched scripts"
        ),
        pytest.param(
            lambda scripts: append(
                scripts / "ghosttrack" / "tracks" / "tracking.py", "\n# a remark\n"
            ),
            id="a comment",
        ),
        pytest.param(
            lambda scripts: append(
                scripts / "ghosttrack" / "runtime" / "job.py", "\nFORMAT = 'other'\n"
            ),
            id="log format",
        ),
        pytest.param(
            lambda scripts: replace(
                scripts / "ghosttrack" / "settings" / "tracking.py",
                "    top_k: int = Field(",
                "    brand_new_key: int = Field(3, description='New.')\n    top_k: int = Field(",
            ),
            id="a new settings key",
        ),
    ],
)
def test_what_cannot_change_a_result_reruns_nothing(
    house_to_change: Path, change: Callable[[Path], object]
) -> None:
    change(house_to_change / "workflow_scripts")
    assert planned(house_to_change) == {}


def test_an_edit_of_the_tracker_reruns_tracking_and_what_follows_but_nothing_expensive(
    house_to_change: Path,
) -> None:
    append(
        house_to_change / "workflow_scripts" / "ghosttrack" / "tracks" / "tracking.py",
        "\nEDITED = True\n",
    )
    counts = planned(house_to_change)
    assert counts["track_features_tiny_gpt2"] == 3
    assert counts["write_report"] == 1
    assert not [name for name in counts if name.startswith(EXPENSIVE)]


def test_a_tracking_setting_reruns_no_training(house_to_change: Path) -> None:
    result = snakemake(house_to_change, *RUN, "tracking={top_k: 8, neighbours: 8}", "-n")
    counts = job_counts(result.stdout + result.stderr)
    assert counts["track_features_tiny_gpt2"] == 3
    assert not [name for name in counts if name.startswith(EXPENSIVE)]


def test_a_data_set_taken_out_is_taken_out_of_the_means(house_to_change: Path) -> None:
    result = snakemake(house_to_change, *RUN, "datasets=[capitals,element_symbol]", "-n")
    counts = job_counts(result.stdout + result.stderr)
    assert counts["evaluate_detectors"] == 1
    assert not [name for name in counts if name.startswith((*EXPENSIVE, "track", "audit", "train"))]


def test_another_disk_budget_reruns_nothing(house_to_change: Path) -> None:
    result = snakemake(house_to_change, *RUN, "activations={disk_budget_gb: 0.0046}", "-n")
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr


def test_a_lost_figure_or_table_is_made_again(house_to_change: Path) -> None:
    shutil.rmtree(house_to_change / "results" / MODEL / "figures")
    shutil.rmtree(house_to_change / "results" / MODEL / "tracks")
    counts = planned(house_to_change)
    assert counts["draw_figures"] == 1
    assert counts["track_features_tiny_gpt2"] == 3
    assert not [name for name in counts if name.startswith(EXPENSIVE)]


def test_a_lost_sae_is_trained_again_alone(house_to_change: Path) -> None:
    shutil.rmtree(house_to_change / "results" / MODEL / "saes" / "layer_02")
    counts = planned(house_to_change)
    assert counts["train_sae"] == 1
    assert counts["evaluate_sae"] == 1  # its quality.json was lost too
    assert set(counts) == {"train_sae", "evaluate_sae"}


@pytest.mark.parametrize(
    ("lost", "rule"),
    [
        ("saes/layer_02/sae_weights.safetensors", "train_sae"),
        ("saes/layer_02/cfg.json", "train_sae"),
        ("evaluation/ledger.csv", "evaluate_detectors"),
        ("detection/detector.safetensors", "save_detector"),
    ],
)
def test_a_lost_file_is_made_again_by_its_job(house_to_change: Path, lost: str, rule: str) -> None:
    (house_to_change / "results" / MODEL / lost).unlink()
    assert planned(house_to_change)[rule] == 1


def test_pretrained_autoencoders_take_the_place_of_trained_ones(house_to_change: Path) -> None:
    saes = house_to_change / "results" / MODEL / "saes"
    shutil.copytree(saes, house_to_change / "pretrained")
    folder, given = saes / "layer_01", house_to_change / "pretrained" / "layer_01"
    target = f"results/{MODEL}/saes/layer_01/quality.json"
    result = snakemake(house_to_change, *RUN, "sae={source: pretrained}", "--", target)
    assert result.returncode == 0, result.stderr[-4000:]
    assert job_counts(result.stdout + result.stderr) == {"fetch_sae": 1, "evaluate_sae": 1}
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cfg.json", "quality.json", "sae_weights.safetensors"]
    own, taken = (safetensors.numpy.load_file(each / names[2]) for each in (given, folder))
    assert set(own) == set(taken)
    assert all((own[name] == taken[name]).all() for name in own)
    found, before = (json.loads((each / "quality.json").read_text()) for each in (folder, given))
    assert found["pretrained"]["source"] == "layer_01"
    for key in ("fvu", "l0", "delta_ce"):
        assert found[key] == before[key]


def test_a_sweep_holds_the_run_s_own_autoencoder_and_leaves_the_run_alone(
    house_to_change: Path,
) -> None:
    before = contents(house_to_change)
    result = snakemake(
        house_to_change, *RUN, "sweep={layers: [1], k: [8, 16], seeds: [0]}", "--", "sae_sweep"
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert job_counts(result.stdout + result.stderr) == {
        "sweep_sae": 1,
        "draw_sweep": 1,
        "sae_sweep": 1,
    }
    after = contents(house_to_change)
    assert {name: after[name] for name in before} == before
    arm = "sweep/layer_01/saes/k_016_seed_0/sae_weights.safetensors"
    assert after[arm] == after["saes/layer_01/sae_weights.safetensors"]
    assert planned(house_to_change) == {}


def await_end_of_group(group: int) -> None:
    """Wait until killed processes are gone: on a loaded machine, a child lives on for a moment."""
    end = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)


def test_a_killed_run_is_finished_by_the_same_command_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    house = copy_house(tmp_path / "house")
    screen = tmp_path / "screen"
    with (
        screen.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "ghosttrack.cli.launch", *RUN],
            cwd=house,
            env=environment(house),
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as run,
    ):
        while run.poll() is None and "(Rule: train_sae)" not in screen.read_text():
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
    await_end_of_group(run.pid)
    done = screen.read_text().count("(Rule: train_sae)")
    assert 1 <= done < 4

    result = launch(house)
    again = result.stdout + result.stderr
    assert result.returncode == 0, again[-6000:]
    assert "clearing the lock of a run that was killed" in again
    # Of the two jobs at once, those that had ended before Snakemake said so are not repeated.
    assert max(4 - done - 2, 0) <= again.count("(Rule: train_sae)") <= 4 - done
    assert not re.search(r"\(Rule: (fetch|extract_activations)", again)
    found, expected = contents(house), contents(finished)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_two_runs_at_once_are_refused(house_to_change: Path) -> None:
    (house_to_change / "results" / MODEL / "report.html").unlink()
    # As of a run on other targets: Snakemake's lock does not see that the two work in one folder.
    other_lock = house_to_change / ".snakemake/locks/0.output.lock"
    other_lock.parent.mkdir(exist_ok=True)
    other_lock.write_text("results/other/report.html\n")
    with lease.hold(house_to_change, "snakemake other", pytest.fail):
        for result in (launch(house_to_change), snakemake(house_to_change, *RUN)):
            assert result.returncode == 1
            assert "another run is active in this folder: " in result.stderr
            assert f"process {os.getpid()} (snakemake other)" in result.stderr
            assert "--config model=both" in result.stderr
            assert "Traceback" not in result.stderr
        assert other_lock.exists()
    assert not (house_to_change / "results" / MODEL / "report.html").exists()


def test_a_snakemake_without_a_lease_is_seen_by_its_process(finished: Path) -> None:
    code = "import sys, time; print('snakemake', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, "snakemake"], cwd=finished, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        result = launch(finished)
        other.kill()
    assert result.returncode == 1
    assert f"another run is working in this directory (process {other.pid})" in result.stderr


LONG = "word " * 3000


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("text,verdict\nA b.,1\nA c.,0\n", ["label", "verdict"]),
        ("text,label\nA b.,1\n,0\nA d.,1\nA e.,0\n", ["row 2 of mine.csv", "found nothing"]),
        (f"text,label\n{LONG},1\nA b.,0\nA c.,1\nA d.,0\n", ["context", "mine"]),
        ("text,label\nA b.,yes\nA c.,0\n", ["yes", "label"]),
    ],
    ids=[
        "no label column",
        "an empty text",
        "a text longer than the context",
        "a label that is no label",
    ],
)
def test_user_texts_with_a_mistake_are_refused_by_name(
    house_to_change: Path, table: str, words: list[str]
) -> None:
    (house_to_change / "mine.csv").write_text(table)
    (house_to_change / "config/datasets/mine.yaml").write_text("{source: file, path: mine.csv}")
    before = contents(house_to_change)
    result = launch(
        house_to_change, "datasets=[mine]", "--", f"results/{MODEL}/examples/mine/outputs.parquet"
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output, output[-3000:]
    after = contents(house_to_change)
    assert {name: after[name] for name in before} == before


def test_a_local_directory_serves_as_a_model_and_other_weights_are_refused(
    house_to_change: Path,
) -> None:
    source = Path(
        shutil.copytree(house_to_change / "results" / MODEL / "model", house_to_change / "weights")
    )
    (source / "source.json").unlink()
    arguments = ("--profile", "profiles/local", "--config", "model=mine", f"model_path={source}")
    result = snakemake(house_to_change, *arguments, "--", "results/mine/model/source.json")
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    other = Path(shutil.copytree(source, house_to_change / "other_weights"))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    result = snakemake(house_to_change, "-n", "--config", "model=mine", f"model_path={other}")
    assert result.returncode != 0
    assert "results/mine was made with" in result.stdout + result.stderr


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
