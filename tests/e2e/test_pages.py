"""The blocks of README.md and docs/tutorial.md, run in the order of the page after a tiny run.

A clone takes the place of the reader's, with these differences:

- its default model is tiny-gpt2, and the results of smollm2-135m and gpt2-medium are those of
  tiny-gpt2, whose run has finished;
- `.venv` is the environment of the tests, which `make` takes as ready;
- files that the pages call the reader's own exist: `mine.csv` as the tutorial prints it,
  `config/datasets/mine.yaml` for these texts, a checkpoint in `path/to/model`, and `my_scores.csv`
  with a score of every evaluated text;
- `results/mine` is a copy of the finished run;
- the commands of REPLACED run in the form given there.

Python blocks of other pages that read results run there, too, with capitals for the data set cities
and layer 2 for layer 14.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT
from tests.docs.test_documentation import Block, block_id, blocks, name_of
from tests.e2e.tiny_runs import MODEL, environment

pytestmark = pytest.mark.e2e


class Replaced(NamedTuple):
    """What runs in place of a command, and why."""

    command: str
    reason: str


PAGES = ("docs/tutorial.md", "README.md")
NAMED_MODEL = re.compile(r"smollm2-135m|gpt2-medium")
REPLACED = {
    "make test": Replaced(
        'make test ARGS="-q tests/unit/test_statistics.py"',
        "all tests take minutes, and this is one of them",
    ),
    'make run ARGS="--config model=mine model_path=path/to/model preset=laptop"': Replaced(
        'make run ARGS="--until check_model --config model=other model_path=path/to/model preset=laptop"',
        "a second whole run takes minutes, and `make compare` needs a finished results/mine",
    ),
    "make run ARGS=\"--config 'datasets=[cities,mine]'\"": Replaced(
        "make run ARGS=\"--until fetch_dataset --config 'datasets=[cities,mine]'\"",
        "the later jobs do not depend on where a data set comes from",
    ),
    "make run ARGS=\"--config 'sae={k: 32}' seed=1\"": Replaced(
        "make dry-run ARGS=\"--config 'sae={k: 32}' seed=1\"",
        "it replaces every result of the run that the next commands read",
    ),
    "snakemake --profile slurm --config model=gpt2-medium": Replaced(
        "snakemake --profile slurm --config model=tiny-gpt2 -n",
        "it needs a cluster; tests/slurm runs the workflow on a real Slurm",
    ),
}


def of_page(name: str, language: str) -> list[Block]:
    return [block for block in blocks(language) if name_of(block.page) == name]


def substituted(block: Block) -> str:
    lines = (line.partition("  #")[0].rstrip() for line in block.text.splitlines())
    lines = (REPLACED[line].command if line in REPLACED else line for line in lines)
    return NAMED_MODEL.sub(MODEL, "\n".join(lines))


def furnish(house: Path) -> None:
    """Give a copy of the finished house what the pages expect of the reader's clone."""
    (house / "config" / "config.yaml").write_text(f"model: {MODEL}\n", encoding="utf-8")
    (house / ".venv").symlink_to(sys.prefix)
    results = house / "results"
    shutil.copytree(results / MODEL, results / "mine")
    shutil.copytree(ROOT / "tests", house / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", house)
    shutil.copytree(results / MODEL / "model", house / "path" / "to" / "model")
    table = next(block.text for block in of_page("docs/tutorial.md", "text"))
    (house / "mine.csv").write_text(table, encoding="utf-8")
    scores = pd.read_parquet(results / MODEL / "detection" / "scores.parquet")
    mine = scores[scores["score"] == "answer_logprob_mean"].drop(columns="score")
    mine = mine.rename(columns={"value": "score"})[["dataset", "id", "score"]]
    mine.to_csv(house / "my_scores.csv", index=False)
    rows = list(csv.DictReader(table.splitlines()))
    assert {"text", "answer"} <= set(rows[0])
    (house / "config" / "datasets" / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "source": "file",
                "path": "labelled.csv",
                "text_column": "text",
                "answer_column": "answer",
                "label_column": "label",
                "true_label": 0,
            }
        ),
        encoding="utf-8",
    )
    with (house / "labelled.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "label"])
        writer.writeheader()
        writer.writerows({**row, "label": number % 2} for number, row in enumerate(rows))


@pytest.fixture(scope="module")
def clones(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A furnished copy of the finished house for each page."""
    made = {}
    for page in PAGES:
        made[page] = tmp_path_factory.mktemp("page") / "house"
        shutil.copytree(finished, made[page], symlinks=True)
        furnish(made[page])
    return made


def run(command: list[str], house: Path) -> str:
    """Standard output of a successful command in the environment of the pages."""
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command,
        cwd=house,
        env={**environment(house), "MAKEFLAGS": "READY=", "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in of_page(page, "sh")], ids=block_id
)
def test_shell_blocks_run(clones: dict[str, Path], block: Block) -> None:
    house, text = clones[name_of(block.page)], substituted(block)
    outputs = [house / name for name in re.findall(r"--out (\S+?)\"?$", text, re.MULTILINE)]
    for path in outputs:
        path.unlink(missing_ok=True)
    run(["bash", "-e", "-c", text], house)
    for path in outputs:
        assert path.read_text(encoding="utf-8").count("Berlin") >= 1


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if "results/" in block.text], ids=block_id
)
def test_python_blocks_read_results_and_score_texts(clones: dict[str, Path], block: Block) -> None:
    text = NAMED_MODEL.sub(MODEL, block.text)
    text = text.replace("layer_14", "layer_02").replace("cities", "capitals")
    said = run([sys.executable, "-c", text], clones["docs/tutorial.md"]).splitlines()
    assert len(said) == block.text.count("Text(")
    for line in said:
        assert 0 <= float(line.split()[0]) <= 1, line


@pytest.mark.parametrize("page", PAGES)
def test_results_that_a_page_names_exist_when_its_blocks_have_run(
    clones: dict[str, Path], page: str
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`results/smollm2-135m/([\w/.]+)`", text))
    assert named
    for name in named:
        assert (clones[page] / "results" / MODEL / name).exists(), name


def test_every_replaced_command_is_in_a_page() -> None:
    lines = {
        line for page in PAGES for block in of_page(page, "sh") for line in block.text.splitlines()
    }
    assert set(REPLACED) <= lines
