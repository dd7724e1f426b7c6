"""Positive controls of compared runs: those of this checkout's config, and those of the runs."""

from pathlib import Path

from ghosttrack.cli import compare
from ghosttrack.runtime import files


def test_the_controls_of_a_run_are_those_it_was_made_with(tmp_path: Path) -> None:
    run, other = tmp_path / "one", tmp_path / "two"
    other.mkdir()
    record = run / "records" / "evaluation" / "metrics.csv.json"
    record.parent.mkdir(parents=True)
    content = {"params": {"controls": ["theirs"]}, "inputs": {}, "sha256": "0"}
    files.write_json(record, content)
    names = ["cities", "theirs", "element_symbol"]
    assert set(compare.controls_among(names, [run, other])) == {"theirs", "element_symbol"}
