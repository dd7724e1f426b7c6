"""`python -m ghosttrack.cli.calibrate RUN --texts FILE`: recalibrate a detector on own texts."""

import argparse
import csv
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ghosttrack import api
from ghosttrack.cli.given_texts import encoding_named, read_context, rows_as_texts
from ghosttrack.cli.score import path_of, refused_input, refused_path
from ghosttrack.cli.waiting import limit_threads, log_to_stderr, with_progress
from ghosttrack.detection.scored_texts import ABSTAIN, HALLUCINATED, ScoredText, Text
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import same_text
from ghosttrack.inputs.answer_spans import last_span
from ghosttrack.inputs.cells import (
    MISSING,
    Row,
    all_columns,
    as_text,
    require_columns,
    require_exact_names,
    shown,
)
from ghosttrack.inputs.lines import UTF8, require_encoding
from ghosttrack.inputs.rows import read_rows
from ghosttrack.runtime import files
from ghosttrack.runtime.run_paths import RunPaths

if TYPE_CHECKING:
    from ghosttrack.detection.calibration import Calibration, Point, Reached

_NUMBERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_WORDS = {"hallucinated": 1, "true": 0}
# Shares of texts in the printed risk-coverage curve.
_COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Beginning of the file of the curve.
_CURVE_HEADER = "coverage,decided,errors,"
# Below this AUROC the labels are probably inverted.
_INVERTED = 0.35


class Labelled(NamedTuple):
    """Labelled texts; labels: 1 = hallucinated; groups: texts that belong together."""

    texts: list[Text]
    labels: list[int]
    groups: list[str]
    meaning: str


def read_labelled(
    path: Path, context: str = "", encoding: str = UTF8, true_label: int = 0
) -> Labelled:
    """Texts with the column `label`, and optionally `group`, of a table.

    Labels are 0 and 1 or false and true (1 and true mean hallucinated, as in data sets), or
    `hallucinated` and `true`.

    Args:
        path, context, encoding: as in `read_texts`.
        true_label: the number that marks true texts.
    Raises:
        UserError: as in `read_texts`, or a label is missing, unknown or contradicts another row.
    """
    path = path.expanduser()
    with encoding_named():
        rows = read_rows(path, "texts", encoding)
    columns = all_columns(rows)
    require_columns(columns, [("", "text"), ("", "label")], f"texts: {path}")
    require_exact_names(columns, ("group",), f"texts: {path}")
    texts = rows_as_texts(rows, path, context)
    written = [_word(row, number, path) for number, row in enumerate(rows, start=1)]
    in_words = HALLUCINATED in written
    known = _WORDS if in_words else _NUMBERS
    for number, word in enumerate(written, start=1):
        if word not in known:
            raise UserError(
                f"row {number} of {path}: column 'label' holds {shown(rows[number - 1]['label'])}; "
                "expected 0 or 1 (false or true; 1 and true mean hallucinated), or hallucinated "
                "and true"
            )
    labels = [known[word] ^ (0 if in_words else true_label) for word in written]
    _require_consistent(texts, labels, path)
    meaning = "; ".join(
        f"label {word!r} means {HALLUCINATED if labels[written.index(word)] else 'true'}: "
        f"{written.count(word)} texts"
        for word in dict.fromkeys(written)
    )
    groups = [_group(row, number, path, texts[number - 1]) for number, row in enumerate(rows, 1)]
    return Labelled(texts, labels, groups, meaning)


def _word(row: Row, number: int, path: Path) -> str:
    word = as_text(value := row.get("label"))
    if word is None:  # a list, or a number without end: no label
        return str(value)
    if not word.strip():
        raise UserError(
            f"row {number} of {path}: column 'label' holds nothing; label the text or remove the row"
        )
    return word.strip().lower()


def _group(row: Row, number: int, path: Path, text: Text) -> str:
    group = as_text(row.get("group"))
    if group is None:
        raise UserError(
            f"row {number} of {path}: column 'group' holds {shown(row['group'])}; expected text or "
            "a number that names the group"
        )
    alone = group.strip().lower() in ("", *(word.lower() for word in MISSING))
    return _own_group(text) if alone else f"group {same_text(group)}"


