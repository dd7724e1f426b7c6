"""The setting `event_files` adds files to the logs, changes no result and reruns no finished layer."""

import csv
import shutil
from pathlib import Path

import pytest
from event_reader import points

from tests.e2e.tiny_runs import MODEL, contents, launch, planned

pytestmark = pytest.mark.e2e


def test_a_layer_that_is_trained_writes_its_event_file_and_no_other_layer_is_trained_again(
    house_to_change: Path,
) -> None:
    assert planned(house_to_change, "event_files=true") == {}
    before = contents(house_to_change)
    results = house_to_change / "results" / MODEL
    shutil.rmtree(results / "saes" / "layer_02")
    done = launch(house_to_change, "event_files=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(house_to_change) == before
    with (results / "saes" / "layer_02" / "history.csv").open(encoding="utf-8") as stream:
        history = list(csv.DictReader(stream))
    folder = results / "logs" / "events" / "train_sae"
    assert [path.name for path in folder.iterdir()] == ["layer_02"]
    curves = points(folder / "layer_02")
    assert set(curves) == {"loss", "fvu", "l0", "dead", "learning_rate"}
    for name, curve in curves.items():
        assert [step for step, _ in curve] == [int(row["step"]) for row in history]
        expected = [float(row[name]) for row in history]
        assert [value for _, value in curve] == pytest.approx(expected, rel=1e-6)
