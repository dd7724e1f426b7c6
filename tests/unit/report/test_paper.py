"""The parts of a paper: every number is one of the tables', and LaTeX takes them."""

import json
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest

from ghosttrack.report import paper
from report import write_paper


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fake_results.Run:
    return fake_results.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def written(run: fake_results.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("paper")
    figures = [
        folder / f"{name}.{kind}" for name, kind in product(["auroc", "links"], ["pdf", "png"])
    ]
    for path in figures:
        Figure(figsize=(1, 1)).savefig(path)
    write_paper.main(
        metrics=run.metrics,
        ledger=run.ledger,
        quality=run.quality,
        figures=figures,
        paper=folder / "paper",
        model="smollm2_135m & co",
        layers=fake_results.LAYERS,
    )
    return folder / "paper"


def rounded(values: np.ndarray) -> set[str]:
    return {
        f"{value:.{digits}f}" for value in values[np.isfinite(values)] for digits in (0, 1, 3, 4)
    }


def numbers(text: str) -> list[str]:
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    return re.findall(r"-?\d+\.\d+", body)


@pytest.mark.parametrize("name", ["detectors", "claims", "saes"])
def test_every_number_of_a_table_is_in_the_files_it_is_made_from(
    run: fake_results.Run, written: Path, name: str
) -> None:
    if name == "saes":
        known = rounded(
            np.array(
                [
                    float(value)
                    for path in run.quality
                    for value in json.loads(path.read_text()).values()
                    if isinstance(value, int | float)
                ]
            )
        )
    else:
        table = pd.read_csv(run.metrics if name == "detectors" else run.ledger)
        known = rounded(table.select_dtypes("number").to_numpy(dtype=float).ravel())
    found = numbers((written / "tables" / f"{name}.tex").read_text())
    assert len(found) > 20
    assert set(found) <= known
    assert "0.123" not in known  # an invented number would be noticed


def test_every_data_set_and_layer_has_its_row_and_names_are_escaped(written: Path) -> None:
    detectors = (written / "tables" / "detectors.tex").read_text()
    for dataset in fake_results.SETS:
        assert dataset.replace("_", r"\_") in detectors
    assert detectors.count(r"\textbf") == len(fake_results.SETS) + 2  # and the two means
    assert r"smollm2\_135m \& co" in (written / "paper.tex").read_text()
    assert sorted(path.name for path in (written / "figures").iterdir()) == [
        "auroc.pdf",
        "links.pdf",
    ]
    assert "@software{ghosttrack" in (written / "citation.bib").read_text()


def test_a_missing_number_is_a_dash() -> None:
    assert paper.number(float("nan")) == "--"
    assert paper.number(-0.0312) == "$-0.031$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_document_compiles(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "paper"))
    for _ in range(2):  # the second pass knows the citation
        found = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
            cwd=folder,
            capture_output=True,
            check=False,
            encoding="latin-1",
        )
        assert found.returncode == 0, found.stdout[-3000:]
    assert "undefined" not in found.stdout
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
