"""Run a user's detector class in the outer folds, so that it never sees a text that it scores."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import detectors, splits
from ghosttrack.detection.class_folds import Fold, Runner
from ghosttrack.detection.protocol import Ints, Part
from ghosttrack.detection.representations import Spans, layer_blocks, span_mean, spans
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import as_read
from ghosttrack.runtime.progress import Progress

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


@dataclass(frozen=True)
class _Rows:
    """A part with one row per text."""

    table: pd.DataFrame

    def __call__(self, rows: Ints) -> pd.DataFrame:
        return self.table.iloc[rows].reset_index(drop=True)


@dataclass(frozen=True)
class Arrays:
    """A part with an array by layer, each (texts, width)."""

    values: Mapping[int, Any]

    def __call__(self, rows: Ints) -> dict[int, Any]:
        """The arrays of the texts `rows`, by layer."""
        return {layer: np.array(value[rows]) for layer, value in self.values.items()}


@dataclass(frozen=True)
class _Tokens:
    """A part with a table per text: rows `start` to `stop` of `table`."""

    table: pd.DataFrame
    start: Ints
    stop: Ints

    def __call__(self, rows: Ints) -> list[pd.DataFrame]:
        return [
            self.table.iloc[self.start[row] : self.stop[row]].reset_index(drop=True)
            for row in rows.tolist()
        ]


@dataclass(frozen=True)
class _TokenArrays:
    """A part with an array per text by layer: `sizes` rows of `values` from `start` on."""

    values: Mapping[int, Any]
    start: Mapping[int, Ints]
    sizes: Mapping[int, Ints]

    def __call__(self, rows: Ints) -> dict[int, list[Any]]:
        return {
            layer: [
                np.array(value[start : start + size], dtype=np.float32)
                for start, size in zip(
                    self.start[layer][rows], self.sizes[layer][rows], strict=True
                )
            ]
            for layer, value in self.values.items()
        }


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
        parts["outputs"] = _Rows(features)
    if "tracks" in reads:
        (path,) = files.track_metrics
        metrics = detectors.read_metrics(tables.read_parquet(path), list(examples["id"]), str(path))
        parts["tracks"] = _Rows(metrics)
    if "tokens" in reads:
        (path,) = files.tokens
        read = tables.read_parquet(path).sort_values("example", kind="stable", ignore_index=True)
        text = read["example"].to_numpy(dtype=np.int64)
        each = np.arange(len(examples))
        parts["tokens"] = _Tokens(
            read[[name for name in _TOKENS if name in read]],
            np.searchsorted(text, each, side="left"),
            np.searchsorted(text, each, side="right"),
        )
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
        parts["activations"] = Arrays(means)
    if "token_activations" in reads:
        parts["token_activations"] = _TokenArrays(
            {layer: store.read() for layer, store in stores.items()},
            {layer: found.start for layer, found in where.items()},
            {layer: found.sizes for layer, found in where.items()},
        )
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
        parts["codes"] = Arrays(codes)
    return parts


def score_dataset(
    name: str,
    dataset: str,
    runner: Runner,
    where: str,
    examples: pd.DataFrame,
    parts: Mapping[str, Part],
    audited: pd.DataFrame,
    seed: int,
) -> pd.DataFrame:
    """Fit a class in the training part of each outer fold of the leak audit, and score the rest.

    Args:
        name: name of the class in the settings; runner: fits the class in the folds; where: the
            class and the data set, for errors.
        examples: all texts; parts: from `read_parts`.
        audited: scores of the audit's controls, with the folds.
        seed: of the order in which a class sees the texts, and of its random numbers.
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
        read = as_read(evaluated)
        splits.check_folds(fold, first["group"], read, list(evaluated["id"]), dataset)
        cv_groups = splits.make_cv_groups(list(first["group"]), read)
        rng = np.random.default_rng(seed)
        folds, tests = list[Fold](), list[Ints]()
        for number in range(int(fold.max()) + 1):
            # Shuffled: neighbouring texts of a block have opposite labels.
            train = rng.permutation(np.flatnonzero(fold != number))
            batches = one_per_group(rng.permutation(np.flatnonzero(fold == number)), cv_groups)
            own_seed = int.from_bytes(_hashed(f"{seed}/{dataset}/fold {number}", 4))
            folds.append(
                Fold(
                    f"{where}, fold {number}",
                    own_seed,
                    rows[train],
                    labels[train],
                    [rows[batch] for batch in batches],
                )
            )
            tests.append(np.concatenate(batches))
        progress = Progress(f"{name} on {dataset}", len(folds), "folds")
        scored = runner(visible(examples, dataset, seed), parts, folds)
        for test, values in zip(tests, scored, strict=True):
            scores[test] = values
            progress.advance(1)
    return detectors.frame(
        first.reset_index(drop=True),
        fold,
        {f"{registry.CLASS}{name}": scores},
        {f"{registry.CLASS}{name}": reason},
    )


def one_per_group(rows: Ints, cv_groups: splits.Names) -> list[Ints]:
    """Rows in batches, in their order: no batch has two rows of one cross-validation group.

    Texts of a block come in pairs, one true and one hallucinated. A class that saw both could
    compare them, and would know more than the text that it scores.
    """
    earlier = pd.Series(rows).groupby(cv_groups[rows], sort=False).cumcount().to_numpy()
    return [rows[earlier == number] for number in range(int(earlier.max()) + 1)]


def _hashed(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def visible(examples: pd.DataFrame, dataset: str, seed: int) -> pd.DataFrame:
    """The columns TEXTS of all texts, and a key of each text that names neither id nor label."""
    keys = [_hashed(f"{seed}/{dataset}/{identity}", 8).hex() for identity in examples["id"]]
    shown = examples[[name for name in TEXTS if name in examples]]
    return shown.assign(key=keys).reset_index(drop=True)
