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
from ghosttrack.inputs.cells import Row, all_columns, as_text, columns_of, shown
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
    """Rows of labelled texts with their row numbers in the source, the settings that name their
    columns, and the source's revision.
    """

    rows: list[dict[str, Any]]
    numbers: list[int]
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
    numbers = [
        number
        for number, row in enumerate(rows, start=1)
        if _is(row, "task_type", TASKS[settings.task or "qa"])
        and _is(row, "split", "test")
        and _is(row, "quality", "good")
    ]
    kept = [
        {
            response: row.get(response),
            "context": "\n".join(str(row.get(column) or "") for column in prompt),
            labels: row.get(labels),
            "model": row.get("model"),
        }
        for row in (rows[number - 1] for number in numbers)
    ]
    if not kept:
        raise UserError(f"task: {name} has no answer of the test part to task {settings.task!r}")
    log.info(
        "%d of %d answers: task %s, test part, good quality", len(kept), len(rows), settings.task
    )
    columns = {
        "source": "file",
        "text_column": response,
        "context_column": "context",
        "spans_column": labels,
        "generator_column": "model" if "model" in present else None,
    }
    return AnswerRows(kept, numbers, settings.model_copy(update=columns), revision)


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
    sources: dict[str, Row] = {}
    for number, source in enumerate(read_rows(beside), start=1):
        if sources.setdefault(name := _source_id(source, number, beside), source) is not source:
            raise UserError(
                f"path: row {number} of {beside} repeats the source_id {name}; keep one row of it"
            )
    joined: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        name = _source_id(row, number, path)
        if name not in sources:
            raise UserError(f"path: {beside} has no source_id {name}, which {path} names")
        found = sources[name]
        joined.append({**row, "prompt": found.get("prompt"), "task_type": found.get("task_type")})
    return joined


def _source_id(row: Row, number: int, path: Path) -> str:
    """The source_id of a row, a text or a number."""
    if name := as_text(row.get("source_id")):
        return name
    raise UserError(
        f"path: row {number} of {path} has the source_id {shown(row.get('source_id'))}; expected "
        "text or a number"
    )


def factscore(settings: DatasetSettings) -> AnswerRows:
    """Atomic facts of biographies (FActScore), each after the request for the biography.

    A supported fact is true, one that is not supported is hallucinated; irrelevant ones are left
    out. The facts of a person form a group.

    Raises:
        UserError: the file has no labelled facts.
    """
    name = str(settings.path)
    rows, numbers = [], []
    left_out = 0
    for number, biography in enumerate(read_rows(Path(name)), start=1):
        question = str(biography.get("input", "")).removeprefix("Question:").strip()
        for sentence in _objects(biography, "annotations", number, name):
            for fact in _objects(sentence, "human-atomic-facts", number, name):
                label = _FACTS.get(str(fact.get("label")))
                left_out += label is None
                if label is not None:
                    numbers.append(number)
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
    return AnswerRows(rows, numbers, settings.model_copy(update=columns), None)


def _objects(holder: Row, key: str, number: int, name: str) -> list[Row]:
    """The list of objects under a key; nothing: an empty list."""
    value = holder.get(key)
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return value
    raise UserError(
        f"path: row {number} of {name}: {key} holds {shown(value)}; expected a list of objects, as "
        "in FActScore"
    )


READERS = {"ragtruth": ragtruth, "factscore": factscore}