def _own_group(text: Text) -> str:
    """Group of a text without one: answers to one question belong together, and so do equal texts.

    Without a question, the words of the text before its answer are the question.
    """
    span = last_span(text.text, text.answer) if text.answer else None
    question = text.question.strip() or (text.text[: span[0]].strip() if span else "")
    if not question:
        return f"text {text.text}"
    return f"question {same_text(f'{text.context} {question}')}"


def _require_consistent(texts: Sequence[Text], labels: Sequence[int], path: Path) -> None:
    """Refuse equal texts with different labels."""
    first: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(texts):
        key = (text.text, text.answer, text.context, text.question)
        if labels[earlier := first.setdefault(key, index)] != labels[index]:
            raise UserError(
                f"rows {earlier + 1} and {index + 1} of {path} have the same text and different "
                "labels in column 'label'; correct one or remove both"
            )


def report(
    labelled: Labelled, scores: Sequence[ScoredText], reached: "Reached", out: Path
) -> Iterator[str]:
    """Lines about what the calibration reaches on texts that it was not fitted on."""
    import numpy as np

    from ghosttrack.detection.calibration import auroc

    labels, cv_groups = np.array(labelled.labels), _cv_groups(labelled)
    before = np.array([score.probability for score in scores])
    old = auroc(labels, before)
    yield f"{len(labels)} texts in {len(set(labelled.groups))} groups; {labelled.meaning}"
    yield f"AUROC {auroc(labels, reached.probability):.3f} by nested cross-validation, {old:.3f} before"
    if old < _INVERTED:
        yield (
            "An AUROC far below 0.5 often means inverted labels: if 1 marks your true texts, add "
            "--true-label 1"
        )
    yield ""
    yield f"{'confidence':>10} {'decided':>8} {'error':>6} {'95 % interval':>14}   {'before: decided':>15} {'error':>6}"
    lowest = min(reached.decided)
    for confidence, decided in reached.decided.items():
        row = _errors(labels, reached.probability, decided, cv_groups)
        line = (
            f"{confidence:>10} {row.coverage:>8.0%} {_rate(row):>6} "
            f"{f'{row.low:.2f} to {row.high:.2f}':>14}"
        )
        if confidence == lowest:  # at which the detector gave its verdicts
            verdicts = np.array([not score.verdict.startswith(ABSTAIN) for score in scores])
            earlier = _errors(labels, before, verdicts, cv_groups)
            line += f"   {earlier.coverage:>15.0%} {_rate(earlier):>6}"
        yield line
    yield ""
    yield "Risk and coverage: errors among the most certain texts"
    yield f"{'coverage':>10} {'texts':>8} {'error':>6} {'95 % interval':>14}"
    for coverage in _COVERAGES:
        point = reached.curve[max(round(coverage * len(labels)), 1) - 1]
        yield (
            f"{point.coverage:>10.0%} {point.decided:>8} {_rate(point):>6} "
            f"{f'{point.low:.2f} to {point.high:.2f}':>14}"
        )
    yield ""
    yield f"written: {out} and {out.with_suffix('.csv')}"
    yield f'use it: make score ARGS="RUN --calibration {shlex.quote(str(out))} --texts FILE"'


def _errors(labels: Any, probability: Any, decided: Any, cv_groups: Any) -> "Point":
    from ghosttrack.detection.calibration import Point, error_interval

    count = int(decided.sum())
    errors = int((((probability >= 0.5) != (labels == 1)) & decided).sum())
    rate = errors / count if count else float("nan")
    interval = error_interval(errors, count, len(set(cv_groups[decided])))
    return Point(count / len(labels), count, errors, rate, *interval, 0.0)


def _rate(point: "Point") -> str:
    return f"{point.error:.2f}" if point.decided else "-"


