"""Public sets of answers: RAGTruth in three forms, FActScore, PopQA and SimpleQA."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ghosttrack.errors import UserError
from ghosttrack.facts.spans import Span
from ghosttrack.inputs import datasets, hub
from ghosttrack.settings import DatasetSettings


def settings(**values: Any) -> DatasetSettings:
    return DatasetSettings.model_validate(values)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SPANS = [{"start": 0, "end": 4, "text": "It i", "label_type": "Evident Conflict"}]
HUB = [
    {
        "query": "How?",
        "context": "passage 1: so",
        "output": f"{word} is so.",
        "task_type": task,
        "quality": quality,
        "model": "m",
        "hallucination_labels": json.dumps(spans),
    }
    for word, task, quality, spans in (
        ("It", "QA", "good", SPANS),
        ("He", "QA", "good", []),
        ("We", "Summary", "good", []),
        ("Me", "QA", "truncated", []),
    )
]


def test_the_hubs_form_of_ragtruth_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "rows", lambda *_, **__: hub.HubRows(iter(HUB), "abc"))
    frame = datasets.load_examples(settings(source="ragtruth"), 0)
    assert frame["text"].tolist() == ["It is so.", "He is so."]
    assert frame["context"].tolist() == ["How?\npassage 1: so"] * 2
    assert frame["spans"].tolist() == [[Span(0, 4)], []]
    assert frame["generator"].tolist() == ["m", "m"]
    assert frame.attrs["revision"] == "abc"


def authors(tmp_path: Path) -> str:
    write(
        tmp_path / "source_info.jsonl",
        [
            {"source_id": "1", "task_type": "QA", "prompt": "Answer: how?"},
            {"source_id": "2", "task_type": "Data2txt", "prompt": "Describe it."},
        ],
    )
    return write(
        tmp_path / "response.jsonl",
        [
            {
                "source_id": source,
                "model": "m",
                "labels": spans,
                "split": split,
                "quality": "good",
                "response": text,
            }
            for source, spans, split, text in (
                ("1", SPANS, "test", "It is so."),
                ("1", [], "test", "He is so."),
                ("1", [], "train", "We are."),
                ("2", SPANS, "test", "It is a shop."),
                ("2", [], "test", "A shop."),
            )
        ],
    )


@pytest.mark.parametrize(
    ("task", "texts", "context"),
    [
        ("qa", ["It is so.", "He is so."], "Answer: how?"),
        ("data_to_text", ["It is a shop.", "A shop."], "Describe it."),
    ],
)
def test_the_authors_form_of_ragtruth_is_joined_with_its_prompts(
    tmp_path: Path, task: str, texts: list[str], context: str
) -> None:
    frame = datasets.load_examples(
        settings(source="ragtruth", task=task, path=authors(tmp_path)), 0
    )
    assert frame["text"].tolist() == texts
    assert set(frame["context"]) == {context}


def test_missing_prompts_tasks_and_forms_are_named(tmp_path: Path) -> None:
    path = authors(tmp_path)
    with pytest.raises(UserError, match=r"task: .* no answer of the test part to task 'summary'"):
        datasets.load_examples(settings(source="ragtruth", task="summary", path=path), 0)
    (tmp_path / "source_info.jsonl").write_text('{"source_id": "2", "prompt": "a"}\n')
    with pytest.raises(UserError, match=r"source_info\.jsonl has no source_id 1"):
        datasets.load_examples(settings(source="ragtruth", path=path), 0)
    (tmp_path / "source_info.jsonl").unlink()
    with pytest.raises(UserError, match=r"needs the authors' file source_info\.jsonl"):
        datasets.load_examples(settings(source="ragtruth", path=path), 0)
    other = write(tmp_path / "other.jsonl", [{"text": "a", "label": 1}])
    with pytest.raises(UserError, match=r"has the columns text, label; expected one of the forms"):
        datasets.load_examples(settings(source="ragtruth", path=other), 0)


def test_an_error_names_the_row_and_the_column_of_the_file(tmp_path: Path) -> None:
    """Rows of other tasks, and irrelevant facts, are left out, but counted."""
    path = authors(tmp_path)
    lines = Path(path).read_text().splitlines()
    wrong = {**json.loads(lines[-1]), "labels": [[0, 99]]}
    write(Path(path), [*map(json.loads, lines[:-1]), wrong])
    number = rf"row {len(lines)} of response\.jsonl, column 'labels' \(spans_column\): span 1"
    with pytest.raises(UserError, match=number):
        datasets.load_examples(settings(source="ragtruth", task="data_to_text", path=path), 0)

    def biography(*facts: tuple[str, str]) -> dict[str, Any]:
        atomic = [{"text": text, "label": label} for text, label in facts]
        return {"input": "A?", "topic": "A", "annotations": [{"human-atomic-facts": atomic}]}

    people = [biography(("a.", "S"), ("b.", "IR"), ("c.", "NS")), biography(("", "S"))]
    path = write(tmp_path / "facts.jsonl", people)
    with pytest.raises(UserError, match=r"row 2 of facts\.jsonl: expected text in column 'text'"):
        datasets.load_examples(settings(source="factscore", path=path), 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source_id": None}, "row 1 of .*source_info.jsonl has the source_id None; expected text"),
        ({}, "row 1 of .*source_info.jsonl has the source_id None; expected text"),
        ({"source_id": 2}, "row 2 of .*source_info.jsonl repeats the source_id 2"),
        ({"source_id": 2.0}, "row 2 of .*source_info.jsonl repeats the source_id 2"),
    ],
)
def test_sources_have_ids_and_each_of_them_once(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    path = authors(tmp_path)
    rows: list[dict[str, object]] = [{**row, "prompt": "a"}, {"source_id": "2", "prompt": "b"}]
    write(tmp_path / "source_info.jsonl", rows)
    with pytest.raises(UserError, match=message):
        datasets.load_examples(settings(source="ragtruth", path=path), 0)


@pytest.mark.parametrize(
    "annotations",
    [
        "none",
        [None],
        {"a": 1},
        [{"human-atomic-facts": ["He is old."]}],
        [{"human-atomic-facts": 1}],
    ],
)
def test_facts_in_another_form_are_refused_by_row(tmp_path: Path, annotations: object) -> None:
    path = write(tmp_path / "x.jsonl", [{"input": "Q", "annotations": annotations}])
    with pytest.raises(
        UserError, match=r"row 1 of .*: (annotations|human-atomic-facts) holds .*list"
    ):
        datasets.load_examples(settings(source="factscore", path=path), 0)


def test_atomic_facts_follow_the_request_and_irrelevant_ones_are_left_out(tmp_path: Path) -> None:
    facts = [("He is old.", "S"), ("He is new.", "NS"), ("He is.", "IR")]
    path = write(
        tmp_path / "x.jsonl",
        [
            {
                "input": "Question: Tell me a bio of A.",
                "topic": "A",
                "annotations": [
                    {"human-atomic-facts": [{"text": text, "label": mark} for text, mark in facts]},
                    {"human-atomic-facts": None},
                ],
            },
            {"input": "Question: Tell me a bio of B.", "topic": "B", "annotations": None},
        ],
    )
    frame = datasets.load_examples(settings(source="factscore", path=path), 0)
    assert frame["text"].tolist() == [
        "Q: Tell me a bio of A.\nA: He is old.",
        "Q: Tell me a bio of A.\nA: He is new.",
    ]
    assert frame["label"].tolist() == [0, 1]
    assert set(frame["group"]) == {"a"}
    empty = write(tmp_path / "y.jsonl", [{"input": "Question: a", "annotations": []}])
    with pytest.raises(UserError, match="no facts with the labels S and NS"):
        datasets.load_examples(settings(source="factscore", path=empty), 0)


@pytest.mark.parametrize(
    ("source", "row", "gold"),
    [
        (
            "popqa",
            {"question": "Who is {}?", "possible_answers": '["Ada", "Ada L."]', "prop": "author"},
            ["Ada", "Ada L."],
        ),
        ("simpleqa", {"problem": "Who is {}?", "answer": "Ada; of course"}, ["Ada; of course"]),
    ],
)
def test_popqa_and_simpleqa_are_asked(
    tmp_path: Path, source: str, row: dict[str, str], gold: list[str]
) -> None:
    rows = [
        {key: value.replace("{}", str(number)) for key, value in row.items()}
        for number in range(20)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    frame = datasets.load_questions(settings(source=source, mode="generated", path=path), 0, 5)
    assert len(frame) == 5
    assert all(answers == gold for answers in frame["gold"])


@pytest.mark.parametrize(
    "values",
    [
        {"source": "popqa"},
        {"source": "simpleqa"},
        {"source": "ragtruth", "mode": "generated"},
        {"source": "factscore"},
        {"source": "counterfact"},
        {"source": "ragtruth", "conflict": {}},
    ],
)
def test_settings_that_a_source_cannot_have_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"mode:|path:|conflict:"):
        settings(**values)


def test_only_sets_with_spans_and_contexts_get_their_jobs() -> None:
    rag, plain = settings(source="ragtruth"), settings(source="truthfulqa")
    assert (rag.has_spans, rag.has_contexts, plain.has_spans, plain.has_contexts) == (
        True,
        True,
        False,
        False,
    )


def real(name: str) -> str:
    folder = os.environ.get("GHOSTTRACK_TEST_DATA")
    if not folder:
        pytest.skip("GHOSTTRACK_TEST_DATA names no folder with the real data sets")
    return str(Path(folder) / name)


def test_the_real_files_are_read() -> None:
    rag = datasets.load_examples(
        settings(source="ragtruth", path=real("ragtruth/QA-test.jsonl")), 0
    )
    assert (len(rag), rag["label"].sum(), rag["group"].nunique()) == (893, 160, 150)
    facts = datasets.load_examples(
        settings(source="factscore", path=real("factscore/ChatGPT.jsonl")), 0
    )
    assert facts["group"].nunique() > 150
    assert len(facts) + facts.attrs["dropped_repeats"] + facts.attrs["dropped_both_labels"] == 4886
