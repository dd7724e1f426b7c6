"""The table of jobs and files in `planning/run_state.py` is held to Snakemake's own plan."""

import csv
import re
from pathlib import Path

import pytest

from ghosttrack.planning import plan, run_state
from ghosttrack.planning.configuration import load, load_dataset
from tests.conftest import ROOT, snakemake

pytestmark = pytest.mark.dag

CONFIGS = [
    {},
    {"strict": "true"},
    {"sae": "{dictionaries: shared}"},
    {"activations": "{disk_budget_gb: 5}"},
    {"tracking": "{compare_candidates: all}", "activations": "{disk_budget_gb: 5}"},
    {"tracking": "{compare_candidates: conflict}", "datasets": "[capitals, conflict_cities]"},
    {"tracking": "{variants: [default, permuted]}", "datasets": "[capitals, questions]"},
    {"datasets": "[capitals, conflict_cities, conflict_questions]"},
    {
        "datasets": "[capitals, questions]",
        "external": "{tables: [{name: mine, path: workflow_scripts/ghosttrack/data/facts/"
        "us_cities.csv}], classes: [{name: mean, "
        "source: 'config/detectors/mean_difference.py:MeanDifference', reads: [codes, tracks]}]}",
    },
    {"datasets": "[capitals, ragtruth_qa]"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_file_of_the_table_is_an_output_of_the_rule_that_it_names(
    house: Path, config: dict[str, str]
) -> None:
    given = ["model=tiny-gpt2", *(f"{key}={value}" for key, value in config.items())]
    summary = snakemake(house, "--detailed-summary", "--config", *given)
    rows = csv.DictReader(summary.stdout.splitlines(), delimiter="\t")
    planned = {
        row["output_file"]: re.sub(r"_tiny_gpt2(_wave_\d\d)?$", "", row["rule"]) for row in rows
    }
    (settings,) = load({"model": "tiny-gpt2", **config}, ROOT / "config").values()
    datasets = {name: load_dataset(name, ROOT / "config") for name in settings.datasets}
    table = list(run_state._outputs(settings, datasets))
    for rule, _, files in table:
        assert {planned.get(f"results/tiny-gpt2/{file}") for file in files} == {rule}, files
    waves = plan.waves(settings)
    phases = {job.phase for job in run_state.jobs(settings, waves, datasets, house / "results")}
    assert phases == set(planned.values())
