"""A large corpus file takes little memory; every format is read in a separate process."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT

MEGABYTES = 24
# What packing takes at any size of the file: buffers of both sides, a batch of documents with its tokens, and their digests.
MOST = 50
# Prints by how many megabytes the peak grew above that of a small corpus, or the error.
MEASURE = """
import sys
from pathlib import Path
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus, documents
from ghosttrack.settings import CorpusSettings

class Bytes:
    bos_token_id, eos_token_id = 0, None
    def __call__(self, texts, **_):
        return {"input_ids": [list(text.encode()) for text in texts]}

def build(source, tokens, folder):
    settings = CorpusSettings(source=source, tokens=tokens, heldout_tokens=1000, context=256)
    train, heldout = (corpus.SplitPaths(folder / f"{side}.zarr", folder / f"{side}.json") for side in ("train", "heldout"))
    streams = documents.open_source(settings, 0).streams
    corpus.build(streams, Bytes(), train, heldout, settings, {"source": "test"})

def peak():
    # Not ru_maxrss, which begins with what the parent holds.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

small, large, folder = map(Path, sys.argv[1:])
build(str(small), 100_000, folder / "small")
before = peak()
try:
    build(str(large), 20_000_000, folder / "large")
    print("grew by", peak() - before)
except UserError as error:
    print("grew by", peak() - before, error)
"""


def blocks(path: Path, texts: list[str]) -> None:
    path.write_text("\n\n".join(texts), encoding="utf-8")


def lines(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(texts), encoding="utf-8")


def jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def parquet(path: Path, texts: list[str]) -> None:
    pd.DataFrame({"text": texts}).to_parquet(path, compression="none")


def one_line(path: Path, texts: list[str]) -> None:
    path.write_text(" ".join(texts), encoding="utf-8")


def one_block(path: Path, texts: list[str]) -> None:
    path.write_text("first\n\n" + "\n".join(texts), encoding="utf-8")


def one_row(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps({"text": " ".join(texts)}) + "\n", encoding="utf-8")


def said(folder: Path, write: Callable[[Path, list[str]], None], ending: str) -> tuple[int, str]:
    """Growth of the peak memory in megabytes, and the error."""
    texts = [f"document {number} " + "of many words " * 140 for number in range(MEGABYTES * 500)]
    write(folder / f"large{ending}", texts)
    # A small file of the same kind loads the same libraries.
    {".txt": blocks, ".jsonl": jsonl, ".parquet": parquet}[ending](
        folder / f"small{ending}", texts[:600]
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURE,
            str(folder / f"small{ending}"),
            str(folder / f"large{ending}"),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, grown, *error = done.stdout.split(maxsplit=3)
    return int(grown), "".join(error)


@pytest.mark.parametrize(
    ("write", "ending"),
    [(blocks, ".txt"), (lines, ".txt"), (jsonl, ".jsonl"), (parquet, ".parquet")],
)
def test_a_corpus_file_is_read_in_bounded_memory(
    tmp_path: Path, write: Callable[[Path, list[str]], None], ending: str
) -> None:
    grown, error = said(tmp_path, write, ending)
    assert not error
    assert grown < MOST


@pytest.mark.parametrize(
    ("write", "ending", "message"),
    [
        (one_line, ".txt", "corpus.source: line 1 of "),
        (one_block, ".txt", "corpus.source: the document that begins at line 3 of "),
        (one_row, ".jsonl", "corpus.source: line 1 of "),
    ],
)
def test_a_giant_line_or_document_is_refused_with_its_line_and_length_in_bounded_memory(
    tmp_path: Path, write: Callable[[Path, list[str]], None], ending: str, message: str
) -> None:
    grown, error = said(tmp_path, write, ending)
    assert error.startswith(message)
    assert re.search(r" has 2\d,\d{3},\d{3} characters, more than 10,000,000; ", error)
    assert grown < MOST
