"""Public data sets of answers with contexts, spans or single facts, as rows of labelled texts.

Each reader accepts the form of the hub and that of the authors, and gives rows with the columns
that its settings name.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import hub
from ghosttrack.inputs.cells import Row, all_columns, columns_of
from ghosttrack.inputs.rows import read_rows
from ghosttrack.settings import DatasetSettings

log = logging.getLogger("ghosttrack")

# The processed form of RAGTruth (Niu et al. 2024), MIT licence.
RAGTRUTH = "wandb/RAGTruth-processed"
TASKS = {"qa": "qa", "summary": "summary", "data_to_text": "data2txt"}
# File of the authors with the prompts, beside response.jsonl.
SOURCES = "source_info.jsonl"
# Columns of answer, spans and context, by form: the authors', RAGLens's, the hub's. The columns of
# the context are joined by a line end.
_FORMS = (
    ("response", "labels", "prompt"),
    ("output", "hall_info", "input"),
    ("output", "hallucination_labels", "query", "context"),
)
# Labels of atomic facts (Min et al. 2023): supported, not supported; IR (irrelevant) is left out.
_FACTS = {"S": 0, "NS": 1}


class AnswerRows(NamedTuple):
    """Rows of labelled texts, the settings that name their columns, and the source's revision."""

    rows: list[dict[str, Any]]
    settings: DatasetSettings
    revision: str | None


def ragtruth(settings: DatasetSettings) -> AnswerRows:
    """Answers of RAGTruth to one task (`task`), test part, with prompts and hallucinated spans.

    Raises:
        UserError: the file has none of the three forms, or no answer to the task.
    """
    name, revision = str(settings.path or RAGTRUTH), None
    rows: Iterable[Row]
    if settings.path:
        rows = _with_sources(read_rows(Path(settings.path)), Path(settings.path).expanduser())
    else:
        rows, revision = hub.rows(
            RAGTRUTH,
            None,
            "test",
            None,
            streaming=False,
            key="source",
            instead="without the hub, set `path` in the data set's file to the authors' "
            f"response.jsonl, with {SOURCES} beside it",
        )
    rows = list(rows)
    present = all_columns(rows)
    form = next((form for form in _FORMS if set(form) <= set(present)), None)
    if form is None:
        listed = "; ".join(", ".join(each) for each in _FORMS)
        raise UserError(
            f"path: {name} has the columns {columns_of(present)}; expected one of the forms of "
            f"RAGTruth: {listed}"
        )
    response, labels, *prompt = form
    kept = [
        {
            "text": row.get(response),
            "context": "\n".join(str(row.get(column) or "") for column in prompt),
            "spans": row.get(labels),
            "generator": row.get("model"),
        }
        for row in rows
        if _is(row, "task_type", TASKS[settings.task or "qa"])
        and _is(row, "split", "test")
        and _is(row, "quality", "good")
    ]
    if not kept:
        raise UserError(f"task: {name} has no answer of the test part to task {settings.task!r}")
    log.info(
        "%d of %d answers: task %s, test part, good quality", len(kept), len(rows), settings.task
    )
    columns = {
        "source": "file",
        "text_column": "text",
        "context_column": "context",
        "spans_column": "spans",
        "generator_column": "generator" if "model" in present else None,
    }
    return AnswerRows(kept, settings.model_copy(update=columns), revision)


def _is(row: Row, column: str, value: str) -> bool:
    """Whether a row has the value in a column; true without the column."""
    return row.get(column) is None or str(row[column]).lower() == value


def _with_sources(rows: Sequence[Row], path: Path) -> list[Mapping[str, Any]]:
    """The authors' answers with the prompts of the file beside theirs; other forms unchanged."""
    if not {"response", "labels", "source_id"} <= set(all_columns(rows)):
        return list(rows)
    beside = path.parent / SOURCES
    if not beside.is_file():
        raise UserError(
            f"path: {path} needs the authors' file {SOURCES}, which has the prompts, in the same "
            "folder; download it, too"
        )
    sources = {str(source["source_id"]): source for source in read_rows(beside)}
    missing = next((row for row in rows if str(row["source_id"]) not in sources), None)
    if missing is not None:
        raise UserError(
            f"path: {beside} has no source_id {missing['source_id']}, which {path} names"
        )
    return [
        {
            **row,
            "prompt": sources[str(row["source_id"])].get("prompt"),
            "task_type": sources[str(row["source_id"])].get("task_type"),
        }
        for row in rows
    ]


def factscore(settings: DatasetSettings) -> AnswerRows:
    """Atomic facts of biographies (FActScore), each after the request for the biography.

    A supported fact is true, one that is not supported is hallucinated; irrelevant ones are left
    out. The facts of a person form a group.

    Raises:
        UserError: the file has no labelled facts.
    """
    name = str(settings.path)
    rows = []
    left_out = 0
    for biography in read_rows(Path(name)):
        question = str(biography.get("input", "")).removeprefix("Question:").strip()
        for sentence in biography.get("annotations") or []:
            for fact in sentence.get("human-atomic-facts") or []:
                label = _FACTS.get(str(fact.get("label")))
                left_out += label is None
                if label is not None:
                    rows.append(
                        {
                            "text": fact.get("text"),
                            "label": label,
                            "question": question,
                            "topic": biography.get("topic") or question,
                        }
                    )
    if not rows:
        raise UserError(
            f"path: {name} has no facts with the labels S and NS; expected the form of FActScore, "
            "with the keys input, topic, and annotations of sentences with human-atomic-facts"
        )
    log.info("%d atomic facts; %d irrelevant ones left out", len(rows), left_out)
    columns = {
        "source": "file",
        "text_column": "text",
        "label_column": "label",
        "question_column": "question",
        "group_column": "topic",
    }
    return AnswerRows(rows, settings.model_copy(update=columns), None)


READERS = {"ragtruth": ragtruth, "factscore": factscore}
