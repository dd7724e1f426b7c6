"""Labelled texts or questions of the user, from a table whose columns the settings name."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

from ghosttrack.errors import UserError
from ghosttrack.facts.answer_words import normalise
from ghosttrack.facts.answers import first_answer, is_matchable
from ghosttrack.facts.examples import Example, Question, same_text
from ghosttrack.facts.spans import has_hallucination, shifted
from ghosttrack.inputs import span_cells
from ghosttrack.inputs.answer_spans import form_in, last_span
from ghosttrack.inputs.cells import (
    MISSING,
    Row,
    all_columns,
    as_text,
    cell,
    missing_flaw,
    nul_flaw,
    require_columns,
    shown,
    surrogate_flaw,
    text_of,
)
from ghosttrack.inputs.gold import EXPECTED, answers_of
from ghosttrack.inputs.rows import read_rows, rows_ahead
from ghosttrack.settings import DatasetSettings

log = logging.getLogger("ghosttrack")

_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Characters of the name of a group, longer than most questions.
_LONGEST_NAME = 100
# Values that mean "no group", in lower case: empty, null, and how programs write null in csv.
_NO_GROUP = frozenset(("", *(word.lower() for word in MISSING)))
# Number of rows that a log line shows, and the number of characters of each.
_SHOWN_ROWS, _SHOWN_CHARACTERS = 2, 60


def read_texts(settings: DatasetSettings) -> list[Example]:
    """Labelled texts of a `file` data set.

    Without `question_column`, a text is used unchanged. With it, either every text starts with its
    question, and the rest is the answer; or no text does, and the text becomes
    `Q: question`, line break, `A: text`.

    Raises:
        UserError: missing column, label other than 0 and 1, empty text, or an answer that its text
            does not contain.
    """
    name = str(settings.path)
    return texts_of_rows(read_rows(Path(name)), settings, name)


def texts_of_rows(
    rows: Sequence[Row], settings: DatasetSettings, name: str, numbers: Sequence[int] | None = None
) -> list[Example]:
    """Labelled texts of the rows of a table.

    Args:
        name: the file. numbers: of the rows in the file, for errors; None: from 1 on.
    Raises:
        UserError: as `read_texts`.
    """
    numbers = numbers or range(1, len(rows) + 1)
    require_columns(all_columns(rows), _columns(settings), name)
    starts = _starts_with_question(rows, settings, name, numbers)
    texts: list[Example] = []
    for place, (number, row) in enumerate(zip(numbers, rows, strict=True), start=1):
        text = text_of(row, settings.text_column, number, name)
        raw = as_text(cell(row, settings.answer_column or settings.text_column)) or ""
        question, prompt = "", ""
        if settings.question_column:
            question = text_of(row, settings.question_column, number, name)
            prompt = question if starts else f"Q: {question}\nA:"
            text = text if starts else f"{prompt} {text}"
        judged = text[len(prompt) :]  # the answer is in this part
        answer = judged.strip()
        if starts and not settings.answer_column:
            raw = answer
        if settings.answer_column:
            written = {settings.answer_column: form_in(judged, cell(row, settings.answer_column))}
            raw = as_text(written[settings.answer_column]) or ""
            answer = text_of(written, settings.answer_column, number, name, numbers=True)
        found = last_span(judged, answer) if answer else None
        if not found:
            flaw = lacks_answer(judged, answer) if answer else "there is no text"
            raise UserError(
                f"row {number} of {name}: {'after the question, ' if prompt else ''}{flaw}"
            )
        start = len(prompt) + found[0]
        spans = None
        if settings.spans_column:
            spans = span_cells.spans_of(row, settings.spans_column, raw, number, name)
            spans = shifted(spans, len(raw) - len(raw.lstrip()), len(answer))
            label = int(has_hallucination(spans))
        else:
            label = _label(cell(row, settings.label_column), number, settings, name)
        context = _context(row, settings, number, name)
        texts.append(
            Example(
                id=f"row-{place:06d}",
                group=_group(row, number, settings, question or context or text),
                relation="file",
                subject="",
                question=question,
                prompt=text[:start].rstrip(),
                answer=answer,
                text=text,
                answer_start=start,
                answer_end=start + len(answer),
                label=label,
                mode="given",
                gold=[],
                context=context,
                long_contexts="window" if context and settings.long_contexts == "window" else "",
                generator=text_of(row, settings.generator_column, number, name, numbers=True)
                if settings.generator_column
                else "",
                spans=spans,
            )
        )
    if settings.spans_column:
        _log_spans(texts)
    else:
        _log_labels(rows, texts, settings)
    if settings.context_column:
        _log_shared_context(texts)
        texts = joined_by_context(texts)
    _log_missing_groups(rows, settings)
    return texts


def read_questions(settings: DatasetSettings) -> list[Question]:
    """Questions and gold answers of a `file` data set in generated mode, without id and prompt.

    Raises:
        UserError: missing column, empty question, no accepted answer that contains a word, or only
            accepted answers that no answer can match.
    """
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
                f"row {number} of {name}: no accepted answer in column {gold_column!r}, found "
                f"{shown(cell(row, gold_column))}; remove the row, or write {EXPECTED}"
            )
        if not any(map(normalise, gold)):
            raise UserError(
                f"row {number} of {name}: the accepted answers {shown(gold)} in column "
                f"{gold_column!r} contain no letter and no digit, and answers are compared by "
                "words; write them in words, or remove the row"
            )
        group = _group(row, number, settings, question)
        questions.append(Question("", group, "file", "", question, "", gold))
    _require_matchable(questions, gold_column, name)
    for number, entry in enumerate(questions[:_SHOWN_ROWS], start=1):
        log.info(
            "row %d of %s: %s has the accepted answers %s",
            number,
            name,
            shown(entry.question),
            shown(entry.gold),
        )
    _log_missing_groups(rows, settings)
    return questions


def _require_matchable(questions: Sequence[Question], column: str, name: str) -> None:
    """Check that each question has an accepted answer that an answer of one line can match."""
    never = [
        number
        for number, question in enumerate(questions, start=1)
        if not any(map(is_matchable, question.gold))
    ]
    if never:
        first = questions[never[0] - 1].gold
        compared = first_answer(f" {next(filter(normalise, first))}")
        raise UserError(
            f"row {never[0]} of {name}, column {column!r}: no answer can match {shown(first)}: an "
            f"answer ends with its first line, here {shown(compared)} "
            f"({len(never)} of {len(questions)} rows); add this part as an accepted answer, or "
            "remove the row"
        )


def check_columns(settings: DatasetSettings) -> None:
    """Check in a dry run that the csv, tsv or jsonl file of a `file` data set has its columns.

    Raises:
        UserError: a column is missing, or a line cannot be read.
    """
    if settings.source != "file":
        return
    columns, rows = _columns(settings), rows_ahead(Path(str(settings.path)), "path")
    if (first := next(rows, None)) is not None:
        present = all_columns(chain([first], rows), [column for _, column in columns])
        require_columns(present, columns, str(settings.path))


def _columns(settings: DatasetSettings) -> list[tuple[str, str]]:
    """Settings key and name of every column to read."""
    needed = [
        ("text_column", settings.text_column),
        ("spans_column", settings.spans_column)
        if settings.spans_column
        else ("label_column", settings.label_column),
    ]
    if settings.mode == "generated":
        needed = [("gold_column", str(settings.gold_column))]
    optional = [
        ("question_column", settings.question_column),
        ("answer_column", settings.answer_column),
        ("group_column", settings.group_column),
        ("context_column", settings.context_column),
        ("generator_column", settings.generator_column),
    ]
    return needed + [(key, column) for key, column in optional if column]


def _starts_with_question(
    rows: Sequence[Row], settings: DatasetSettings, name: str, numbers: Sequence[int]
) -> bool:
    if not settings.question_column:
        return False
    starts = [
        text_of(row, settings.text_column, number, name).startswith(
            text_of(row, settings.question_column, number, name)
        )
        for number, row in zip(numbers, rows, strict=True)
    ]
    if any(starts) and not all(starts):
        raise UserError(
            f"row {numbers[starts.index(not starts[0])]} of {name}: some texts start with their "
            "question and others do not; let all or none start with it, or remove question_column"
        )
    return all(starts)


def _label(value: Any, number: int, settings: DatasetSettings, name: str) -> int:
    label = _LABELS.get(_word(value))
    if label is None:
        raise UserError(
            f"row {number} of {name}: column {settings.label_column!r} (label_column) holds "
            f"{shown(value)}; expected 0 or 1 (false or true), where {settings.true_label} marks a "
            "true text (true_label)"
        )
    return label ^ settings.true_label


def _word(value: Any) -> str:
    """A label as text in lower case."""
    plain = as_text(value)
    return (str(value) if plain is None else plain).strip().lower()


def _group(row: Row, number: int, settings: DatasetSettings, default: str) -> str:
    """The row's group; derived from `default` if there is no group column or it holds no value."""
    if settings.group_column is None or _lacks_group(row, settings.group_column):
        return group_name(default)
    value = cell(row, settings.group_column)
    group = as_text(value)
    if group is None:
        raise UserError(
            f"row {number} of {settings.path}: column {settings.group_column!r} (group_column) "
            f"holds {shown(value)}; expected text or a number that names the group"
        )
    return group_name(group)


