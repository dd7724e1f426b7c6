"""Texts to score or to calibrate on, from the files that a user gives."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ghosttrack.detection.scored_texts import Text
from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds, lines
from ghosttrack.inputs.answer_spans import form_in, last_span
from ghosttrack.inputs.cells import (
    LONGEST_TEXT,
    Row,
    all_columns,
    as_text,
    missing_flaw,
    require_columns,
    require_exact_names,
    shown,
    text_flaw,
    text_of,
)
from ghosttrack.inputs.rows import read_rows
from ghosttrack.inputs.user_texts import lacks_answer

_ENCODING = "; or name its encoding, for example --encoding windows-1252"


class Given(NamedTuple):
    """Texts in order, a list if they are all in memory; and their number."""

    texts: Iterable[Text]
    number: int


def read_context(path: Path | str | None, encoding: str = lines.UTF8) -> str:
    """The text file that the model reads before every text without a context; "" without a path.

    Raises:
        UserError: the file is missing, not text, empty, or longer than LONGEST_TEXT.
    """
    if not path:
        return ""
    path = Path(path).expanduser()
    if reason := file_kinds.not_a_file(path):
        raise UserError(f"context: {reason}; expected a text file")
    with encoding_named():
        read = lines.read_lines(path, "context", encoding=encoding)
        context = "".join(islice(chain.from_iterable(read), LONGEST_TEXT + 1))
    if len(context) > LONGEST_TEXT:
        raise UserError(
            f"context: {path} has more than {LONGEST_TEXT:,} characters; a few statements are "
            "enough"
        )
    if not context.strip():
        raise UserError(
            f"context: {path} is empty; expected a few true statements like those to be scored, "
            "one per line"
        )
    if reason := text_flaw(context):
        raise UserError(f"context: {path}: {reason}")
    return context


def given_texts(path: Path, context: str = "", encoding: str = lines.UTF8) -> Given:
    """Texts of a file, all of them checked before the first one is returned.

    Arguments and errors as in `read_texts`.
    """
    if path.suffix.lower() != ".txt":
        texts = list(read_texts(path, context, encoding))
        return Given(texts, len(texts))
    count = sum(1 for _ in read_texts(path, context, encoding))
    return Given(read_texts(path, context, encoding), count)


def read_texts(path: Path, context: str = "", encoding: str = lines.UTF8) -> Iterator[Text]:
    """Texts of a file.

    Args:
        path: .txt with one text per line, which line feeds end; or a table (csv, tsv, jsonl, json,
            parquet) with the column `text` and optional columns `answer`, `id`, `context`,
            `question`.
        context: of texts that have no context in the file.
        encoding: of a text file.
    Raises:
        UserError: the file is empty, the column `text` is missing, a row has no text or not its
            answer, or two rows have the same id; names the row and the column.
    """
    path = path.expanduser()
    with encoding_named():
        if path.suffix.lower() == ".txt":
            yield from _lines(path, context, encoding)
        else:
            yield from rows_as_texts(read_rows(path, "texts", encoding), path, context)


def rows_as_texts(rows: Sequence[Row], path: Path, context: str = "") -> list[Text]:
    """The texts in the rows of a table; errors as in `read_texts`."""
    columns = all_columns(rows)
    require_columns(columns, [("", "text")], f"texts: {path}")
    require_exact_names(columns, ("answer", "id", "context", "question"), f"texts: {path}")
    ids = _ids(rows, path)
    return [
        _text(row, number, ids[number - 1], path, context) for number, row in enumerate(rows, 1)
    ]


@contextmanager
def encoding_named() -> Iterator[None]:
    """Add the option --encoding to the error for a file in another encoding."""
    try:
        yield
    except lines.UndecodableError as error:
        raise UserError(f"{error}{_ENCODING}") from None


def _lines(path: Path, context: str, encoding: str) -> Iterator[Text]:
    if reason := file_kinds.not_a_file(path):
        raise UserError(f"texts: {reason}; expected a text file with one text per line")
    empty = True
    read = lines.read_lines(path, "texts", newline="\n", encoding=encoding)
    for number, line in enumerate(read, start=1):
        text = line.lstrip("\ufeff").strip()
        if number == 1 and not line.endswith("\n") and "\r" in text:
            raise UserError(
                f"texts: {path} has carriage returns and no line feed, as files of old Mac "
                "programs; write it with line feeds: tr '\\r' '\\n' < OLD > NEW"
            )
        if reason := text_flaw(text):
            raise UserError(f"texts: line {number} of {path}: {reason}")
        if text:
            empty = False
            yield Text(text, "", str(number), context)
    if empty:
        raise UserError(f"texts: {path} has no text; expected one text per line")


def _text(row: Row, number: int, name: str, path: Path, context: str) -> Text:
    text = text_of(row, "text", number, str(path))
    answer = form_in(text, row.get("answer"))
    answer = _optional({"answer": answer}, "answer", number, path).strip()
    if answer and not last_span(text, answer):
        reason = missing_flaw(answer, str(path)) or lacks_answer(text, answer)
        raise UserError(f"row {number} of {path}, column 'answer': {reason}")
    question, row_context = (
        _optional(row, column, number, path) for column in ("question", "context")
    )
    for column, value in (("question", question), ("context", row_context)):
        if reason := missing_flaw(value, str(path)):
            raise UserError(
                f"row {number} of {path}: expected text or an empty cell in column "
                f"{column!r}, {reason}"
            )
    shared = "" if question.strip() else context
    return Text(text, answer, name, row_context or shared, question)


def _ids(rows: Sequence[Row], path: Path) -> list[str]:
    """The id of every row: its cell in the column `id`, else its number; all ids differ."""
    ids = [
        _optional(row, "id", number, path) or str(number)
        for number, row in enumerate(rows, start=1)
    ]
    first: dict[str, int] = {}
    for number, row_id in enumerate(ids, start=1):
        if (earlier := first.setdefault(row_id, number)) != number:
            raise UserError(
                f"texts: rows {earlier} and {number} of {path} have the same id {shown(row_id)} "
                "(a row "
                "without an id gets its number); make all ids different, or remove the column `id`"
            )
    return ids


def _optional(row: Row, column: str, number: int, path: Path) -> str:
    """A text, number or boolean in an optional column as text; "" without a value."""
    text = as_text(row.get(column))
    if text is None:
        raise UserError(
            f"row {number} of {path}: expected text or a number in column {column!r}, found "
            f"{shown(row[column])}; "
            "write it as text, or remove or rename the column"
        )
    if reason := text_flaw(text):
        raise UserError(f"row {number} of {path}, column {column!r}: {reason}")
    return text
