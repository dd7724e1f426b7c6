from pathlib import Path

import fake_results
import pandas as pd
import pytest

import compare_models
from ghosttrack.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[fake_results.Run]:
    return [fake_results.make(tmp_path_factory.mktemp("run"), seed) for seed in (0, 1)]


def compare(runs: list[fake_results.Run], folder: Path, models: list[str]) -> tuple[pd.DataFrame, str]:
    compare_models.main(
        metrics=[run.metrics for run in runs], ledgers=[run.ledger for run in runs], table=folder / "metrics.csv",
        page=folder / "comparison.html", models=models, controls=fake_results.CONTROLS,
    )  # fmt: skip
    return pd.read_csv(folder / "metrics.csv"), (folder / "comparison.html").read_text()


def test_the_table_holds_every_row_of_every_model(runs: list[fake_results.Run], tmp_path: Path) -> None:
    table, _ = compare(runs, tmp_path, ["small", "medium"])
    for name, run in zip(["small", "medium"], runs, strict=True):
        part = table[table["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, pd.read_csv(run.metrics))


def test_the_page_sets_the_models_side_by_side(runs: list[fake_results.Run], tmp_path: Path) -> None:
    _, page = compare(runs, tmp_path, ["small", "<b>medium</b>"])
    assert '<th scope="col">small</th><th scope="col">&lt;b&gt;medium&lt;/b&gt;</th>' in page
    assert "<b>medium" not in page
    assert page.count("<dt>") == 2
    assert "on 3 of 4 data sets" in page


def test_one_model_alone_has_a_page_too(runs: list[fake_results.Run], tmp_path: Path) -> None:
    table, page = compare(runs[:1], tmp_path, ["small"])
    assert set(table["model"]) == {"small"}
    assert "put to 1 model:" in page


def test_a_data_set_that_one_model_lacks_is_a_dash(runs: list[fake_results.Run], tmp_path: Path) -> None:
    metrics = pd.read_csv(runs[1].metrics)
    metrics[metrics["dataset"] != "cities"].to_csv(tmp_path / "fewer.csv", index=False)
    _, page = compare([runs[0], runs[1]._replace(metrics=tmp_path / "fewer.csv")], tmp_path, ["small", "medium"])
    assert "<td>\u2013</td>" in page


def test_a_metrics_file_that_is_none_is_named(runs: list[fake_results.Run], tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"bad\.csv: expected the columns dataset"):
        compare([runs[0]._replace(metrics=tmp_path / "bad.csv")], tmp_path, ["small"])
