"""`python -m ghosttrack.cli.score RUN [TEXT ...] [--texts FILE]`: score user texts."""

import argparse
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ghosttrack import api
from ghosttrack.cli.given_texts import Given, given_texts, read_context
from ghosttrack.cli.waiting import growing_file, limit_threads, log_to_stderr, with_progress
from ghosttrack.detection.scored_texts import ScoredText, Text
from ghosttrack.errors import UserError
from ghosttrack.facts.answer_words import UNSPACED
from ghosttrack.inputs.lines import require_encoding
from ghosttrack.settings import names

# Columns of the csv file; the cells of LISTS are JSON lists.
COLUMNS = (
    "id",
    "probability",
    "verdict",
    "log_odds",
    "output",
    "answer",
    "text",
    "unexplained",
    "calibration",
)
# By column, the keys of an entry.
LISTS = {
    "tokens": ("text", "surprise", "probe"),
    "reasons": ("layer", "feature", "name", "log_odds"),
    "sentences": ("text", "probability", "verdict"),
}


def path_of(text: str) -> Path:
    """A path of the command line with `~` expanded; argparse shows the error."""
    try:
        return Path(names.home_expanded(text))
    except names.InvalidNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_mapping(score: ScoredText) -> dict[str, Any]:
    """A score as a line of the jsonl file: nested plain values."""
    # The log-odds of a whole statement have no such part.
    output = {"output": None} if score.whole else {}
    return {
        **{
            key: getattr(score, key)
            for key in (
                "id",
                "probability",
                "verdict",
                "log_odds",
                "output",
                "text",
                "unexplained",
                "calibration",
            )
        },
        **output,
        "answer": score.text[score.start : score.end],
        "tokens": [
            {"text": score.text[token.start : token.end], **token._asdict()}
            for token in score.tokens
        ],
        "reasons": [reason._asdict() for reason in score.reasons],
        "sentences": [
            {
                "text": score.text[each.start : each.end],
                **each._asdict(),
                "reasons": [reason._asdict() for reason in each.reasons],
            }
            for each in score.sentences
        ],
    }


def jsonl(scores: Iterable[ScoredText]) -> Iterator[str]:
    """One JSON object per line."""
    for score in scores:
        yield json.dumps(as_mapping(score), ensure_ascii=False) + "\n"


def as_csv(scores: Iterable[ScoredText]) -> Iterator[str]:
    """One row per text. A cell of tokens, reasons or sentences is a JSON list with a list for each.

    An apostrophe protects cells that a spreadsheet would run as a formula.
    """
    yield _csv_line([*COLUMNS, *LISTS])
    for score in scores:
        values = as_mapping(score)
        lists = (
            [[entry[key] for key in keys] for entry in values[name]] for name, keys in LISTS.items()
        )
        cells = (json.dumps(each, ensure_ascii=False) for each in lists)
        yield _csv_line([*(values[name] for name in COLUMNS), *cells])


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
            sys.stdout.buffer.write(line.encode())
            sys.stdout.flush()
        return
    form = path.suffix.lower()
    written = html(scores, about) if form == ".html" else FORMS[form](scores)
    with growing_file(path) as stream:
        for line in written:
            stream.write(line)
            stream.flush()


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


def refused_input(path: Path, given: Iterable[Path | None]) -> str:
    """Why a file is not written at the path of a given one, with a remedy; "" if it is another."""
    same = any(each and path.exists() and each.exists() and path.samefile(each) for each in given)
    return f"{path} is a given file, which would be overwritten; name another path" if same else ""


def main(arguments: list[str]) -> int:
    """Score texts of the command line or of a file; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.score",
        description="Score how likely texts are hallucinated, with the detector of a finished run.",
        epilog="Mark the part to be scored with a column `answer`, or with --answer for one text; "
        "the default is every sentence, and a text is as true as its worst sentence.",
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
        "--encoding",
        default="utf-8",
        help="encoding of the files --texts and --context, such as windows-1252; default "
        "%(default)s",
    )
    parser.add_argument(
        "--answer",
        default="",
        help="the part of the single given text to be scored; default: every sentence",
    )
    parser.add_argument(
        "--calibration",
        type=path_of,
        help="file that make calibrate has written for this run: probabilities and verdicts are "
        "those of your own kind of text",
    )
    parser.add_argument(
        "--out", type=path_of, help="file to write: .jsonl, .csv or .html; default: jsonl to stdout"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=api.CONFIDENCE,
        help="fraction of the verdicts that shall be right, from 0.5 (a verdict on every text) to 1: "
        "the detector abstains where it has not shown that; default %(default)s",
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
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of this process; default %(default)s"
    )
    chosen = parser.parse_intermixed_args(arguments)  # options between texts
    log_to_stderr()
    try:
        limit_threads(chosen.threads)
        if bool(chosen.text) == bool(chosen.texts):
            raise UserError("give texts either as arguments or as a file with --texts")
        if chosen.answer and len(chosen.text) != 1:
            raise UserError("--answer needs exactly one text; in a file, use the column `answer`")
        if len(chosen.text) > 1 and all(
            len(text.split()) < 2 and not re.search(f"[{UNSPACED}]", text) for text in chosen.text
        ):
            raise UserError(
                f"{len(chosen.text)} texts of one word each: put quotation marks around each text"
            )
        if chosen.out and chosen.out.suffix.lower() not in (*FORMS, ".html"):
            raise UserError(f"--out: {chosen.out} must end in {', '.join(FORMS)} or .html")
        given_files = (chosen.texts, chosen.context, chosen.calibration)
        if chosen.out and (
            reason := refused_path(chosen.out) or refused_input(chosen.out, given_files)
        ):
            raise UserError(f"--out: {reason}")
        require_encoding(chosen.encoding, "--encoding")
        context = read_context(chosen.context, chosen.encoding)
        in_arguments = [Text(text, chosen.answer, context=context) for text in chosen.text]
        # Checks the file before the model is loaded, so that a wrong row fails at once.
        given = (
            given_texts(chosen.texts, context, chosen.encoding)
            if chosen.texts
            else Given(in_arguments, len(in_arguments))
        )
        detector = api.Detector.load(chosen.run, gpus=chosen.gpus, calibration=chosen.calibration)
        scores = detector.stream(given.texts, confidence=chosen.confidence, reasons=chosen.reasons)
        write(
            with_progress(scores, given.number),
            chosen.out,
            {**detector.about, "run": chosen.run.name, "confidence": chosen.confidence},
        )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of stdout, such as head, has what it wants; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
