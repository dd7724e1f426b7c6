"""The workflow as a Snakemake module of another workflow, on a finished run."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import job_counts, snakemake
from tests.e2e.tiny_runs import MODEL

pytestmark = pytest.mark.e2e
OTHER = """
configfile: "ghosttrack.yaml"


module ghosttrack:
    snakefile:
        "{house}/Snakefile"
    config:
        config


use rule * from ghosttrack as ghosttrack_*


rule established:
    "A rule of the other workflow, on a table of this one."
    default_target: True
    input:
        "results/{model}/evaluation/ledger.csv",
    output:
        "verdicts.txt",
    shell:
        "wc -l < {{input}} > {{output}}"
"""


def test_another_workflow_uses_the_rules_and_resumes_a_finished_run(
    house_to_change: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(house_to_change / "results", other / "results")
    (other / "Snakefile").write_text(OTHER.format(house=house_to_change, model=MODEL))
    (other / "ghosttrack.yaml").write_text(f"model: {MODEL}\n")
    ledger = other / "results" / MODEL / "evaluation" / "ledger.csv"
    before = ledger.read_bytes()
    ledger.unlink()
    options = ("--cores", "1", "--rerun-triggers", "mtime")
    planned = snakemake(other, *options, "-n")
    assert job_counts(planned.stdout) == {"established": 1, "ghosttrack_evaluate_detectors": 1}
    result = snakemake(other, *options, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert ledger.read_bytes() == before
    assert int((other / "verdicts.txt").read_text()) == len(pd.read_csv(ledger)) + 1
