"""`make calibrate` and `make score --calibration` on a fake run."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import run_fakes

from ghosttrack.api import Detector
from ghosttrack.cli import calibrate, score
from ghosttrack.cli.calibrate import read_labelled
from ghosttrack.detection import calibration
from ghosttrack.detection.scored_texts import Text
from ghosttrack.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_fakes.make(folder)
    run_fakes.save(folder)
    return folder


def own(run: Path, path: Path, count: int = 60) -> Path:
    """Texts of the fake run that its detector was not fitted on, with labels and groups."""
    examples = pd.read_parquet(run / "datasets" / "others" / "examples.parquet").head(count)
    examples[["text", "answer", "label", "group"]].to_csv(path, index=False)
    return path


def test_a_calibration_is_written_beside_the_detector_and_named_in_its_scores(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {each.name: each.read_bytes() for each in (run / "detection").iterdir()}
    texts = own(run, tmp_path / "my texts.csv")
    assert calibrate.main([str(run), "--texts", str(texts)]) == 0
    shown = capsys.readouterr().out
    path = run / "detection" / "calibration_my_texts.json"
    assert "nested cross-validation" in shown
    assert "Risk and coverage" in shown
    assert str(path) in shown
    spaced = tmp_path / "my calibration.json"
    assert calibrate.main([str(run), "--texts", str(texts), "--out", str(spaced)]) == 0
    assert f"--calibration '{spaced}' --texts" in capsys.readouterr().out
    curve = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [int(row["decided"]) for row in curve] == list(range(1, len(curve) + 1))
    assert float(curve[-1]["coverage"]) == 1
    after = {each.name: each.read_bytes() for each in (run / "detection").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {path.name, path.with_suffix(".csv").name}

    arguments = [str(run), "--texts", str(texts), "--calibration", str(path)]
    assert score.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["calibration"] for line in lines} == {path.name}
    plain = Detector.load(run).score([{"text": lines[0]["text"], "answer": lines[0]["answer"]}])
    assert plain[0].calibration == ""
    assert plain[0].log_odds == lines[0]["log_odds"]
    assert score.main([*arguments, "--out", str(tmp_path / "out.csv")]) == 0
    assert score.main([*arguments, "--out", str(tmp_path / "out.html")]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [float(row["probability"]) for row in rows] == [line["probability"] for line in lines]
    assert f"calibration {path.name}" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("whole", [True, False])
def test_a_calibration_is_for_texts_that_the_same_detector_judges(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    detector = Detector.__new__(Detector)
    numbers = np.zeros(4)
    detector.calibration = calibration.Calibration(
        "mine.json",
        numbers,
        numbers,
        numbers,
        0.0,
        numbers,
        numbers > 0,
        1.0,
        True,
        {"whole": [whole]},
    )
    monkeypatch.setattr(detector, "_judge", SimpleNamespace(reason=""), raising=False)
    monkeypatch.setattr(detector, "_window", lambda *_: iter(()))
    texts = [Text("It is Rome."), Text("It is Rome.", "Rome")]
    assert detector.score(texts[not whole :][:1]) == []
    with pytest.raises(
        UserError, match=f"text {1 + whole}: .* {'mark none' if whole else 'mark it'}"
    ):
        detector.score(texts)


def test_a_calibration_is_refused_after_the_detector_has_changed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = own(run, tmp_path / "mine.csv"), tmp_path / "calibration.json"
    assert calibrate.main([str(run), "--texts", str(texts), "--out", str(out)]) == 0
    other = Path(shutil.copytree(run, tmp_path / "other"))
    run_fakes.save(other, folds=3)
    assert score.main([str(other), "It is so", "--calibration", str(out)]) == 2
    assert "the run's detector has changed since; run make calibrate again" in (
        capsys.readouterr().err
    )


def table(path: Path, rows: Sequence[tuple[object, ...]], header: str = "text,label") -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])
    return path


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (("0", "1"), [0, 1]),
        (("false", "TRUE"), [0, 1]),
        (("0.0", "1.0"), [0, 1]),
        (("true", "hallucinated"), [0, 1]),
        (("True", "Hallucinated "), [0, 1]),
    ],
)
def test_labels_mean_what_they_mean_in_data_sets(
    tmp_path: Path, words: tuple[str, str], labels: list[int]
) -> None:
    path = table(tmp_path / "a.csv", [("It is so", words[0]), ("It is not", words[1])])
    found = read_labelled(path)
    assert found.labels == labels
    assert "means true: 1 texts" in found.meaning
    flipped = read_labelled(path, true_label=1).labels
    assert flipped == (labels if "hallucinated" in words[1].lower() else [1, 0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a b", "0"), ("c d", "maybe")], "row 2 of .*: column 'label' holds 'maybe'; expected"),
        ([("a b", "0"), ("c d", "")], "row 2 of .*: column 'label' holds nothing"),
        ([("a b", "hallucinated"), ("c d", "false")], "row 2 of .*: column 'label' holds 'false'"),
        (
            [("a b", "0"), ("c", "0"), ("a b", "1")],
            "rows 1 and 3 of .* have the same text and different labels",
        ),
    ],
)
def test_a_wrong_label_names_row_and_column(
    tmp_path: Path, rows: list[tuple[object, ...]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_labelled(table(tmp_path / "a.csv", rows))


@pytest.mark.parametrize("label", ["[1]", "1e400", '{"a": 1}'])
def test_a_label_that_is_no_word_is_shown(tmp_path: Path, label: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a b", "label": 0}}\n{{"text": "c d", "label": {label}}}\n')
    with pytest.raises(UserError, match=r"row 2 of .*: column .label. holds .*; expected 0 or 1"):
        read_labelled(path)


def test_equal_texts_and_texts_of_one_group_are_never_split(tmp_path: Path) -> None:
    rows = [("a b", 0, "x"), ("c d", 1, "x"), ("a b", 0, ""), ("e f", 1, "NA"), ("g h", 1, "X")]
    found = read_labelled(table(tmp_path / "a.csv", rows, "text,label,group"))
    groups = calibrate._cv_groups(found)
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert groups[3] != groups[0]


def test_answers_to_one_question_are_never_split(tmp_path: Path) -> None:
    rows = [
        ("The capital of Chad is N'Djamena.", "N'Djamena", "", ""),
        ("the capital of Chad is  Lima", "Lima", "", ""),
        ("The capital of Peru is Lima.", "Lima", "", ""),
        ("Lima", "Lima", "", "Capital of Peru?"),
        ("N'Djamena", "", "", "capital of Peru?"),
        ("N'Djamena", "N'Djamena", "", "Capital of Chad?"),
        ("It is Lima", "Lima", "A text on Peru", ""),
        ("It is Lima now", "Lima", "A text on Chad", ""),
        ("A statement", "", "", ""),
        ("Another statement", "", "", ""),
        ("Answer", "Answer", "", ""),
        ("I say Oslo", "Oslo", "", "Capital of Peru?"),
    ]
    labelled = read_labelled(
        table(
            tmp_path / "a.csv",
            [(*row[:2], number % 2, *row[2:]) for number, row in enumerate(rows)],
            "text,answer,label,context,question",
        )
    )
    groups = calibrate._cv_groups(labelled).tolist()
    assert groups[0] == groups[1]
    assert groups[3] == groups[4] == groups[11]
    assert groups[5] == groups[4]  # the same words, "N'Djamena", are never split either
    assert len(set(groups)) == 8


@pytest.mark.parametrize("name", ["Group", "GROUP", "Answer", "Context"])
def test_a_column_with_another_capital_is_not_left_out_in_silence(
    tmp_path: Path, name: str
) -> None:
    path = table(tmp_path / "a.csv", [("a b", 0, "x"), ("c d", 1, "x")], f"text,label,{name}")
    with pytest.raises(
        UserError, match=f"has the column '{name}', .*rename it to '{name.lower()}'"
    ):
        read_labelled(path)


def test_the_curve_never_replaces_the_labelled_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = table(tmp_path / "mine.csv", [(f"a {number}", number % 2) for number in range(50)])
    before = texts.read_bytes()
    assert (
        calibrate.main([str(tmp_path), "--texts", str(texts), "--out", f"{tmp_path}/mine.json"])
        == 2
    )
    assert f"--out: {texts} is a given file, which would be overwritten" in capsys.readouterr().err
    assert texts.read_bytes() == before


def test_the_curve_replaces_no_other_file_that_out_does_not_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = table(tmp_path / "texts.csv", [(f"a {number}", number % 2) for number in range(39)])
    other = table(tmp_path / "mine.csv", [("a", 1)])
    before = other.read_bytes()
    arguments = [str(tmp_path), "--texts", str(texts), "--out", f"{tmp_path}/mine.json"]
    assert calibrate.main(arguments) == 2
    assert f"--out: the risk-coverage curve would overwrite {other}" in capsys.readouterr().err
    assert other.read_bytes() == before
    point = calibration.Point(1.0, 1, 0, 0.0, 0.0, 1.0, 0.9)
    other.write_text(calibrate.curve_csv([point]))
    assert calibrate.main(arguments) == 2  # an earlier curve is replaced
    assert "39 labelled texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(f"a {number}", number % 2) for number in range(39)], "39 labelled texts, at least 40"),
        ([(f"a {number}", 0) for number in range(50)], "no text has the label hallucinated"),
    ],
)
def test_too_few_texts_are_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[object, ...]], message: str
) -> None:
    texts = table(tmp_path / "a.csv", rows)
    assert calibrate.main([str(tmp_path), "--texts", str(texts)]) == 2
    assert message in capsys.readouterr().err
    assert calibrate.main([str(tmp_path), "--texts", str(texts), "--out", "a.csv"]) == 2
    assert "--out: a.csv must end in .json" in capsys.readouterr().err
    assert calibrate.main([str(tmp_path), "--texts", str(tmp_path / "label.csv")]) == 2
