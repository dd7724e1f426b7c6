"""`python -m ghosttrack.cli.score RUN [TEXT ...] [--texts FILE]`: score user texts."""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ghosttrack import api
from ghosttrack.detection.scored_texts import ScoredText, Text
from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds, lines
from ghosttrack.inputs.cells import (
    LONGEST_TEXT,
    Row,
    all_columns,
    as_text,
    missing_flaw,
    require_columns,
    shown,
    text_flaw,
    text_of,
)
from ghosttrack.inputs.rows import read_rows
from ghosttrack.runtime import files
from ghosttrack.settings import names

# Columns of the csv file; all tokens are one cell, and so are all reasons.
COLUMNS = (
    "id",
    "probability",
    "verdict",
    "log_odds",
    "output",
    "answer",
    "text",
    "tokens",
    "reasons",
)


def path_of(text: str) -> Path:
    """A path of the command line with `~` expanded; argparse shows the error."""
    try:
        return Path(names.home_expanded(text))
    except names.InvalidNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_context(path: Path | str | None) -> str:
    """The text file that the model reads before every text without a context; "" without a path.

    Raises:
        UserError: the file is missing, not text, empty, or longer than LONGEST_TEXT.
    """
    if not path:
        return ""
    path = Path(path).expanduser()
    if reason := file_kinds.not_a_file(path):
        raise UserError(f"context: {reason}; expected a text file")
    context = "".join(
        islice(chain.from_iterable(lines.read_lines(path, "context")), LONGEST_TEXT + 1)
    )
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
    return context


def read_texts(path: Path, context: str = "") -> Iterator[Text]:
    """Texts of a file.

    Args:
        path: .txt with one text per line, or a table (csv, tsv, jsonl, json, parquet) with the
            column `text` and optional columns `answer`, `id`, `context`, `question`.
        context: of texts that have no context in the file.

    Raises:
        UserError: the file is empty, the column `text` is missing, a row has no text, or two rows
            have the same id.
    """
    path = path.expanduser()
    if path.suffix.lower() == ".txt":
        empty = True
        if reason := file_kinds.not_a_file(path):
            raise UserError(f"texts: {reason}; expected a text file with one text per line")
        for number, line in enumerate(lines.read_lines(path, "texts"), start=1):
            if reason := text_flaw(line.strip()):
                raise UserError(f"texts: line {number} of {path}: {reason}")
            if line.strip():
                empty = False
                yield Text(line.strip(), "", str(number), context)
        if empty:
            raise UserError(f"texts: {path} has no text; expected one text per line")
        return
    rows = read_rows(path, "texts")
    require_columns(all_columns(rows), [("", "text")], f"texts: {path}")
    ids = _ids(rows, path)
    for number, row in enumerate(rows, start=1):
        text, answer = (
            text_of(row, "text", number, str(path)),
            _optional(row, "answer", number, path),
        )
        question, row_context = (
            _optional(row, column, number, path) for column in ("question", "context")
        )
        for column, value in (("question", question), ("context", row_context)):
            if reason := missing_flaw(value, str(path)):
                raise UserError(
                    f"row {number} of {path}: expected text or an empty cell in column "
                    f"{column!r}, {reason}"
                )
        shared = "" if question else context
        yield Text(text, answer, ids[number - 1], row_context or shared, question)


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
    return text


def as_mapping(score: ScoredText) -> dict[str, Any]:
    """A score as a line of the jsonl file: nested plain values."""
    return {
        **{
            key: getattr(score, key)
            for key in ("id", "probability", "verdict", "log_odds", "output", "text")
        },
        "answer": score.text[score.start : score.end],
        "tokens": [
            {"text": score.text[token.start : token.end], **token._asdict()}
            for token in score.tokens
        ],
        "reasons": [reason._asdict() for reason in score.reasons],
    }


def jsonl(scores: Iterable[ScoredText]) -> Iterator[str]:
    """One JSON object per line."""
    for score in scores:
        yield json.dumps(as_mapping(score), ensure_ascii=False) + "\n"


def as_csv(scores: Iterable[ScoredText]) -> Iterator[str]:
    """One row per text; tokens as `text|surprise|probe`, reasons as `layer:feature name log-odds`.

    Tokens and reasons are separated by ` ; `. An apostrophe protects cells that a spreadsheet would
    run as a formula.
    """
    yield _csv_line(COLUMNS)
    for score in scores:
        values = as_mapping(score)
        tokens = " ; ".join(
            f"{token['text'].strip()}|{token['surprise']}|{token['probe']}"
            for token in values["tokens"]
        )
        reasons = " ; ".join(
            f"{reason.layer}:{reason.feature} {reason.name} {reason.log_odds:+}"
            for reason in score.reasons
        )
        yield _csv_line([*(values[name] for name in COLUMNS[:-2]), tokens, reasons])


