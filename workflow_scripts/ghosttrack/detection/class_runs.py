"""Run a user's detector class in the outer folds, so that it never sees a text that it scores."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import detectors, splits
from ghosttrack.detection.protocol import Examples, Ints, OutsideDetector, Part
from ghosttrack.detection.representations import Spans, layer_blocks, span_mean, spans
from ghosttrack.errors import UserError
from ghosttrack.runtime.progress import Progress
from ghosttrack.statistics import Floats

if TYPE_CHECKING:
    from ghosttrack.activations.reader import ActivationStore

# Columns of examples.parquet that a class sees. The others are the label, what reveals it (gold
# answers; an id may name the label), and the group.
TEXTS = (
    "text",
    "prompt",
    "question",
    "answer",
    "answer_start",
    "answer_end",
    "relation",
    "subject",
    "mode",
    "remark",
    "context",
)
# Columns of outputs.parquet that are no features.
_NOT_FEATURES = ("id", "row_start", "row_count")
_TOKENS = ("token", "text", "logprob", "entropy", "margin", "rank")


class ClassFiles(NamedTuple):
    """Files of a data set that a class may read: empty if it does not read them.

    stores, manifests, weights: activation stores, their manifests and SAE weights by layer;
    track_metrics: track metrics of the tracker; tokens: tokens.parquet.
    """

    stores: Sequence[Path]
    manifests: Sequence[Path]
    weights: Sequence[Path]
    track_metrics: Sequence[Path]
    tokens: Sequence[Path]


def load(file: Path, module: str, class_name: str, where: str) -> Callable[[], OutsideDetector]:
    """Import a user's class.

    Args:
        file: the file of the class; module: the module to import, or "" to run the file; where: the
            class and the data set, for errors.
    Raises:
        UserError: the import fails, or the class has no method `fit` or `score`.
    """
    try:
        if module:
            namespace = importlib.import_module(module)
        else:
            # so that the file can import its neighbours
            sys.path.insert(0, str(file.resolve().parent))
            spec = importlib.util.spec_from_file_location(f"detector_class_{file.stem}", file)
            assert spec is not None
            assert spec.loader is not None
            namespace = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = namespace
            spec.loader.exec_module(namespace)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: the import raised {_described(error)}") from error
    made = getattr(namespace, class_name, None)
    lacks = [name for name in ("fit", "score") if not callable(getattr(made, name, None))]
    if made is None or lacks:
        problem = "not found" if made is None else f"has no method {' and no method '.join(lacks)}"
        raise UserError(
            f"{where}: {problem}; expected a class with fit(examples, labels) and score(examples)"
        )
    found: Callable[[], OutsideDetector] = made
    return found


def read_parts(
    dataset: str,
    examples: pd.DataFrame,
    outputs: pd.DataFrame,
    files: ClassFiles,
    layers: Sequence[int],
    reads: Sequence[str],
) -> dict[str, Part]:
    """The data that a class may read, by name; each part gives the data of chosen texts.

    Args:
        examples, outputs: of all texts, in the same order.
    Raises:
        UserError: the files are of other texts.
    """
    from ghosttrack.activations.reader import ActivationStore, require_same_rows
    from ghosttrack.runtime import tables

    if list(outputs["id"]) != list(examples["id"]):
        raise UserError(
            f"{dataset}: outputs.parquet and examples.parquet list different examples: delete "
            "both and run again"
        )
    parts: dict[str, Part] = {}
    if "outputs" in reads:
        features = outputs.drop(columns=[*_NOT_FEATURES], errors="ignore").astype(np.float64)
        parts["outputs"] = lambda rows: features.iloc[rows].reset_index(drop=True)
    if "tracks" in reads:
        (path,) = files.track_metrics
        metrics = detectors.read_metrics(tables.read_parquet(path), list(examples["id"]), str(path))
        parts["tracks"] = lambda rows: metrics.iloc[rows].reset_index(drop=True)
    if "tokens" in reads:
        (path,) = files.tokens
        read = tables.read_parquet(path)
        by_text = {
            number: part[[name for name in _TOKENS if name in part]].reset_index(drop=True)
            for number, part in read.groupby("example")
        }
        empty = read.iloc[:0][[name for name in _TOKENS if name in read]]
        parts["tokens"] = lambda rows: [by_text.get(row, empty).copy() for row in rows.tolist()]
    if files.stores:
        stores = {
            layer: ActivationStore.open([store], [manifest], {"layer": layer})
            for layer, store, manifest in zip(layers, files.stores, files.manifests, strict=True)
        }
        require_same_rows(list(stores.values()))
        where = {layer: spans(outputs, store.rows, dataset) for layer, store in stores.items()}
        parts |= _of_layers(stores, where, dict(zip(layers, files.weights, strict=False)), reads)
    return {name: parts[name] for name in reads}


def _of_layers(
    stores: Mapping[int, "ActivationStore"],
    where: Mapping[int, Spans],
    weights: Mapping[int, Path],
    reads: Sequence[str],
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    if "activations" in reads:
        means = {
            layer: span_mean(store.read(), where[layer], ~store.massive)
            for layer, store in stores.items()
        }
        parts["activations"] = lambda rows: {layer: mean[rows] for layer, mean in means.items()}
    if "token_activations" in reads:
        values = {layer: store.read() for layer, store in stores.items()}

        def of_tokens(rows: Ints) -> dict[int, list[Any]]:
            return {
                layer: [
                    array[start : start + size].astype(np.float32)
                    for start, size in zip(
                        where[layer].start[rows], where[layer].sizes[rows], strict=True
                    )
                ]
                for layer, array in values.items()
            }

        parts["token_activations"] = of_tokens
    if "codes" in reads:
        from ghosttrack import sae

        codes = {}
        for layer, store in stores.items():
            read = store.read()
            nothing = np.full((len(where[layer].start), read.shape[1]), np.nan, dtype=np.float32)
            model = sae.load(weights[layer].parent)
            codes[layer] = layer_blocks(
                read, store.massive, where[layer], model, nothing
            ).code_max.copy()
        parts["codes"] = lambda rows: {layer: code[rows] for layer, code in codes.items()}
    return parts


def score_dataset(
    name: str,
    dataset: str,
    make: Callable[[], OutsideDetector],
    where: str,
    examples: pd.DataFrame,
    parts: Mapping[str, Part],
    audited: pd.DataFrame,
    seed: int,
) -> pd.DataFrame:
    """Fit a class in the training part of each outer fold of the leak audit, and score the rest.

    Args:
        name: name of the class in the settings; make: gives a new object of the class; where: the
            class and the data set, for errors.
        examples: all texts; parts: from `read_parts`.
        audited: scores of the audit's controls, with the folds.
        seed: of the order in which a class sees the texts.
    Returns:
        Long table of out-of-fold scores, in the order of `audited`. Without folds all are NaN, with
        the reason.
    Raises:
        UserError: the class raises an error, or its scores are not one finite number per text.
    """
    first = audited[audited["score"] == registry.TEXT_ONLY]
    row_of = {identity: row for row, identity in enumerate(examples["id"])}
    if not set(first["id"]) <= set(row_of):
        raise UserError(
            f"{dataset}: the leak audit has examples that examples.parquet lacks: delete "
            f"detection/{dataset}/ and run again"
        )
    rows = np.array([row_of[identity] for identity in first["id"]], dtype=np.int64)
    labels, fold = (first[column].to_numpy(dtype=np.int64) for column in ("label", "fold"))
    reason = str(first["reason"].iloc[0])
    scores = np.full(len(rows), np.nan)
    if not reason:
        evaluated = examples.iloc[rows]
        splits.check_folds(
            fold, first["group"], list(evaluated["text"]), list(evaluated["id"]), dataset
        )
        texts = visible(examples, dataset, seed)
        rng = np.random.default_rng(seed)
        progress = Progress(f"{name} on {dataset}", int(fold.max()) + 1, "folds")
        for number in range(int(fold.max()) + 1):
            # Shuffled: neighbouring texts of a block have opposite labels.
            train = rng.permutation(np.flatnonzero(fold != number))
            test = rng.permutation(np.flatnonzero(fold == number))
            scores[test] = _score_fold(
                make,
                f"{where}, fold {number}",
                Examples(texts, parts, rows[train]),
                labels[train],
                Examples(texts, parts, rows[test]),
            )
            progress.advance(1)
    return detectors.frame(
        first.reset_index(drop=True),
        fold,
        {f"{registry.CLASS}{name}": scores},
        {f"{registry.CLASS}{name}": reason},
    )


def visible(examples: pd.DataFrame, dataset: str, seed: int) -> pd.DataFrame:
    """The columns TEXTS of all texts, and a key of each text that names neither id nor label."""
    keys = [
        hashlib.blake2b(f"{seed}/{dataset}/{identity}".encode(), digest_size=8).hexdigest()
        for identity in examples["id"]
    ]
    shown = examples[[name for name in TEXTS if name in examples]]
    return shown.assign(key=keys).reset_index(drop=True)


def _score_fold(
    make: Callable[[], OutsideDetector], where: str, train: Examples, labels: Ints, test: Examples
) -> Floats:
    detector = _called(where, "the constructor", make)
    _called(where, "fit", lambda: detector.fit(train, labels.copy()))
    return checked(_called(where, "score", lambda: detector.score(test)), len(test), where)


def _called(where: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        raise UserError(f"{where}: {what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: {what} raised {_described(error)}") from error


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
    try:
        values = np.asarray(returned)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: score returned no array ({error}); {remedy}") from None
    if values.dtype.kind not in "biuf":
        example = repr(values.flat[0])[:60] if values.size else repr(returned)[:60]
        raise UserError(f"{where}: score returned {values.dtype}, such as {example}; {remedy}")
    if values.shape != (expected,):
        size = f"{len(values)} scores" if values.ndim == 1 else f"an array of shape {values.shape}"
        raise UserError(f"{where}: score returned {size}; {remedy}")
    finite = np.isfinite(values)
    if not finite.all():
        raise UserError(
            f"{where}: score returned {int((~finite).sum())} values that are NaN or infinite, the "
            f"first at position {int(np.argmin(finite))}; {remedy}"
        )
    return values.astype(np.float64)
