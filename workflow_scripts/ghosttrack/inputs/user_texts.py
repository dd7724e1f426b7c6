"""A user's own labelled texts or questions, from any table with the columns that the settings name."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from ghosttrack.errors import UserError
from ghosttrack.facts.answers import normalise
from ghosttrack.inputs.gold import EXPECTED, answers_of
from ghosttrack.inputs.rows import (
    MISSING,
    Row,
    all_columns,
    cell,
    read_rows,
    require_columns,
    rows_ahead,
    shown,
    text_of,
    written,
)
from ghosttrack.settings import DatasetSettings

log = logging.getLogger("ghosttrack")

_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# What a group column holds for a missing group, in lower case: a null of json or parquet, and how programs write one in csv.
_NO_GROUP = frozenset(("", *(word.lower() for word in MISSING)))
# Rows that a message shows as examples, and characters of the text of one.
_EXAMPLES, _CHARACTERS = 2, 60


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
    require_columns(all_columns(rows), _columns(settings), name)
    starts = _starts_with_question(rows, settings, name)
    texts = []
    for number, row in enumerate(rows, start=1):
        text = text_of(row, settings.text_column, number, name)
        label = _label(cell(row, settings.label_column), number, settings, name)
        question, prompt = "", ""
        if settings.question_column:
            question = text_of(row, settings.question_column, number, name)
            prompt = question if starts else f"Q: {question}\nA:"
            text = text if starts else f"{prompt} {text}"
        answer = text[len(prompt) :].strip()
        if settings.answer_column:
            answer = text_of(row, settings.answer_column, number, name, numbers=True)
        start = text.rfind(answer)
        if not answer or start < len(prompt):
            flaw = lacks_answer(text[len(prompt) :], answer) if answer else "there is no text"
            raise UserError(
                f"row {number} of {name}: {'behind the question, ' if prompt else ''}{flaw}"
            )
        group = _group(row, number, settings, question or text)
        texts.append(
            OwnText(group, question, text[:start].rstrip(), text, start, start + len(answer), label)
        )
    _log_labels(rows, texts, settings)
    _log_missing_groups(rows, settings)
    return texts


def read_questions(settings: DatasetSettings) -> list[OwnQuestion]:
    """Questions and gold answers of a `file` data set in generated mode."""
    name = str(settings.path)
    question_column, gold_column = str(settings.question_column), str(settings.gold_column)
    rows = read_rows(Path(name))
    require_columns(all_columns(rows), _columns(settings), name)
    questions = []
    for number, row in enumerate(rows, start=1):
        question = text_of(row, question_column, number, name)
        gold = answers_of(row, gold_column, number, name)
        if not gold:
            raise UserError(
                f"row {number} of {name}: no accepted answer in column {gold_column!r}, found {shown(cell(row, gold_column))}; "
                f"remove the row, or write {EXPECTED}"
            )
        if not any(map(normalise, gold)):
            raise UserError(
                f"row {number} of {name}: the accepted answers {shown(gold)} in column {gold_column!r} hold no letter and no "
                "digit, by which answers are compared; write them in words, or remove the row"
            )
        questions.append(OwnQuestion(_group(row, number, settings, question), question, gold))
    for number, each in enumerate(questions[:_EXAMPLES], start=1):
        log.info(
            "row %d of %s: %s has the accepted answers %s",
            number,
            name,
            shown(each.question),
            shown(each.gold),
        )
    _log_missing_groups(rows, settings)
    return questions


def check_columns(settings: DatasetSettings) -> None:
    """Check that the csv, tsv or jsonl file of a `file` data set has its columns: for a dry run.

    Raises:
        UserError: naming the column that is missing, or what is wrong with a line that was read.
    """
    if settings.source != "file":
        return
    columns, rows = _columns(settings), rows_ahead(Path(str(settings.path)), "path")
    if (first := next(rows, None)) is not None:
        found = all_columns(chain([first], rows), [column for _, column in columns])
        require_columns(found, columns, str(settings.path))


def _columns(settings: DatasetSettings) -> list[tuple[str, str]]:
    """Settings key and name of every column that is read."""
    needed = [("text_column", settings.text_column), ("label_column", settings.label_column)]
    if settings.mode == "generated":
        needed = [("gold_column", str(settings.gold_column))]
    optional = [
        ("question_column", settings.question_column),
        ("answer_column", settings.answer_column),
        ("group_column", settings.group_column),
    ]
    return needed + [(key, column) for key, column in optional if column]


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
    label = _LABELS.get(_word(value))
    if label is None:
        raise UserError(
            f"row {number} of {name}: column {settings.label_column!r} (label_column) holds {shown(value)}; expected 0 or 1 "
            f"(false or true), where {settings.true_label} marks a true text (true_label)"
        )
    return label ^ settings.true_label


def _word(value: Any) -> str:
    """A label as it is compared and shown."""
    plain = written(value)
    return (str(value) if plain is None else plain).strip().lower()


def _group(row: Row, number: int, settings: DatasetSettings, otherwise: str) -> str:
    """The row's group; its question, or without one its text, where there is no column or no value in it."""
    if settings.group_column is None or _lacks_group(row, settings.group_column):
        return normalised(otherwise)
    value = cell(row, settings.group_column)
    group = written(value)
    if group is None:
        raise UserError(
            f"row {number} of {settings.path}: column {settings.group_column!r} (group_column) holds {shown(value)}; "
            "expected text or a number that names the group"
        )
    return normalised(group)


