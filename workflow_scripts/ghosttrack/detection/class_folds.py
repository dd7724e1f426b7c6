"""Fit a user's detector class in one outer fold, in a process of its own.

`python -m ghosttrack.detection.class_folds FOLDER` runs the fold in FOLDER.
"""

import functools
import importlib
import inspect
import os
import pickle
import random
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd

import ghosttrack
from ghosttrack.detection.protocol import Examples, Ints, OutsideDetector, Part
from ghosttrack.errors import UserError
from ghosttrack.inputs import modules
from ghosttrack.statistics import Floats

# Files in the folder of a fold.
_DATA, _TASK, _SCORES, _ERROR = "data.joblib", "task.pickle", "scores.npy", "error.pickle"


class ClassSource(NamedTuple):
    """Where a class is: its file, the module to import ("" for a file), and its name."""

    file: Path
    module: str
    name: str


class Fold(NamedTuple):
    """One outer fold of a class.

    where: class, data set and fold, for errors; seed: of the generators of random numbers; train,
    labels: rows of the training texts and their labels; batches: rows of the test texts, one array
    for each call of `score`.
    """

    where: str
    seed: int
    train: Ints
    labels: Ints
    batches: Sequence[Ints]


# Fits a class in each fold: texts, parts, folds -> for each fold the scores of all its batches.
Runner = Callable[[pd.DataFrame, Mapping[str, Part], Sequence[Fold]], Iterator[Floats]]


class _ClassTracebackError(Exception):
    """The traceback of a class, for the log of the job."""


def in_processes(source: ClassSource, threads: int) -> Runner:
    """Run each fold in a new process, so that no state of the class remains for the next fold."""

    def run(
        texts: pd.DataFrame, parts: Mapping[str, Part], folds: Sequence[Fold]
    ) -> Iterator[Floats]:
        with tempfile.TemporaryDirectory(prefix="ghosttrack-class-") as name:
            folder = Path(name).resolve()
            joblib.dump((texts, dict(parts)), folder / _DATA)
            for fold in folds:
                yield _in_process(
                    folder, source._replace(file=source.file.resolve()), fold, threads
                )

    return run


def _in_process(folder: Path, source: ClassSource, fold: Fold, threads: int) -> Floats:
    (folder / _TASK).write_bytes(pickle.dumps((source, fold, threads)))
    for name in (_SCORES, _ERROR):
        (folder / name).unlink(missing_ok=True)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "ghosttrack.detection.class_folds", str(folder)],
        env=_environment(threads),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if (folder / _ERROR).exists():
        message, trace = pickle.loads((folder / _ERROR).read_bytes())
        raise UserError(message) from _ClassTracebackError(trace)
    if not (folder / _SCORES).exists():
        how = (
            f"signal {-ended.returncode} ended its process"
            if ended.returncode < 0
            else f"its process ended with exit code {ended.returncode} before all texts had scores"
        )
        raise UserError(f"{fold.where}: {how}; its messages are above. Correct the class")
    scores: Floats = np.load(folder / _SCORES)
    return scores


def _environment(threads: int) -> dict[str, str]:
    package = str(Path(ghosttrack.__file__).resolve().parents[1])
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "PYTHONPATH": os.pathsep.join([package, *modules.search_path()]),
        "PYTHONHASHSEED": "0",
    }


