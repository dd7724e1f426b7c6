"""`make judge`: verdicts beside a finished run, whose results stay as they are."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest
import small_models

from ghosttrack.cli import judge
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from tests.conftest import ROOT

EVALUATION = {"bootstrap": 100, "confidence": 0.95, "minimum_groups": 20, "minimum_answers": 50}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with made-up numbers and the record of its tables."""
    folder = tmp_path_factory.mktemp("judged") / "fake"
    fake_results.make(folder)
    for name, (mode, n, _, _) in fake_results.SETS.items():
        path = folder / "datasets" / name / "examples.parquet"
        pd.read_parquet(path).assign(
            relation=["one" if row < n // 2 else "two" for row in range(n)], mode=mode
        ).to_parquet(path)
    record = folder / "records" / "evaluation" / "metrics.csv.json"
    record.parent.mkdir(parents=True)
    params = {
        "evaluation": EVALUATION,
        "seed": 0,
        "controls": fake_results.CONTROLS,
        "variants": fake_results.VARIANTS,
        "null_rows_differ": False,
    }
    digest = hashlib.sha256((folder / "evaluation" / "metrics.csv").read_bytes()).hexdigest()
    record.write_text(json.dumps({"params": params, "inputs": {}, "sha256": digest}))
    return folder


def own_scores(run: Path, *datasets: str, apart: float = 6.0) -> pd.DataFrame:
    """A table of scores that know the label of the texts."""
    scores = pd.read_parquet(run / "detection" / "scores.parquet")
    part = scores[(scores["score"] == "text_only") & scores["dataset"].isin(datasets)]
    noise = np.random.default_rng(0).standard_normal(len(part))
    return pd.DataFrame({"id": part["id"], "score": apart * part["label"] + noise})


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "judged" not in path.relative_to(folder).parts
    }


def test_a_table_is_judged_beside_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(run)
    table = tmp_path / "my-scores.csv"
    own_scores(run, "cities", "questions").to_csv(table, index=False)
    assert judge.main([str(run), str(table)]) == 0
    shown = capsys.readouterr().out
    folder = run / "judged" / "my_scores"
    assert digests(run) == before
    assert "made outside the folds" in shown
    assert shown.rstrip().endswith(str(folder / "judged.html"))
    (line,) = (each for each in shown.splitlines() if " cities " in each)
    assert "my_scores (table)" in line
    assert "established" in line
    assert "not established" not in line
    metrics, ledger = (pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "ledger"))
    own = ledger[ledger["ours"] == "table.my_scores"]
    assert {"cities", "questions"} <= set(own["dataset"])
    assert set(metrics["dataset"]) == {"cities", "questions"}  # a mean of one set says nothing new
    assert "mean of" not in shown
    assert "mean, " not in shown
    page = (folder / "judged.html").read_text()
    assert "my_scores (table) beats its best control on 2 of 2 data sets." in page
    assert "made outside the folds" in page


