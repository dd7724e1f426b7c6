import json
import shutil
from pathlib import Path

import fake_results
import pandas as pd
import pytest

from ghosttrack.cli import compare as compare_runs
from ghosttrack.errors import UserError
from ghosttrack.evaluation import paired
from ghosttrack.report import comparison, numbers
from ghosttrack.settings import EvaluationSettings
from report import compare_models


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[fake_results.Run]:
    return [fake_results.make(tmp_path_factory.mktemp("run"), seed) for seed in (0, 1)]


def compare(
    runs: list[fake_results.Run], folder: Path, models: list[str]
) -> tuple[pd.DataFrame, str]:
    compare_models.main(
        metrics=[run.metrics for run in runs],
        page=folder / "comparison.html",
        models=models,
        controls=fake_results.CONTROLS,
    )
    return pd.read_csv(folder / "metrics.csv"), (folder / "comparison.html").read_text()


def test_the_table_holds_every_row_of_every_model(
    runs: list[fake_results.Run], tmp_path: Path
) -> None:
    table, _ = compare(runs, tmp_path, ["small", "medium"])
    for name, run in zip(["small", "medium"], runs, strict=True):
        part = table[table["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, pd.read_csv(run.metrics))


def test_the_page_sets_the_models_side_by_side(
    runs: list[fake_results.Run], tmp_path: Path
) -> None:
    _, page = compare(runs, tmp_path, ["small", "<b>medium</b>"])
    assert '<th scope="col">small</th><th scope="col">&lt;b&gt;medium&lt;/b&gt;</th>' in page
    assert "<b>medium" not in page
    assert page.count("<dt>") == 2
    assert "The detector beats its best control on given texts in 2 of 2 models and" in page


def test_one_model_alone_has_a_page_too(runs: list[fake_results.Run], tmp_path: Path) -> None:
    table, page = compare(runs[:1], tmp_path, ["small"])
    assert set(table["model"]) == {"small"}
    assert "in 1 of 1 model" in page


def test_a_data_set_that_one_model_lacks_is_a_dash(
    runs: list[fake_results.Run], tmp_path: Path
) -> None:
    metrics = pd.read_csv(runs[1].metrics)
    fewer = changed(runs[1], tmp_path / "run", metrics[metrics["dataset"] != "cities"])
    _, page = compare([runs[0], fewer], tmp_path, ["small", "medium"])
    assert "<td>\u2013</td>" in page


def test_a_metrics_file_that_is_none_is_named(runs: list[fake_results.Run], tmp_path: Path) -> None:
    bad = changed(runs[0], tmp_path / "run", pd.DataFrame({"a": [1]}))
    with pytest.raises(UserError, match=r"metrics\.csv: expected the columns dataset"):
        compare([bad], tmp_path, ["small"])


def test_the_page_pairs_what_both_models_scored(
    runs: list[fake_results.Run], tmp_path: Path
) -> None:
    _, page = compare(runs, tmp_path, ["small", "medium"])
    found = (
        pd.read_csv(tmp_path / "differences.csv")
        .query("dataset == 'all_given' and score == 'ghosttrack'")
        .iloc[0]
    )
    top = page[: page.index("<details")]
    assert f'<div class="value">{numbers.signed(found["difference"])}' in top
    assert f"on {found['n']:,} shared texts" in top


def test_data_sets_without_folds_are_compared_by_the_models_output(
    runs: list[fake_results.Run],
) -> None:
    """No detector has a mean over them in metrics.csv, but the log-probability has a difference."""
    found = []
    for run in runs:
        finished = comparison.read(run.metrics.parents[1])
        scores = finished.scored.scores
        scores = scores[scores["dataset"].isin(["cities", "us_cities"])]
        trained = scores["score"] != "answer_logprob_mean"
        metrics = finished.metrics[finished.metrics["dataset"].isin(["cities", "us_cities"])]
        found.append(
            finished._replace(
                metrics=metrics.assign(auroc=metrics["auroc"].where(metrics["family"] == "output")),
                scored=finished.scored._replace(
                    scores=scores.assign(value=scores["value"].where(~trained))
                ),
            )
        )
    named = dict(zip(("small", "medium"), found, strict=True))
    differences = paired.differences(
        {name: run.scored for name, run in named.items()}, [], EvaluationSettings(bootstrap=100), 0
    )
    assert set(differences["dataset"]) == {"cities", "us_cities", "all_given"}
    assert "us_cities" in comparison.render(named, differences, "0")


def test_finished_runs_are_compared_from_the_command_line(
    runs: list[fake_results.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(run.metrics.parents[1]) for run in runs]
    out = tmp_path / "side by side"
    assert compare_runs.main([*folders, "--out", str(out), "--draws", "100"]) == 0
    assert capsys.readouterr().out == f"{out / 'comparison.html'}\n"
    assert set(pd.read_csv(out / "differences.csv")["reference"]) == {Path(folders[0]).name}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}"], "at least two runs"),
        (["{0}", "{0}"], "given twice"),
        (["{0}", "nowhere"], "nowhere"),
        (["{0}", "{1}", "--draws", "9"], "--draws: expected at least 100, found 9"),
        (["{0}", "{1}", "--seed", "-1"], "--seed: expected 0 or more, found -1"),
        (["{0}", "{1}", "--out", "{0}/evaluation"], "whose results would be overwritten"),
        (["{0}", "{1}", "--out", "{0}/evaluation/metrics.csv"], "whose results would be"),
        (["{0}", "{1}", "--out", "/dev/null"], "--out: /dev/null cannot be written (Not a"),
    ],
)
def test_a_wrong_comparison_is_one_line(
    runs: list[fake_results.Run],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [str(run.metrics.parents[1]) for run in runs]
    assert compare_runs.main([each.format(*folders) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_every_model_of_a_comparison_looks_different() -> None:
    looks = comparison.looks_of(16)
    assert len(set(looks)) == 16
    assert looks[:4] == list(zip(comparison.KINDS, comparison.MARKERS, strict=True))


@pytest.mark.parametrize("name", ["evaluation/ledger.csv", "datasets/cities/examples.parquet"])
def test_a_run_with_an_edited_table_is_not_compared(
    runs: list[fake_results.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    first, second = (run.metrics.parents[1] for run in runs)
    copy = Path(shutil.copytree(second, tmp_path / "copy"))
    record = copy / "records" / f"{name}.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"params": {}, "inputs": {}, "sha256": "0" * 64}))
    assert compare_runs.main([str(first), str(copy), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{copy / name} was damaged or edited since its job wrote it" in error
    assert 'make run ARGS="--config model=copy"' in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "comparison.html").exists()


def test_runs_of_the_same_name_are_told_apart_by_their_folders() -> None:
    found = compare_runs.names_of([Path("/one/results/small"), Path("/two/results/small")])
    assert list(found) == ["one/results/small", "two/results/small"]


def changed(run: fake_results.Run, folder: Path, metrics: pd.DataFrame) -> fake_results.Run:
    """A copy of a run with another metrics table."""
    shutil.copytree(run.metrics.parents[1], folder)
    metrics.to_csv(folder / "evaluation" / "metrics.csv", index=False)
    return run._replace(metrics=folder / "evaluation" / "metrics.csv")
