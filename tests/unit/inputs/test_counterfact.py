"""CounterFact as minimal-pair blocks: balanced, of one relation each, with false answers only."""

import csv
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ghosttrack import statistics
from ghosttrack.detection import controls, splits
from ghosttrack.errors import UserError
from ghosttrack.inputs import counterfact, datasets
from ghosttrack.settings import DatasetSettings

BORN = "{} was born in"
TWIN = "{} is a twin city of"
NAMES = ["Paris", "Rome", "Oslo", "Lima", "Cairo"]


def rows(template: str = BORN, count: int = 40) -> list[dict[str, str]]:
    return [
        {
            "relation": template,
            "subject": f"Person{number:02d}",
            "target": "x",
            "true_target": NAMES[number % len(NAMES)],
        }
        for number in range(count)
        for _ in range(2)  # the true and the false statement of the source
    ]


def test_every_subject_and_answer_is_as_often_in_true_as_in_false_statements() -> None:
    found, relations = counterfact.examples(rows(), "x", 0)
    assert len(found) >= 60
    assert relations == [counterfact.Relation(BORN, 40, len(found), "")]
    truth = {row["subject"]: row["true_target"] for row in rows()}
    for key in ("subject", "answer", "prompt", "group"):
        true, false = (
            Counter(getattr(row, key) for row in found if row.label == label) for label in (0, 1)
        )
        assert true == false
    for row in found:
        assert row.label == int(truth[row.subject] != row.answer)
        assert row.text == f"{row.prompt} {row.answer}."
        assert row.text[row.answer_start : row.answer_end] == row.answer


def test_no_answer_that_the_source_calls_true_is_used_as_a_false_one() -> None:
    table = rows()
    # In another wording, the source says that these persons belong to Rome, too.
    also = {f"Person{number:02d}" for number in range(10)}
    table += [
        {**row, "relation": "{} died in", "true_target": "Rome"}
        for row in table
        if row["subject"] in also
    ]
    found, _ = counterfact.examples(table, "x", 0)
    born = [row for row in found if row.relation == BORN]
    assert any(row.subject in also for row in born)
    assert not any(row.label and row.answer == "Rome" and row.subject in also for row in born)


@pytest.mark.parametrize(
    ("template", "count", "reason"),
    [
        (TWIN, 40, counterfact.SEVERAL),
        ("{} is located in", 40, counterfact.LEVELS),
        (BORN, 19, counterfact.FEW),
        ("{} is liked by", 40, counterfact.UNKNOWN),
        ("{} is produced by", 40, counterfact.NAMES),
    ],
)
def test_relations_whose_swapped_answer_may_be_true_are_dropped_with_a_reason(
    template: str, count: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ghosttrack"):
        found, relations = counterfact.examples(
            [*rows(), *rows(template, count)][-2 * count :], "x", 0
        )
    assert not found
    assert relations == [counterfact.Relation(template, count, 0, reason)]
    assert f"{template}: {count} facts, dropped: {reason}" in caplog.text


def test_a_relation_without_a_place_for_the_subject_is_refused_with_its_row() -> None:
    table = rows()
    table[4]["relation"] = "was born in"
    with pytest.raises(UserError, match=r"row 5 of x, column 'relation': expected one \{\}"):
        counterfact.examples(table, "x", 0)


def test_the_real_file_gives_7000_statements_with_the_table_of_relations() -> None:
    folder = os.environ.get("GHOSTTRACK_TEST_DATA")
    if not folder:
        pytest.skip("GHOSTTRACK_TEST_DATA names no folder with the real data sets")
    path = Path(folder) / "counterfact/counterfact_true_false.csv"
    with path.open(encoding="utf-8") as stream:
        templates = {row["relation"] for row in csv.DictReader(stream)}
    frame = datasets.load_examples(DatasetSettings(source="counterfact", path=str(path)), 0)
    assert len(frame) > 7_000
    assert frame["label"].mean() == 0.5
    listed = frame.attrs["relations"]
    assert {row["template"] for row in listed} == templates
    assert counterfact.UNKNOWN not in {row["dropped"] for row in listed}
    assert sum(row["statements"] for row in listed) == len(frame)


def test_the_text_alone_does_not_predict_the_label_of_the_kept_relations() -> None:
    folder = os.environ.get("GHOSTTRACK_TEST_DATA")
    if not folder:
        pytest.skip("GHOSTTRACK_TEST_DATA names no folder with the real data sets")
    path = Path(folder) / "counterfact/counterfact_true_false.csv"
    frame = datasets.load_examples(
        DatasetSettings(source="counterfact", path=str(path), max_examples=3000), 0
    )
    labels, groups = frame["label"].to_numpy(), frame["group"].to_numpy(dtype=object)
    fold = splits.assign_folds(labels, groups, 5, 0)
    scores = np.zeros(len(frame))
    for outer in splits.outer_folds(labels, groups, fold, 3, 0):
        scores[outer.test] = controls.text_only(frame, labels, outer).test_log_odds
    (draws,) = statistics.bootstrap_auroc(labels, scores[None], groups, 300, 0)
    low, high = statistics.interval(draws, 0.95)
    assert low < 0.5 < high