def test_a_mean_names_the_number_of_judged_data_sets(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_scores(run, "cities", "us_cities").to_csv(tmp_path / "two.csv", index=False)
    out = tmp_path / "out"
    assert judge.main([str(run), str(tmp_path / "two.csv"), "--out", str(out)]) == 0
    for text in (capsys.readouterr().out, (out / "judged.html").read_text()):
        assert "mean of the 2 judged data sets, given texts" in text
        assert "mean, given texts" not in text
    metrics = pd.read_csv(out / "metrics.csv")
    assert set(metrics["dataset"]) == {"cities", "us_cities", "all_given"}


def test_a_score_below_chance_is_reported_and_not_reversed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "low.csv"
    own_scores(run, "cities", apart=-6.0).to_csv(table, index=False)
    assert judge.main([str(run), str(table), "--out", str(tmp_path / "as_given")]) == 0
    shown = capsys.readouterr().out
    assert "low (table) is below chance on cities (AUROC 0.000). Nothing was reversed." in shown
    assert "--lower-is-hallucinated" in shown
    reversed_too = [str(run), str(table), "--lower-is-hallucinated", "--out", str(tmp_path / "r")]
    assert judge.main(reversed_too) == 0
    assert "below chance" not in capsys.readouterr().out
    auroc = [
        pd.read_csv(tmp_path / name / "metrics.csv").query("score == 'table.low'")["auroc"].iloc[0]
        for name in ("as_given", "r")
    ]
    assert sum(auroc) == pytest.approx(1)


def test_a_part_of_a_data_set_is_judged_on_its_texts_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "part.csv"
    own_scores(run, "cities").head(120).to_csv(table, index=False)
    assert judge.main([str(run), str(table), "--out", str(tmp_path / "out")]) == 2
    assert "680 texts of the data sets that it scores have no score" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert judge.main([str(run), str(table), "--subset", "--out", str(tmp_path / "out")]) == 0
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(metrics["n"]) == {120}


@pytest.mark.parametrize(
    "name",
    ["detection/scores.parquet", "datasets/cities/examples.parquet", "evaluation/metrics.csv"],
)
def test_a_file_of_the_run_that_was_edited_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    table, copy = tmp_path / "mine.csv", tmp_path / "fake"
    own_scores(run, "cities").to_csv(table, index=False)
    shutil.copytree(run, copy)
    record = copy / "records" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    params = json.loads(record.read_text())["params"] if record.exists() else {}
    content = (copy / name).read_bytes()
    for sha256, code in ((hashlib.sha256(content).hexdigest(), 0), ("0" * 64, 2)):
        record.write_text(json.dumps({"params": params, "inputs": {}, "sha256": sha256}))
        assert judge.main([str(copy), str(table), "--out", str(tmp_path / f"out{code}")]) == code
    error = capsys.readouterr().err
    assert f"{copy / name} was damaged or edited" in error
    assert "make run" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("place", ["evaluation", ".", "judged", "judged/../detection/x"])
def test_results_of_the_run_are_never_the_output(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    own_scores(run, "cities").to_csv(tmp_path / "mine.csv", index=False)
    before = digests(run)
    assert judge.main([str(run), str(tmp_path / "mine.csv"), "--out", str(run / place)]) == 2
    assert "whose results would be overwritten" in capsys.readouterr().err
    assert digests(run) == before


def test_results_of_another_run_are_never_the_output(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_scores(run, "cities").to_csv(tmp_path / "mine.csv", index=False)
    other = tmp_path / "other-model"
    (other / "records").mkdir(parents=True)
    (other / "records" / "model_check.json.json").touch()
    (tmp_path / "records").mkdir()  # any folder of this name marks no run
    arguments = [str(run), str(tmp_path / "mine.csv"), "--out"]
    assert judge.main([*arguments, str(other / "evaluation")]) == 2
    assert "is a folder of the run other-model, whose results" in capsys.readouterr().err
    assert judge.main([*arguments, str(other / "judged" / "mine")]) == 0
    assert judge.main([*arguments, str(tmp_path / "mine")]) == 0


def test_an_output_that_cannot_be_written_is_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_scores(run, "cities").to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "taken").write_text("a file")
    command = [str(run), str(tmp_path / "mine.csv"), "--out"]
    for place in ("taken", "taken/below"):
        assert judge.main([*command, str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert f"--out: {tmp_path / place} cannot be written (Not a directory" in error
        assert error.count("\n") == 1

    def read_only(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert judge.main([*command, str(tmp_path / "new")]) == 2
    assert "cannot be written (Permission denied" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--name", "a b"], "--name: 'a b' cannot be the name of a score"),
        (["again.csv", "--name", "mine"], "--name: give one table"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert judge.main([str(run), str(tmp_path / "mine.csv"), *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_finished_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge.main([str(tmp_path / "absent"), "mine.csv"]) == 2
    assert "there is no such folder; give the folder of a finished run" in capsys.readouterr().err
    assert judge.main([str(tmp_path), "mine.csv"]) == 2
    assert "metrics.csv.json is missing" in capsys.readouterr().err


def test_texts_of_one_class_and_a_name_that_is_taken_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = own_scores(run, "cities").iloc[::2]
    true.to_csv(tmp_path / "true.csv", index=False)
    assert judge.main([str(run), str(tmp_path / "true.csv"), "--subset"]) == 2
    assert "covers 400 texts of cities, all of them true" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "same.csv", tmp_path / "other" / "same.csv"):
        own_scores(run, "cities").to_csv(path, index=False)
    both = [str(tmp_path / "same.csv"), str(tmp_path / "other" / "same.csv")]
    assert judge.main([str(run), *both]) == 2
    assert "two tables have scores with the name table.same" in capsys.readouterr().err


def test_two_scores_of_one_table_on_different_texts_are_refused_with_a_remedy_that_works(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_scores(run, "cities")
    both = [own.head(120).assign(name="first"), own.tail(120).assign(name="second")]
    pd.concat(both).to_csv(tmp_path / "two.csv", index=False)
    assert judge.main([str(run), str(tmp_path / "two.csv"), "--subset"]) == 2
    shown = capsys.readouterr().err
    assert "table.two.second covers other texts of cities than the first scores" in shown
    assert "write each to a table of its own, and judge one table at a time" in shown


def test_a_data_set_of_one_class_is_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    texts = pd.DataFrame({"dataset": ["a", "a", "b", "b"], "label": [0, 1, 1, 1]})
    assert list(judge._of_both_classes(texts, texts)["dataset"]) == ["a", "a"]
    assert "b is not judged: all of its texts in the run have one label" in capsys.readouterr().err
    with pytest.raises(UserError, match="no data set of the scores has"):
        judge._of_both_classes(texts[texts["dataset"] == "b"], texts)


def _has_lm_polygraph() -> bool:
    """Whether the Python of the peers has lm-polygraph; it may have only other projects."""
    program = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('lm_polygraph'))"
    peer = os.environ.get("GHOSTTRACK_PEERS")
    return peer is not None and subprocess.run([peer, "-c", program], timeout=60).returncode == 0


@pytest.mark.peers
@pytest.mark.skipif(
    not _has_lm_polygraph(), reason="GHOSTTRACK_PEERS: a Python that has lm-polygraph"
)
def test_estimators_of_lm_polygraph_are_judged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/howto/judge.md, with a small random model."""
    import torch

    peers = tmp_path / "peers"
    model = small_models.make_model("gpt2", 0)
    tokenizer = small_models.make_tokenizer()
    small_models.save(model, tokenizer, peers / "model")
    prompts = [f"The capital number {row} is" for row in range(800)]
    texts = pd.read_parquet(run / "datasets" / "cities" / "examples.parquet").assign(
        text=[f"{prompt} Paris." for prompt in prompts],
        answer_start=[len(prompt) + 1 for prompt in prompts],
        answer_end=[len(prompt) + 6 for prompt in prompts],
    )
    (peers / "datasets" / "cities").mkdir(parents=True)
    texts.to_parquet(peers / "datasets" / "cities" / "examples.parquet")
    program = ROOT / "benchmarks" / "lm_polygraph_scores.py"
    table = tmp_path / "lm_polygraph.csv"
    subprocess.run(
        [os.environ["GHOSTTRACK_PEERS"], program, peers, table, "cities", "--limit", "100"],
        check=True,
        timeout=600,
    )
    scores = pd.read_csv(table)
    assert set(scores.groupby("name").size()) == {100}
    text, end = texts["text"].iloc[0], int(texts["answer_end"].iloc[0])
    ids = [models.separator(tokenizer), *tokenizer(text[:end], add_special_tokens=False).input_ids]
    answer = len(tokenizer(text[: len(prompts[0])], add_special_tokens=False)["input_ids"]) + 1
    with torch.inference_mode():
        every = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    stated = [float(every[place - 1, ids[place]]) for place in range(answer, len(ids))]
    first = scores[scores["name"] == "MaximumSequenceProbability"]["score"].iloc[0]
    assert first == pytest.approx(-sum(stated), rel=1e-4)
    assert judge.main([str(run), str(table), "--subset", "--out", str(tmp_path / "out")]) == 0
    assert "lm_polygraph.Perplexity (table)" in capsys.readouterr().out