def _csv_line(values: Iterable[Any]) -> str:
    from ghosttrack.runtime.tables import plain_cell

    line = io.StringIO()
    # Python's csv quotes a lone carriage return only if it is part of the line terminator.
    csv.writer(line, lineterminator="\r\n").writerow([plain_cell(value) for value in values])
    return line.getvalue().removesuffix("\r\n") + "\n"


def html(scores: Iterable[ScoredText], about: Mapping[str, Any]) -> Iterator[str]:
    """One self-contained page of all texts."""
    from ghosttrack.report.scored import render

    yield render(list(scores), about)


FORMS: dict[str, Callable[[Iterable[ScoredText]], Iterator[str]]] = {
    ".jsonl": jsonl,
    ".csv": as_csv,
}


def write(scores: Iterable[ScoredText], path: Path | None, about: Mapping[str, Any]) -> None:
    """Write scores in the format of the suffix of `path`; None: jsonl to stdout, line by line."""
    if path is None:
        for line in jsonl(scores):
            sys.stdout.write(line)
            sys.stdout.flush()
        return
    form = path.suffix.lower()
    written = html(scores, about) if form == ".html" else FORMS[form](scores)
    with files.atomic_write(path) as stream:
        for line in written:
            stream.write(line)


def refused_path(path: Path) -> str:
    """Why a file cannot be written at a path, with a remedy; "" if it can."""
    if path.is_dir():
        return f"{path} is a folder; name a file in this folder"
    folder = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not folder.is_dir():
        return f"{folder} is a file, not a folder; name another path"
    return (
        ""
        if os.access(folder, os.W_OK)
        else f"the folder {folder} is not writable; name another path"
    )


def _with_first_read(texts: Iterator[Text]) -> Iterator[Text]:
    """The same texts, with the first already read."""
    first = list(islice(texts, 1))
    return chain(first, texts)


def main(arguments: list[str]) -> int:
    """Score texts of the command line or of a file; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.score",
        description="Score how likely texts are hallucinated, with the detector of a finished run.",
        epilog="Mark the part to be scored with a column `answer`, or with --answer for one text; "
        "the default is the last word.",
    )
    parser.add_argument(
        "run", type=path_of, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument("text", nargs="*", help="texts, one per argument")
    parser.add_argument(
        "--texts",
        type=path_of,
        help="file of texts: .txt (one per line), or .csv, .tsv, .jsonl, .json or .parquet with "
        "`text`, optionally `answer`, `id`, `context`, `question`",
    )
    parser.add_argument(
        "--context",
        type=path_of,
        help="text file that the model reads before each text and that is not scored: a few true "
        "statements of the same kind, one per line",
    )
    parser.add_argument(
        "--answer",
        default="",
        help="the part of the single given text to be scored; default: its last word",
    )
    parser.add_argument(
        "--out", type=path_of, help="file to write: .jsonl, .csv or .html; default: jsonl to stdout"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=api.CONFIDENCE,
        help="abstain below this probability of the verdict, from 0.5 (never) to 1; default "
        "%(default)s",
    )
    parser.add_argument(
        "--reasons",
        type=int,
        default=5,
        help="number of features to name per text; default %(default)s",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="number of GPUs over which the model is spread; default %(default)s",
    )
    chosen = parser.parse_intermixed_args(arguments)  # options between texts
    try:
        if bool(chosen.text) == bool(chosen.texts):
            raise UserError("give texts either as arguments or as a file with --texts")
        if chosen.answer and len(chosen.text) != 1:
            raise UserError("--answer needs exactly one text; in a file, use the column `answer`")
        if len(chosen.text) > 1 and not any(" " in text.strip() for text in chosen.text):
            raise UserError(
                f"{len(chosen.text)} texts of one word each: put quotation marks around each text"
            )
        if chosen.out and chosen.out.suffix.lower() not in (*FORMS, ".html"):
            raise UserError(f"--out: {chosen.out} must end in {', '.join(FORMS)} or .html")
        if chosen.out and (reason := refused_path(chosen.out)):
            raise UserError(f"--out: {reason}")
        context = read_context(chosen.context)
        one_by_one = [Text(text, chosen.answer, context=context) for text in chosen.text]
        # Reads the first text before the model is loaded, so that a wrong file fails at once.
        given = _with_first_read(read_texts(chosen.texts, context)) if chosen.texts else one_by_one
        detector = api.Detector.load(chosen.run, gpus=chosen.gpus)
        scores = detector.stream(given, confidence=chosen.confidence, reasons=chosen.reasons)
        write(
            scores,
            chosen.out,
            {**detector.about, "run": chosen.run.name, "confidence": chosen.confidence},
        )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
