"""Scoring many texts: progress, files that grow, threads, interruption."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghosttrack.api import Detector
from ghosttrack.cli import score, waiting
from ghosttrack.detection.scored_texts import Reason, ScoredText, ScoredToken
from ghosttrack.errors import UserError
from ghosttrack.runtime import progress

HERE = Path(__file__).parents[3]


def scored(number: int, text: str = "It is so") -> ScoredText:
    tokens = [ScoredToken(6, 8, 1.0, 0.5)]
    reasons = [Reason(1, 2, "=so", 0.1)]
    return ScoredText(str(number), text, 6, 8, 0.7, 0.8, 0.3, "abstain", tokens, reasons)


@pytest.mark.parametrize("end", ["jsonl", "csv"])
def test_every_score_is_in_the_partial_file_as_soon_as_it_is_made(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"a.{end}"
    partial = tmp_path / f"a.{end}.partial"
    seen: list[int] = []

    def scores() -> Iterator[ScoredText]:
        for number in range(4):
            yield scored(number)
            assert not path.exists()
            seen.append(partial.read_text().count("\n") - (end == "csv"))

    score.write(scores(), path, {})
    assert seen == [1, 2, 3, 4]
    assert path.read_text().count("\n") == 4 + (end == "csv")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_after_an_error_the_scores_made_so_far_remain_and_the_final_name_is_untouched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("earlier")

    def scores() -> Iterator[ScoredText]:
        yield scored(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score.write(scores(), path, {})
    assert path.read_text() == "earlier"
    partial = tmp_path / "a.jsonl.partial"
    assert json.loads(partial.read_text())["id"] == "1"
    assert str(partial) in caplog.text
    score.write(iter([scored(2)]), path, {})  # a leftover does not block the next run
    assert json.loads(path.read_text())["id"] == "2"
    assert not partial.exists()


def test_two_commands_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with waiting.growing_file(path) as stream:
        stream.write("mine")
        stream.flush()
        with pytest.raises(UserError, match=r"another process writes .*a\.jsonl\.partial"):
            score.write(iter([scored(1)]), path, {})
    assert path.read_text() == "mine"


@pytest.mark.parametrize("cell", ["=1+1", "@cmd", "+x", "-x", "\tx", "\uff1dx"])
def test_no_cell_of_the_csv_file_is_a_formula(cell: str) -> None:
    written = "".join(score.as_csv([scored(1, f"{cell} is so")]))
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert row["text"].startswith("'")
    assert not any(value.startswith(("=", "@", "+", "\t")) for value in row.values())


@pytest.mark.parametrize("word", ["a|b", " ; ", '"so"', "line\nend", "\u00e9\U0001f600"])
def test_the_lists_of_the_csv_file_hold_any_text(word: str) -> None:
    text = f"It is {word}"
    given = scored(1, text)._replace(
        tokens=[ScoredToken(6, len(text), 1.0, 0.5)], reasons=[Reason(1, 2, word, 0.1)]
    )
    (row,) = csv.DictReader(io.StringIO("".join(score.as_csv([given])), newline=""))
    assert json.loads(row["tokens"]) == [[word, 1.0, 0.5]]
    assert json.loads(row["reasons"]) == [[1, 2, word, 0.1]]
    assert json.loads(row["sentences"]) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_rate_and_time_left_and_is_silent_for_few_texts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting.log_to_stderr()
    assert len(list(waiting.with_progress(map(scored, range(5)), 5))) == 5
    assert capsys.readouterr().err == ""

    times = iter(range(0, 10_000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    assert len(list(waiting.with_progress(map(scored, range(50)), 50))) == 50
    lines = capsys.readouterr().err.splitlines()
    assert "texts/s, " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("scored: 50/50 texts")
    progress.Progress("reading statements", 1, "texts").advance(1)  # a part of the work
    assert capsys.readouterr().err == ""

    monkeypatch.undo()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert len(list(waiting.with_progress(map(scored, range(50)), 50))) == 50
    assert "50/50" in terminal.getvalue()
    assert "texts/s" in terminal.getvalue()


def test_the_process_has_one_thread_by_default_and_as_many_as_asked_for() -> None:
    code = (
        "from ghosttrack.cli import waiting; waiting.limit_threads({});"
        "import torch; print(torch.get_num_threads())"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE / "workflow_scripts")}
    environment.pop("OMP_NUM_THREADS", None)
    for threads in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", code.format(threads)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(threads)
    with pytest.raises(UserError, match="--threads: 0 must be at least 1"):
        waiting.limit_threads(0)


def test_an_interrupted_command_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Detector:
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "load", interrupted)
    assert score.main(["run", "It is so"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