def group_name(text: str) -> str:
    """Name of the group of all texts with the same `text`, up to case and space.

    A long text, such as a document, is replaced by its beginning and a digest: tables repeat the
    name in every row.
    """
    name = same_text(text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]} {hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _context(row: Row, settings: DatasetSettings, number: int, name: str) -> str:
    """The context of a text without white space at its end; "" if it has none."""
    if settings.context_column is None:
        return ""
    value = cell(row, settings.context_column)
    context = as_text(value)
    column = settings.context_column
    if context is None:
        raise UserError(
            f"row {number} of {name}: column {column!r} (context_column) holds {shown(value)} "
            f"({type(value).__name__}); expected text, or nothing. {_as_context(value, column)}"
        )
    if reason := missing_flaw(context, name):
        raise UserError(
            f"row {number} of {name}: expected text or an empty cell in column {column!r} "
            f"(context_column), {reason}"
        )
    if reason := nul_flaw(context) or surrogate_flaw(context):
        raise UserError(f"row {number} of {name}, column {column!r}: {reason}")
    return context.rstrip()


def _as_context(value: Any, column: str) -> str:
    """How to make a context of a cell that is no text."""
    if isinstance(value, list):
        return "Join its parts into one text per row, in a column that context_column names"
    if isinstance(value, Mapping):
        key = next((key for key in value if as_text(value[key])), "text")
        return f"Name a key of the object with a dot, such as context_column: {column}.{key}"
    return "Write it as text, or name another column"


def joined_by_context(texts: Sequence[Example]) -> list[Example]:
    """Texts ordered by context, with one group for all texts that share a context or a group.

    The order lets a reader compute a context once. Contexts keep the order in which they occur
    first, and so do the texts of a context. Joined groups take the name of the first of them.
    Contexts that differ only in case and white space, such as line ends, are the same for groups.
    """
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.setdefault(group, group) != group:
            group = parent[group]
        return group

    first: dict[str, str] = {}
    place: dict[str, int] = {}
    for text in texts:
        place.setdefault(text.context, len(place))
        group = root(text.group)
        if text.context:
            parent[group] = root(first.setdefault(same_text(text.context), group))
    ordered = sorted(texts, key=lambda text: place[text.context])
    return [text._replace(group=root(text.group)) for text in ordered]


def _lacks_group(row: Row, column: str) -> bool:
    group = as_text(cell(row, column))
    return group is not None and group.strip().lower() in _NO_GROUP


def _log_shared_context(texts: Sequence[Example]) -> None:
    """Warn of a context that most texts share, such as a system prompt: they are one group."""
    contexts = Counter(text.context for text in texts if text.context)
    for context, count in contexts.most_common(1):
        if 2 < count > len(texts) / 2:
            log.warning(
                "%d of %d texts share the context %s, so they are one group and stay in one fold; if "
                "it is an instruction and no source, write it before the question in question_column, "
                "or leave it out",
                count,
                len(texts),
                shown(context),
            )


def _log_missing_groups(rows: Sequence[Row], settings: DatasetSettings) -> None:
    column = settings.group_column
    lacking = [
        number for number, row in enumerate(rows, start=1) if column and _lacks_group(row, column)
    ]
    if lacking:
        log.warning(
            "%d of %d rows have no value in column %r (group_column), for example row %d: each of "
            "them is grouped by its question, or by its text if it has none; fill the column if "
            "some of these rows belong together",
            len(lacking),
            len(rows),
            column,
            lacking[0],
        )


def _log_labels(rows: Sequence[Row], texts: Sequence[Example], settings: DatasetSettings) -> None:
    """Log the meaning of each label value with examples, to reveal inverted labels."""
    by_label: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_label.setdefault(_word(cell(row, settings.label_column)), []).append(index)
    for word, indices in by_label.items():
        examples = " and ".join(
            f"row {index + 1}, {_ending(texts[index])}" for index in indices[:_SHOWN_ROWS]
        )
        meaning = "hallucinated" if texts[indices[0]].label else "true"
        log.info(
            "label %r means %s: %d texts, for example %s", word, meaning, len(indices), examples
        )
    log.info(
        "If the labels are inverted, set true_label: %d in the data set's file",
        1 - settings.true_label,
    )


def _log_spans(texts: Sequence[Example]) -> None:
    """Log the numbers of answers with spans and of marked characters, with examples."""
    marked = [text for text in texts if text.label]
    shown_spans = [
        f"{text.id}, {text.answer[span.start : span.end][:_SHOWN_CHARACTERS]!r}"
        for text in marked[:_SHOWN_ROWS]
        for span in (text.spans or [])[:1]
    ]
    log.info(
        "%d of %d answers have hallucinated spans%s",
        len(marked),
        len(texts),
        f", for example {' and '.join(shown_spans)}" if shown_spans else "",
    )


def _ending(example: Example) -> str:
    """The last characters of a text up to the end of its judged span."""
    text = example.text[: example.answer_end]
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}")


def lacks_answer(text: str, answer: str) -> str:
    """The error message for a text that does not contain its answer."""
    message = f"the text does not contain its answer {shown(answer)}"
    if normalize("NFC", answer) in normalize("NFC", text):
        return f"{message} (the Unicode form of an accent differs: write both in the form NFC)"
    if answer.casefold() in text.casefold():
        return f"{message} (upper and lower case differ: write both the same way)"
    return message
