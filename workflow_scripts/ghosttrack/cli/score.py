"""`python -m ghosttrack.cli.score RUN [TEXT ...] [--texts FILE]`: the saved detector of a finished run on one's own texts."""

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
from ghosttrack.detection.scored_texts import Score, Text
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

# Columns of the csv form, in order; tokens and reasons are one cell each.
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
    """A path of the command line, with `~` replaced by the home directory; argparse shows what is wrong with it."""
    try:
        return Path(names.home_expanded(text))
    except names.InvalidNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_context(path: Path | str | None) -> str:
    """What stands before texts that have no context of their own: a text file as it is; "" without one.

    Raises:
        UserError: it is missing, no text, empty, or longer than a text may be.
    """
    if not path:
        return ""
    path = Path(path).expanduser()
    if reason := file_kinds.not_a_file(path):
        raise UserError(f"context: {reason}; expected a text file")
    found = "".join(
        islice(chain.from_iterable(lines.read_lines(path, "context")), LONGEST_TEXT + 1)
    )
    if len(found) > LONGEST_TEXT:
        raise UserError(
            f"context: {path} has more than {LONGEST_TEXT:,} characters; a few statements are enough"
        )
    if not found.strip():
        raise UserError(
            f"context: {path} is empty; expected a few true statements of the kind that is judged, one a line"
        )
    return found


def read_texts(path: Path, context: str = "") -> Iterator[Text]:
    """Texts of a file: one a line in .txt, else a table (csv, tsv, jsonl, json, parquet) with `text` and perhaps `answer`, `id`, `context`, `question`.

    Args:
        context: of texts that have none of their own.

    Raises:
        UserError: naming the row without text, the column that is missing, or two rows of one id; or the file is empty.
    """
    path = path.expanduser()
    if path.suffix.lower() == ".txt":
        empty = True
        if reason := file_kinds.not_a_file(path):
            raise UserError(f"texts: {reason}; expected a text file with one text a line")
        for number, line in enumerate(lines.read_lines(path, "texts"), start=1):
            if reason := text_flaw(line.strip()):
                raise UserError(f"texts: line {number} of {path}: {reason}")
            if line.strip():
                empty = False
                yield Text(line.strip(), "", str(number), context)
        if empty:
            raise UserError(f"texts: {path} holds no text; expected one text a line")
        return
    rows = read_rows(path, "texts")
    require_columns(all_columns(rows), [("", "text")], f"texts: {path}")
    ids = _ids(rows, path)
    for number, row in enumerate(rows, start=1):
        text, answer = (
            text_of(row, "text", number, str(path)),
            _optional(row, "answer", number, path),
        )
        question, own = (_optional(row, column, number, path) for column in ("question", "context"))
        for column, value in (("question", question), ("context", own)):
            if reason := missing_flaw(value, str(path)):
                raise UserError(
                    f"row {number} of {path}: expected text or nothing in column {column!r}, {reason}"
                )
        yield Text(text, answer, ids[number - 1], own or ("" if question else context), question)


def _ids(rows: Sequence[Row], path: Path) -> list[str]:
    """The id of each row: its cell in the column `id`, or its number where that is missing; no two alike."""
    ids = [
        _optional(row, "id", number, path) or str(number)
        for number, row in enumerate(rows, start=1)
    ]
    first: dict[str, int] = {}
    for number, each in enumerate(ids, start=1):
        if (earlier := first.setdefault(each, number)) != number:
            raise UserError(
                f"texts: rows {earlier} and {number} of {path} have the same id {shown(each)} (a row without one has its "
                "number); give each row its own, or remove the column `id`"
            )
    return ids


def _optional(row: Row, column: str, number: int, path: Path) -> str:
    """Text, a number or a boolean in a column that a file may lack, as text; "" where there is none."""
    found = as_text(row.get(column))
    if found is None:
        raise UserError(
            f"row {number} of {path}: expected text or a number in column {column!r}, found {shown(row[column])}; "
            "write it as text, or remove or rename the column"
        )
    return found


def as_mapping(score: Score) -> dict[str, Any]:
    """A score as nested plain values, the form of a line of jsonl."""
    return {
        **{
            key: getattr(score, key)
            for key in ("id", "probability", "verdict", "log_odds", "output", "text")
        },
        "answer": score.text[score.start : score.end],
        "tokens": [
            {"text": score.text[each.start : each.end], **each._asdict()} for each in score.tokens
        ],
        "reasons": [each._asdict() for each in score.reasons],
    }


def jsonl(scores: Iterable[Score]) -> Iterator[str]:
    """One object a line."""
    for score in scores:
        yield json.dumps(as_mapping(score), ensure_ascii=False) + "\n"


