"""A user's own labelled texts or questions, from any table with the columns that the settings name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.rows import Row, answers_of, read_rows, require_columns, shown, text_of
from ghosttrack.settings import DatasetSettings

_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class OwnText(NamedTuple):
    """One labelled text: text[answer_start:answer_end] is the part that is judged."""

    group: str
    question: str
    prompt: str
    text: str
    answer_start: int
    answer_end: int
    label: int


class OwnQuestion(NamedTuple):
    """One question with the answers that count as right."""

    group: str
    question: str
    gold: list[str]


def read_texts(settings: DatasetSettings) -> list[OwnText]:
    """Labelled texts of a `file` data set.

    Without `question_column` the text is taken as it stands. With it, either every text starts with its
    question, and the rest is the answer; or none does, and `Q: question` and `A: text` are put together.

    Raises:
        UserError: missing column, label other than 0 and 1, empty text, an answer that its text does not hold.
    """
    name = str(settings.path)
    rows = read_rows(Path(name))
    columns = [("text_column", settings.text_column), ("label_column", settings.label_column)]
    require_columns(rows[0], columns + _optional(settings), name)
    starts = _starts_with_question(rows, settings, name)
    texts = []
    for number, row in enumerate(rows, start=1):
        text = text_of(row, settings.text_column, number, name)
        label = _label(row.get(settings.label_column), number, settings, name)
        question, prompt = "", ""
        if settings.question_column:
            question = text_of(row, settings.question_column, number, name)
            prompt = question if starts else f"Q: {question}\nA:"
            text = text if starts else f"{prompt} {text}"
        answer = text[len(prompt) :].strip()
        if settings.answer_column:
            answer = text_of(row, settings.answer_column, number, name)
        start = text.rfind(answer)
        if not answer or start < len(prompt):
            raise UserError(
                f"row {number} of {name}: "
                + (
                    f"the text does not hold its answer {shown(answer)} after the question"
                    if answer
                    else "there is no text after the question"
                )
            )
        group = _group(row, settings, question or text)
        texts.append(OwnText(group, question, text[:start].rstrip(), text, start, start + len(answer), label))
    return texts


def read_questions(settings: DatasetSettings) -> list[OwnQuestion]:
    """Questions and gold answers of a `file` data set in generated mode."""
    name = str(settings.path)
    question_column, gold_column = str(settings.question_column), str(settings.gold_column)
    rows = read_rows(Path(name))
    require_columns(rows[0], [("gold_column", gold_column), *_optional(settings)], name)
    questions = []
    for number, row in enumerate(rows, start=1):
        question = text_of(row, question_column, number, name)
        gold = answers_of(row, gold_column, number, name)
        if not gold:
            raise UserError(f"row {number} of {name}: no accepted answer in column {gold_column!r}")
        questions.append(OwnQuestion(_group(row, settings, question), question, gold))
    return questions


def _optional(settings: DatasetSettings) -> list[tuple[str, str]]:
    named = [
        ("question_column", settings.question_column), ("answer_column", settings.answer_column),
        ("group_column", settings.group_column),
    ]  # fmt: skip
    return [(key, column) for key, column in named if column]


def _starts_with_question(rows: Sequence[Row], settings: DatasetSettings, name: str) -> bool:
    if not settings.question_column:
        return False
    starts = [
        text_of(row, settings.text_column, number, name).startswith(
            text_of(row, settings.question_column, number, name)
        )
        for number, row in enumerate(rows, start=1)
    ]
    if any(starts) and not all(starts):
        raise UserError(
            f"row {starts.index(not starts[0]) + 1} of {name}: some texts start with their question and some do not; "
            "make them alike, or remove question_column"
        )
    return all(starts)


def _label(value: Any, number: int, settings: DatasetSettings, name: str) -> int:
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise UserError(
            f"row {number} of {name}: column {settings.label_column!r} (label_column) holds {shown(value)}; expected 0 or 1 "
            f"(false or true), where {settings.true_label} marks a true text (true_label)"
        )
    return label ^ settings.true_label


def _group(row: Row, settings: DatasetSettings, otherwise: str) -> str:
    value = otherwise if settings.group_column is None else row.get(settings.group_column)
    return normalised(str(value)) if value is not None and str(value).strip() else normalised(otherwise)


def normalised(text: str) -> str:
    """A text without what a repetition of it may differ in: case, spacing, a final full stop."""
    return " ".join(text.casefold().split()).rstrip(".")