def curve_csv(curve: Sequence["Point"]) -> str:
    """The risk-coverage curve as csv."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(curve[0]._fields)
    table.writerows([round(value, 6) for value in point] for point in curve)
    return stream.getvalue()


def _refused_curve(path: Path) -> str:
    """Why the risk-coverage curve must not be written to `path`, with a remedy; "" if it may."""
    if not path.is_file() or path.read_bytes().startswith(_CURVE_HEADER.encode()):
        return ""
    return (
        f"the risk-coverage curve would overwrite {path}, which is no such curve; name another "
        ".json file"
    )


def calibrated(labelled: Labelled, scores: Sequence[ScoredText]) -> tuple["Calibration", "Reached"]:
    """The calibration on all texts, and what it reaches by nested cross-validation."""
    import numpy as np

    from ghosttrack.detection import calibration

    columns, labels = calibration.columns_of(scores), np.array(labelled.labels, dtype=np.int64)
    cv_groups = _cv_groups(labelled)
    return (
        calibration.fit(columns, labels, cv_groups),
        calibration.reached(columns, labels, cv_groups),
    )


def _cv_groups(labelled: Labelled) -> Any:
    from ghosttrack.detection.splits import make_cv_groups

    return make_cv_groups(labelled.groups, [text.text for text in labelled.texts])


def main(arguments: list[str]) -> int:
    """Write a calibration and print what it reaches; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.calibrate",
        description="Recalibrate the detector of a finished run on your own labelled texts.",
    )
    parser.add_argument(
        "run", type=path_of, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument(
        "--texts",
        type=path_of,
        required=True,
        help="table (.csv, .tsv, .jsonl, .json or .parquet) of at least 40 texts of one kind with "
        "`text` and `label` (0 or 1, 1 = hallucinated; or true and hallucinated), optionally "
        "`group`, `answer`, `id`, `context`, `question`",
    )
    parser.add_argument(
        "--context", type=path_of, help="text file that the model reads before each text"
    )
    parser.add_argument(
        "--encoding",
        default="utf-8",
        help="encoding of the files --texts and --context, such as windows-1252; default "
        "%(default)s",
    )
    parser.add_argument(
        "--true-label",
        type=int,
        choices=(0, 1),
        default=0,
        help="the label of true texts; default %(default)s",
    )
    parser.add_argument(
        "--out",
        type=path_of,
        help="file to write, .json, with the risk-coverage curve beside it as .csv; default: "
        "RUN/detection/calibration_NAME.json",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of this process; default %(default)s"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="number of GPUs over which the model is spread; default %(default)s",
    )
    chosen = parser.parse_args(arguments)
    log_to_stderr()
    try:
        limit_threads(chosen.threads)
        require_encoding(chosen.encoding, "--encoding")
        name = re.sub(r"[^\w.-]+", "_", chosen.texts.stem)
        out = chosen.out or RunPaths(chosen.run).detection / f"calibration_{name}.json"
        if out.suffix.lower() != ".json":
            raise UserError(f"--out: {out} must end in .json")
        given = (chosen.texts, chosen.context)
        for written in (out, out.with_suffix(".csv")):
            if reason := refused_path(written) or refused_input(written, given):
                raise UserError(f"--out: {reason}")
        if reason := _refused_curve(out.with_suffix(".csv")):
            raise UserError(f"--out: {reason}")
        context = read_context(chosen.context, chosen.encoding)
        labelled = read_labelled(chosen.texts, context, chosen.encoding, chosen.true_label)
        _calibrate(chosen, labelled, out)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _calibrate(chosen: argparse.Namespace, labelled: Labelled, out: Path) -> None:
    import numpy as np

    from ghosttrack.detection import calibration

    labels = np.array(labelled.labels, dtype=np.int64)
    calibration.require_enough(labels, _cv_groups(labelled), f"texts: {chosen.texts}")
    detector = api.Detector.load(chosen.run, gpus=chosen.gpus)
    lowest = min(calibration.CONFIDENCES)
    stream = detector.stream(labelled.texts, confidence=lowest, reasons=0)
    scores = list(with_progress(stream, len(labelled.texts)))
    made, reached = calibrated(labelled, scores)
    about = {
        "run": Path(chosen.run).resolve().name,
        "detector": calibration.detector_of(detector.identity),
        "texts": len(labels),
        "hallucinated": int(labels.sum()),
        "groups": len(set(_cv_groups(labelled))),
        "whole": sorted({score.whole for score in scores}),
        "auroc": calibration.auroc(labels, reached.probability),
        "auroc_before": calibration.auroc(labels, [score.probability for score in scores]),
    }
    calibration.save(made, about, out)
    with files.atomic_write(out.with_suffix(".csv")) as table:
        table.write(curve_csv(reached.curve))
    for line in report(labelled, scores, reached, out):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