def as_csv(scores: Iterable[Score]) -> Iterator[str]:
    """A row a text; tokens as `text|surprise|probe`, reasons as `layer:feature name log-odds`, separated by ` ; `.

    Text that a spreadsheet would run as a formula gets an apostrophe in front; jsonl has it as it is.
    """
    yield _csv_line(COLUMNS)
    for score in scores:
        found = as_mapping(score)
        tokens = " ; ".join(
            f"{each['text'].strip()}|{each['surprise']}|{each['probe']}" for each in found["tokens"]
        )
        reasons = " ; ".join(
            f"{each.layer}:{each.feature} {each.name} {each.log_odds:+}" for each in score.reasons
        )
        yield _csv_line([*(found[name] for name in COLUMNS[:-2]), tokens, reasons])


def _csv_line(values: Iterable[Any]) -> str:
    from ghosttrack.runtime.tables import plain_cell

    line = io.StringIO()
    # Python's csv quotes a lone carriage return only where it is part of the line's end.
    csv.writer(line, lineterminator="\r\n").writerow([plain_cell(value) for value in values])
    return line.getvalue().removesuffix("\r\n") + "\n"


def html(scores: Iterable[Score], about: Mapping[str, Any]) -> Iterator[str]:
    """One page of all texts, complete in itself, everything escaped."""
    from ghosttrack.report.scored import render

    yield render(list(scores), about)


FORMS: dict[str, Callable[[Iterable[Score]], Iterator[str]]] = {".jsonl": jsonl, ".csv": as_csv}


def write(scores: Iterable[Score], path: Path | None, about: Mapping[str, Any]) -> None:
    """Write scores in the form that the file's ending names; None: jsonl to the screen, line by line."""
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


def refused_place(path: Path) -> str:
    """Why a file cannot be written at a path, with a remedy; "" if nothing is known against it."""
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    folder = next((each for each in path.parents if each.exists()), path.parent)
    if not folder.is_dir():
        return f"{folder} is a file, not a folder; name another place"
    return (
        ""
        if os.access(folder, os.W_OK)
        else f"the folder {folder} cannot be written to; name another place"
    )


def _begun(texts: Iterator[Text]) -> Iterator[Text]:
    """The same texts, of which the first is read now."""
    first = list(islice(texts, 1))
    return chain(first, texts)


def main(arguments: list[str]) -> int:
    """Score texts of the command line or of a file; 2 after a wrong argument or a run that does not fit."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.score",
        description="Say how likely texts are hallucinated, with the detector of a finished run.",
        epilog="Mark the part that is judged with a column `answer`, or with --answer for one text; without it the last word is judged.",
    )
    parser.add_argument(
        "run", type=path_of, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument("text", nargs="*", help="texts, each an argument")
    parser.add_argument(
        "--texts",
        type=path_of,
        help="file of texts: .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet with `text`, and perhaps `answer`, `id` and `context`",
    )
    parser.add_argument(
        "--context",
        type=path_of,
        help="text file that the model reads before each text and nobody judges: a few true statements of the same kind, one a line",
    )
    parser.add_argument(
        "--answer",
        default="",
        help="the part of the one given text that is judged; default: its last word",
    )
    parser.add_argument(
        "--out",
        type=path_of,
        help="where to write: .jsonl, .csv or .html; default: jsonl on the screen",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=api.CONFIDENCE,
        help="abstain below this probability of the verdict, 0.5 (never) to 1; default %(default)s",
    )
    parser.add_argument(
        "--reasons", type=int, default=5, help="features to name for each text; default %(default)s"
    )
    chosen = parser.parse_intermixed_args(arguments)  # options may stand between texts
    try:
        if bool(chosen.text) == bool(chosen.texts):
            raise UserError("give texts either as arguments or as a file with --texts")
        if chosen.answer and len(chosen.text) != 1:
            raise UserError(
                "--answer goes with exactly one text; in a file it is the column `answer`"
            )
        if len(chosen.text) > 1 and not any(" " in each.strip() for each in chosen.text):
            raise UserError(
                f"{len(chosen.text)} texts of one word each: put quotation marks around a text"
            )
        if chosen.out and chosen.out.suffix.lower() not in (*FORMS, ".html"):
            raise UserError(f"--out: {chosen.out} must end in {', '.join(FORMS)} or .html")
        if chosen.out and (reason := refused_place(chosen.out)):
            raise UserError(f"--out: {reason}")
        context = read_context(chosen.context)
        one_by_one = [Text(each, chosen.answer, context=context) for each in chosen.text]
        # The first text is read before the model is loaded, which takes long: a wrong file is named at once.
        given = _begun(read_texts(chosen.texts, context)) if chosen.texts else one_by_one
        detector = api.Detector.load(chosen.run)
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
