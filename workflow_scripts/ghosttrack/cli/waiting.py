"""What a user sees while texts are scored: progress on stderr, and files that grow."""

import fcntl
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ghosttrack.detection.scored_texts import ScoredText
from ghosttrack.errors import UserError
from ghosttrack.runtime.files import sync_directory
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")
# So few texts are scored before a user wonders.
FEW = 10
LABEL = "scored"


def limit_threads(threads: int) -> None:
    """Let this process compute with so many threads; the tokenizer uses no others."""
    if threads < 1:
        raise UserError(f"--threads: {threads} must be at least 1")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    # Read when torch and numpy are imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def log_to_stderr() -> None:
    """Show notes of readers and progress lines on stderr."""
    if not log.handlers:
        log.addHandler(_ToStderr())
        log.setLevel(logging.INFO)


class _ToStderr(logging.Handler):
    """Writes to the stderr of the moment, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message in one line; of progress, only that of all texts."""
        message = record.getMessage()
        if record.module != Progress.__module__.rpartition(".")[2] or message.startswith(LABEL):
            sys.stderr.write(f"{message}\n")


def with_progress(scores: Iterable[ScoredText], count: int) -> Iterator[ScoredText]:
    """The same scores; shows progress, rate and time left on stderr for more than FEW texts.

    On a terminal it is a bar, otherwise a line at most every 10 seconds.
    """
    if count <= FEW:
        yield from scores
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(scores, LABEL, count, unit=" texts", file=sys.stderr, smoothing=0.1)
    else:
        progress = Progress(LABEL, count, "texts")
        for score in scores:
            yield score
            progress.advance(1)


@contextmanager
def growing_file(path: Path) -> Iterator[TextIO]:
    """A file that can be read while it is written, under the name `NAME.partial` until it is whole.

    After an error or a kill the partial file remains if it has content, and `path` is unchanged.

    Raises:
        UserError: another process writes the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("a", encoding="utf-8", newline="") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out: another process writes {partial}; wait for it, or name another file"
            ) from None
        stream.truncate(0)
        try:
            yield stream
            stream.flush()
        except BaseException:
            if partial.stat().st_size:
                log.warning("the scores made so far are in %s", partial)
            else:
                partial.unlink()
            raise
        os.fsync(stream.fileno())
        partial.replace(path)
        sync_directory(path.parent)