def _lacks_group(row: Row, column: str) -> bool:
    group = written(cell(row, column))
    return group is not None and group.strip().lower() in _NO_GROUP


def _log_missing_groups(rows: Sequence[Row], settings: DatasetSettings) -> None:
    column = settings.group_column
    lacking = [
        number for number, row in enumerate(rows, start=1) if column and _lacks_group(row, column)
    ]
    if lacking:
        log.warning(
            "%d of %d rows have no value in column %r (group_column), such as row %d: the group of each is its question, "
            "or without a question its text; fill the column if some of them belong together",
            len(lacking),
            len(rows),
            column,
            lacking[0],
        )


def _log_labels(rows: Sequence[Row], texts: Sequence[OwnText], settings: DatasetSettings) -> None:
    """Say how each label word is read, with examples, so that a reader sees labels that are the wrong way round."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(_word(cell(row, settings.label_column)), []).append(place)
    for word, found in places.items():
        examples = " and ".join(
            f"row {place + 1}, {_ending(texts[place])}" for place in found[:_EXAMPLES]
        )
        meaning = "hallucinated" if texts[found[0]].label else "true"
        log.info(
            "label %r is read as %s in %d texts, such as %s", word, meaning, len(found), examples
        )
    log.info(
        "If they are the other way round, set true_label: %d in the data set's file",
        1 - settings.true_label,
    )


def _ending(text: OwnText) -> str:
    """A text up to the end of the part that is judged; of a long one the end."""
    read = text.text[: text.answer_end]
    return repr(read if len(read) <= _CHARACTERS else f"...{read[-_CHARACTERS:]}")


def lacks_answer(text: str, answer: str) -> str:
    """What is wrong with a text that does not hold its answer, with a remedy where spelling alone differs."""
    found = f"the text does not hold its answer {shown(answer)}"
    if normalize("NFC", answer) in normalize("NFC", text):
        return (
            f"{found} (it does in another Unicode form of its accents: write both in the form NFC)"
        )
    if answer.casefold() in text.casefold():
        return f"{found} (it does with other capital letters: write both alike)"
    return found


def normalised(text: str) -> str:
    """A text without what a repetition of it may differ in: case, spacing, a final full stop."""
    return " ".join(text.casefold().split()).rstrip(".")