def load(source: ClassSource, where: str) -> Callable[[], OutsideDetector]:
    """Import a user's class: a module by its name, a file by its own name.

    Args:
        where: the class and the data set, for errors.
    Raises:
        UserError: the import fails, a file has the name of an installed module, or the class has no
            method `fit` or `score`.
    """
    name = source.module
    if not name:
        if reason := modules.name_refusal(source.file):
            raise UserError(f"{where}: {reason}")
        name = source.file.stem
        # So that the file can import its neighbours, and worker processes can import the file.
        sys.path.insert(0, str(source.file.parent))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(source.file.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    try:
        namespace = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: the import raised {_described(error)}") from error
    made = getattr(namespace, source.name, None)
    lacks = [each for each in ("fit", "score") if not callable(getattr(made, each, None))]
    if made is None or lacks:
        problem = "not found" if made is None else f"has no method {' and no method '.join(lacks)}"
        raise UserError(
            f"{where}: {problem}; expected a class with fit(examples, labels) and score(examples)"
        )
    found: Callable[[], OutsideDetector] = made
    return found


def score_fold(
    make: Callable[[], OutsideDetector], texts: pd.DataFrame, parts: Mapping[str, Part], fold: Fold
) -> Floats:
    """Fit a new object of a class, and score the batches of test texts one after the other.

    Args:
        make: gives a new object of the class; texts, parts: of the whole data set.
    Raises:
        UserError: the class raises an error, or its scores are not one finite number per text.
    """
    detector = _called(fold.where, "the constructor", make)
    train = Examples(texts, parts, fold.train)
    _called(fold.where, "fit", lambda: detector.fit(train, fold.labels.copy()))
    scores = []
    for batch in fold.batches:
        shown = Examples(texts, parts, batch)
        returned = _called(fold.where, "score", functools.partial(detector.score, shown))
        scores.append(checked(returned, len(shown), fold.where))
    return np.concatenate(scores)


def _called(where: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        returned = call()
    except UserError as error:
        raise UserError(f"{where}: {what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: {what} raised {_described(error)}") from error
    if inspect.isgenerator(returned) or inspect.iscoroutine(returned):
        returned.close()
        raise UserError(
            f"{where}: {what} returned a generator or a coroutine, whose code did not run; expected "
            "a method without yield and async, and an array or a list"
        )
    return returned


def _described(error: BaseException) -> str:
    """An error in one line, with the file and line that raised it."""
    message = " ".join(str(error).split())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}{f': {message}' if message else ''} "
        f"({Path(frame.filename).name}, line {frame.lineno})"
    )


def checked(returned: Any, expected: int, where: str) -> Floats:
    """The scores that a class returned, after a check.

    Raises:
        UserError: they are not `expected` finite numbers; `where` names class and data set.
    """
    remedy = f"expected {expected} finite numbers, one per text"
    if returned is None:
        raise UserError(f"{where}: score returned nothing; {remedy}")
    if isinstance(returned, pd.Series) and _is_reordered(returned.index, expected):
        raise UserError(
            f"{where}: score returned a Series whose index is not in the order of the texts; return "
            "it after .sort_index(), or as an array in the order of the texts"
        )
    try:
        # A masked value is a missing one.
        masked = np.ma.is_masked(returned)
        given = returned.astype(np.float64).filled(np.nan) if masked else np.asarray(returned)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: score returned no array ({reason}); {remedy}") from None
    if given.dtype.kind not in "biuf":
        example = " ".join(repr(given.flat[0] if given.size else returned)[:60].split())
        raise UserError(f"{where}: score returned {given.dtype}, such as {example}; {remedy}")
    if given.shape != (expected,):
        size = f"{len(given)} scores" if given.ndim == 1 else f"an array of shape {given.shape}"
        raise UserError(f"{where}: score returned {size}; {remedy}")
    with np.errstate(over="ignore"):
        values: Floats = given.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        raise UserError(
            f"{where}: score returned {int((~finite).sum())} values that are NaN or infinite, the "
            f"first at position {int(np.argmin(finite))}; {remedy}"
        )
    return values


def _is_reordered(index: pd.Index, count: int) -> bool:
    """Whether an index has the numbers of all texts, in another order than that of the texts."""
    numbers = list(range(count))
    return len(index) == count and list(index) != numbers and set(index) == set(numbers)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def main(folder: Path) -> None:
    """Run the fold in `folder`, and write its scores or its error there."""
    from threadpoolctl import threadpool_limits

    source, fold, threads = pickle.loads((folder / _TASK).read_bytes())
    texts, parts = joblib.load(folder / _DATA, mmap_mode="r")
    sys.path[:] = modules.search_path()
    _seed(fold.seed)
    try:
        make = load(source, fold.where)
        _seed(fold.seed)
        with threadpool_limits(threads):
            scores = score_fold(make, texts, parts, fold)
    except UserError as error:
        made = pickle.dumps((str(error), traceback.format_exc()))
        (folder / _ERROR).write_bytes(made)
    else:
        np.save(folder / _SCORES, scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
