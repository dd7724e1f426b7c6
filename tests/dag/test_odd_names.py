"""Names, paths and folders that trip Snakemake, in dry runs: they work, or one line says what to change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_house, job_counts, snakemake

pytestmark = pytest.mark.dag

DATASETS = ("c++", "facts (v2)", "NA", "true", "2024", "null", "v1.2")


@pytest.fixture(scope="module")
def odd_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow in a folder with a space and an apostrophe, with a model, data sets and files of names that mean something elsewhere."""
    house = copy_house(tmp_path_factory.mktemp("o'dd") / "a house")
    mine = house / "it's mine"
    mine.mkdir()
    (mine / "texts 1.csv").write_text("text,label\nParis is a city.,0\nParis is a river.,1\n")
    (mine / "a corpus.txt").write_text("Once upon a time.\n")
    (house / "config/models/Llama-3.1-8B.yaml").write_text(
        (house / "config/models/tiny-gpt2.yaml").read_text()
    )
    for name in DATASETS:
        (house / "config/datasets" / f"{name}.yaml").write_text("{source: facts, table: cities}")
    (house / "config/datasets/facts (v2).yaml").write_text('{source: file, path: "~/texts 1.csv"}')
    return house


def test_names_and_paths_are_taken_as_they_stand(odd_house: Path) -> None:
    result = snakemake(
        odd_house,
        "-n",
        "all",
        "scores",
        "--set-resources",
        "extract_heldout_Llama_3_1_8B:mem_mb=4321",
        "--config",
        "model=Llama-3.1-8B",
        f"datasets=[{','.join(DATASETS)}]",
        'corpus={source: "it\'s mine/a corpus.txt"}',
        'score={texts: "it\'s mine/texts 1.csv", context: "~/a corpus.txt"}',
        HOME=str(odd_house / "it's mine"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counts = job_counts(result.stdout)
    assert counts["fetch_dataset"] == counts["extract_examples_Llama_3_1_8B"] == len(DATASETS)
    assert counts["score_texts"] == counts["extract_activations_Llama_3_1_8B_wave_00"] // 2 == 1
    assert "mem_mb=4321" in result.stdout
    for name in DATASETS:
        assert f"results/Llama-3.1-8B/datasets/{name}/examples.parquet" in result.stdout
        assert f"results/Llama-3.1-8B/tracks/{name}.untracked.zarr" in result.stdout
    assert "it's mine/a corpus.txt" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--set-resources", "train_saes:mem_mb=1", "--config", "model=tiny-gpt2"],
            "did you mean train_sae",
        ),
        (
            ["--set-threads", "extract_heldout=2", "--config", "model=tiny-gpt2"],
            "extract_heldout_tiny_gpt2",
        ),
        (
            ["--consider-ancient", "trian_sae=0", "--config", "model=tiny-gpt2"],
            "did you mean train_sae",
        ),
        (["--config", "model=gpt2-small", "model=tiny-gpt2"], "model occurs twice"),
        (
            ["--configfile", "twice.yaml", "--config", "model=tiny-gpt2"],
            "the key seed occurs twice",
        ),
        (["--config", "model=2024"], "model: 2024 is read as a number"),
        (["--config", "model=tiny-gpt2", "datasets=[2024,true]"], "datasets: '2024' is not known"),
        (
            ["--config", "model=tiny-gpt2", "source={kind: wheel, id: '-r evil.txt'}"],
            "NAME==VERSION",
        ),
    ],
)
def test_what_snakemake_would_ignore_is_refused_in_one_line(
    house: Path, arguments: list[str], said: str
) -> None:
    (house / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    result = snakemake(house, "-n", *arguments)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert said in output
    assert "Traceback" not in output


def test_a_settings_file_of_one_s_own_wins_over_config_yaml_and_leaves_its_other_keys(
    house: Path,
) -> None:
    (house / "mine.yaml").write_text("sae: {k: 8}\nactivations: {layers: [10, 12]}\n")
    counts = job_counts(snakemake(house, "-n", "saes", "--configfile", "mine.yaml").stdout)
    assert counts["train_sae"] == 2
    assert "extract_activations_smollm2_135m_wave_00" in counts  # the model of config.yaml


@pytest.mark.parametrize("target", ["run", "dry-run"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--config model=tiny-gpt2 saes", "write it before --config: saes --config"),
        ("--config sae.k=32", "'sae={k: 32}'"),
    ],
)
def test_make_refuses_what_snakemake_answers_with_a_traceback(
    house: Path, target: str, arguments: str, said: str
) -> None:
    result = make(house, target, f"VENV={sys.prefix}", "READY=", f"ARGS={arguments}")
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def make(house: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", *arguments], cwd=house, capture_output=True, text=True, check=False
    )


def test_an_environment_in_a_folder_with_a_space_is_refused_before_it_is_made_and_before_any_job(
    odd_house: Path,
) -> None:
    result = make(odd_house, "env", f"PYTHON={sys.executable}")
    assert result.returncode != 0
    assert "make run VENV=/path/to/an/environment" in result.stderr
    assert not (odd_house / ".venv").exists()
    (odd_house / ".venv").symlink_to(sys.prefix)
    result = make(odd_house, "run", "READY=", "ARGS=-n --config model=tiny-gpt2")
    (odd_house / ".venv").unlink()
    assert result.returncode != 0
    assert "make run VENV=/path/to/an/environment" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_folder_with_braces_is_refused(tmp_path: Path) -> None:
    house = copy_house(tmp_path / "br{x}ace")
    result = snakemake(
        house, "-n", "--config", "model=tiny-gpt2", PYTHONPATH=os.fspath(house / "workflow_scripts")
    )
    assert result.returncode != 0
    assert "move or rename the folder" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
