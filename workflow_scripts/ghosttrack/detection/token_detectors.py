"""Detectors of single hallucinated tokens, with their controls, in the folds of the answers.

A token is hallucinated if a span of a probability above .5 overlaps it. All tokens of an answer, and
all answers of a group, are in one fold. Every score is a ridge regression (`fold_ridge`) on the
columns of its name; strengths, layers and thresholds are chosen in the training folds. A threshold
maximises the F1 of characters. The two scores on all inputs are stacks: their columns are the
out-of-fold scores of the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from ghosttrack import scores as registry
from ghosttrack.detection import fold_ridge, token_features
from ghosttrack.detection.fold_ridge import FoldScores
from ghosttrack.errors import UserError
from ghosttrack.facts.spans import HARD, Span
from ghosttrack.runtime.progress import Progress

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Scores of tokens that use no activations, and what they read.
GENERATOR, POSITION, LENGTH, WORDS, COPY = (
    "token_generator",
    "token_position",
    "token_length",
    "token_words",
    "token_copy",
)
LOGPROB, ENTROPY, SUPPORT = "token_logprob", "token_entropy", "token_support"
OUTPUT, ALL_CONTROLS = "token_output", "token_controls"
# Attention of every head to what precedes the answer: see `activations.lookback`.
LOOKBACK = "token_lookback"
TEXT_CONTROLS = (GENERATOR, POSITION, LENGTH, WORDS, COPY)
# Controls that read neither the model nor the context: a score that is not above them is an
# artefact.
LEAKS = (GENERATOR, POSITION, LENGTH, WORDS)
OUTPUT_CONTROLS = (LOGPROB, ENTROPY, SUPPORT, OUTPUT)
CONTROLS = (*TEXT_CONTROLS, *OUTPUT_CONTROLS, LOOKBACK, ALL_CONTROLS)
# Scores on activations.
RAW, SAE, DETECTOR = "token_raw_probe", "token_sae_probe", "token_detector"
OURS = (DETECTOR, RAW, SAE)
# Ridge strengths of the probe on SAE features: with 2,048 columns every fit takes a third of a
# second.
SAE_STRENGTHS = (1e-3, 1e-2, 1e-1)
# Rows encoded at once: 4,096 x d_sae 5,120 x 4 bytes = 84 MB.
_ROWS = 4096
CHOICES = ("score", "fold", "strength", "layer", "inner_auroc", "threshold")
# Columns of span_scores.parquet before the scores.
COLUMNS = ("id", "group", "fold", "row", "start", "end", "span", "label", "characters", "marked")


class TokenInputs(NamedTuple):
    """Answer tokens of a data set in the order of its answers.

    rows: row of each token in the stores, (tokens,); examples: index of its answer, (tokens,);
    fold: (tokens,); label: (tokens,); table: the tokens' rows of tokens.parquet; texts: the
    answers, with the columns of `Example`; without_context: log-probability without the context,
    (tokens,), or None; lookback: lookback ratios, (tokens, heads), or None.
    """

    rows: Ints
    examples: Ints
    fold: Ints
    label: Ints
    table: pd.DataFrame
    texts: pd.DataFrame
    without_context: Floats | None
    lookback: NDArray[np.float16] | None = None


class TokenScores(NamedTuple):
    """Tables of a data set: a row per answer token with all scores, and the choices by fold."""

    scores: pd.DataFrame
    choices: pd.DataFrame


def read_inputs(
    dataset: str,
    examples: pd.DataFrame,
    tokens: pd.DataFrame,
    audited: pd.DataFrame,
    without_context: pd.DataFrame | None,
    lookback: Callable[[int], NDArray[np.float16]] | None = None,
) -> TokenInputs:
    """Select the answer tokens of the audited answers, with their folds.

    Args:
        examples: examples.parquet with the column spans.
        tokens: tokens.parquet with the columns start, end and span.
        audited: controls.parquet of the leak audit.
        without_context: without_context.parquet, if the answers have contexts.
        lookback: number of all answer tokens -> their lookback ratios.
    Raises:
        UserError: the tables are from different texts, or not all answer tokens are stored.
    """
    again = f"delete the data set's folder in examples/ of {dataset} and run again"
    if not {"start", "end", "span"} <= set(tokens):
        raise UserError(f"{dataset}: tokens.parquet has no labels of tokens: {again}")
    first = audited[audited["score"] == registry.TEXT_ONLY].set_index("id")
    inside = tokens["span"].notna().to_numpy()
    logprob = None
    if without_context is not None:
        same = tokens.loc[inside, ["example", "position", "token"]].reset_index(drop=True)
        if not same.equals(without_context[["example", "position", "token"]].astype(same.dtypes)):
            raise UserError(
                f"{dataset}: without_context.parquet has {len(without_context)} answer tokens, "
                f"tokens.parquet {len(same)}, or other ones. Detectors of tokens need every answer "
                f"token: set activations.positions: answer, or {again}"
            )
        logprob = np.full(len(tokens), np.nan)
        logprob[inside] = without_context["logprob"].to_numpy()
    known = examples["id"].isin(first.index).to_numpy()
    rows = np.flatnonzero(inside & known[tokens["example"].to_numpy()])
    number = np.cumsum(known) - 1
    texts = examples[known].reset_index(drop=True)
    table = tokens.iloc[rows].reset_index(drop=True)
    example = number[table["example"].to_numpy()].astype(np.int64)
    if len(np.unique(example)) < len(texts):
        raise UserError(f"{dataset}: tokens.parquet lacks the tokens of some answers: {again}")
    if (table.groupby("example")["start"].min() > 0).any():
        raise UserError(
            f"{dataset}: only the last tokens of answers are stored. Detectors of tokens need every "
            "answer token: set activations.positions: answer"
        )
    texts = texts.assign(group=first.loc[texts["id"], "group"].to_numpy())
    fold = first.loc[texts["id"], "fold"].to_numpy(dtype=np.int64)
    if fold.max(initial=0) == 1:
        raise UserError(
            f"{dataset}: 2 outer folds leave no inner fold to detectors of tokens: set "
            "detection.folds to 3 or more"
        )
    return TokenInputs(
        rows,
        example,
        fold[example],
        (table["span"].to_numpy() > HARD).astype(np.int64),
        table,
        texts,
        None if logprob is None else logprob[rows],
        _lookback(lookback, inside, rows),
    )


def _lookback(
    read: Callable[[int], NDArray[np.float16]] | None, inside: NDArray[np.bool_], rows: Ints
) -> NDArray[np.float16] | None:
    """Lookback ratios of `rows`; None if there are none, or no heads in them."""
    if read is None:
        return None
    ratios = read(int(inside.sum()))
    return ratios[(np.cumsum(inside) - 1)[rows]] if ratios.shape[1] else None


def train(
    inputs: TokenInputs, layers: Mapping[int, Callable[[], tuple[NDArray[Any], sparse.csr_array]]]
) -> TokenScores:
    """Fit every detector and control in every fold.

    Args:
        layers: by layer, a function that returns raw activations, (tokens, d_model), and SAE
            features, (tokens, d_sae). They are read one layer at a time.
    """
    y, fold = inputs.label, inputs.fold
    progress = Progress("detectors of tokens", len(layers) + 1, "steps")
    tables = controls(inputs)
    fits = {
        name: fold_ridge.leave_out(table, y, fold, widest=fold_ridge.WIDEST)
        for name, table in tables.items()
    }
    progress.advance(1)
    raw, sae = {}, {}
    for layer, read in layers.items():
        activations, features = read()
        raw[layer] = fold_ridge.leave_out(activations, y, fold)
        sae[layer] = fold_ridge.leave_out(
            features, y, fold, SAE_STRENGTHS, widest=fold_ridge.WIDEST
        )
        progress.advance(1)
    chosen: dict[str, list[int]] = {}
    for name, by_layer in ((RAW, raw), (SAE, sae)):
        fits[name], chosen[name] = best_layer(by_layer, fold)
    for name, bases in ((ALL_CONTROLS, list(tables)), (DETECTOR, [*tables, RAW, SAE])):

        def columns(outer: int, bases: list[str] = bases) -> NDArray[Any]:
            return np.column_stack([fits[base].train[outer] for base in bases])

        fits[name] = fold_ridge.leave_out_by_fold(columns, y, fold)
    characters, marked = character_counts(inputs)
    choices = [
        (
            name,
            outer,
            fits[name].strength[outer],
            chosen[name][outer] if name in chosen else -1,
            fits[name].inner_auroc[outer],
            best_threshold(
                fits[name].train[outer][fold != outer],
                characters[fold != outer],
                marked[fold != outer],
            ),
        )
        for name in (*CONTROLS, *OURS)
        if name in fits
        for outer in range(int(fold.max()) + 1)
    ]
    scores = {name: fits[name].test for name in (*CONTROLS, *OURS) if name in fits}
    return TokenScores(
        _frame(inputs, characters, marked, scores), pd.DataFrame(choices, columns=list(CHOICES))
    )


def not_run(inputs: TokenInputs) -> TokenScores:
    """Tables without scores, for a data set that cannot be split into folds."""
    characters, marked = character_counts(inputs)
    return TokenScores(_frame(inputs, characters, marked, {}), pd.DataFrame(columns=list(CHOICES)))


def _frame(
    inputs: TokenInputs, characters: Ints, marked: Ints, scores: Mapping[str, Floats]
) -> pd.DataFrame:
    table = inputs.table
    return pd.DataFrame(
        {
            "id": inputs.texts["id"].to_numpy()[inputs.examples],
            "group": inputs.texts["group"].to_numpy()[inputs.examples],
            "fold": inputs.fold,
            "row": inputs.rows,
            "start": table["start"].to_numpy(),
            "end": table["end"].to_numpy(),
            "span": table["span"].to_numpy(),
            "label": inputs.label,
            "characters": characters,
            "marked": marked,
            **{name: values.astype(np.float32) for name, values in scores.items()},
        }
    )


def controls(inputs: TokenInputs) -> dict[str, Floats | sparse.csr_array]:
    """Columns of every control but ALL_CONTROLS, which the data set can have, (tokens, columns)."""
    table, texts, examples = inputs.table, inputs.texts, inputs.examples
    answers = texts["answer"].tolist()
    starts, ends, tokens = (
        table[name].to_numpy(dtype=np.int64) for name in ("start", "end", "token")
    )
    found: dict[str, Floats | sparse.csr_array] = {}
    if "generator" in texts:
        found[GENERATOR] = token_features.one_hot(texts["generator"].tolist())[examples]
    found[POSITION] = token_features.position(examples)
    found[LENGTH] = token_features.length(examples, answers)
    found[WORDS] = token_features.words(examples, tokens, starts, ends, answers)
    if "context" in texts:
        found[COPY] = token_features.copy(
            examples, starts, ends, answers, texts["context"].tolist()
        )
    statistics = {
        LOGPROB: table[["logprob"]].to_numpy(dtype=np.float64),
        ENTROPY: table[["entropy"]].to_numpy(dtype=np.float64),
    }
    others = np.column_stack([table["margin"], np.log1p(table["rank"].to_numpy(dtype=np.float64))])
    if inputs.without_context is not None:
        statistics[SUPPORT] = (
            table["logprob"].to_numpy(dtype=np.float64) - inputs.without_context
        )[:, None]
    for name, values in statistics.items():
        found[name] = token_features.with_surroundings(values, examples)
    if inputs.lookback is not None:
        found[LOOKBACK] = token_features.with_means(inputs.lookback, examples)
    found[OUTPUT] = np.column_stack(
        [*(found[name] for name in statistics), token_features.with_surroundings(others, examples)]
    )
    return found


def best_layer(by_layer: Mapping[int, FoldScores], fold: Ints) -> tuple[FoldScores, list[int]]:
    """In each outer fold, the scores of the layer with the best inner AUROC, and that layer."""
    names, results = list(by_layer), list(by_layer.values())
    inner = np.array([result.inner_auroc for result in results])  # (layers, folds)
    best = [int(np.argmax(np.nan_to_num(column, nan=-1.0))) for column in inner.T]
    train = np.array([results[at].train[outer] for outer, at in enumerate(best)])
    return (
        FoldScores(
            train[fold, np.arange(len(fold))],
            train,
            np.array([results[at].strength[outer] for outer, at in enumerate(best)]),
            np.array([inner[at, outer] for outer, at in enumerate(best)]),
        ),
        [names[at] for at in best],
    )


def character_counts(inputs: TokenInputs) -> tuple[Ints, Ints]:
    """Characters that count for each token, and those of them in a hallucinated span, (tokens,).

    A character counts for the first token that ends after it, so that white space before a token
    and a character of several tokens count once.
    """
    characters, marked = (np.zeros(len(inputs.rows), dtype=np.int64) for _ in range(2))
    ends = inputs.table["end"].to_numpy(dtype=np.int64)
    edges = np.searchsorted(inputs.examples, np.arange(len(inputs.texts) + 1))
    for number, (answer, spans) in enumerate(
        zip(inputs.texts["answer"], inputs.texts["spans"], strict=True)
    ):
        rows = slice(int(edges[number]), int(edges[number + 1]))
        mask = np.zeros(len(answer) + 1, dtype=np.int64)
        for span in (Span(**each) for each in spans):
            if span.probability > HARD:
                mask[span.start + 1 : span.end + 1] = 1
        last = np.maximum.accumulate(ends[rows].clip(0, len(answer)))
        # Nothing of the answer is after its last token but white space.
        last[-1:] = len(answer)
        before = np.concatenate([[0], last[:-1]])
        total = np.cumsum(mask)
        characters[rows], marked[rows] = last - before, total[last] - total[before]
    return characters, marked


def best_threshold(scores: Floats, characters: Ints, marked: Ints) -> float:
    """The threshold at which the F1 of characters is largest; infinite without a marked one.

    Tokens with a score of the threshold or more are predicted as hallucinated.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits, predicted = np.cumsum(marked[order]), np.cumsum(characters[order])
    f1 = 2 * hits / np.maximum(predicted + marked.sum(), 1)
    f1[:-1][ranked[1:] == ranked[:-1]] = -1  # tokens of one score are predicted together
    best = int(np.argmax(f1))
    return float(ranked[best]) if f1[best] > 0 else float("inf")


def layer_inputs(
    dataset: str,
    rows: Ints,
    total: int,
    layers: Sequence[int],
    stores: Sequence[Path],
    manifests: Sequence[Path],
    weights: Sequence[Path],
) -> dict[int, Callable[[], tuple[NDArray[Any], sparse.csr_array]]]:
    """Functions that read the activations and SAE features of `rows`, by layer.

    Args:
        rows: (tokens,) rows of the stores.
        total: number of rows of tokens.parquet.
        stores, manifests, weights: files in the order of `layers`.
    Raises:
        UserError: a store has other rows.
    """
    from ghosttrack.activations.reader import ActivationStore, require_same_rows

    opened = [
        ActivationStore.open([store], [manifest], {"layer": layer})
        for layer, store, manifest in zip(layers, stores, manifests, strict=True)
    ]
    require_same_rows(opened)
    if opened and opened[0].rows != total:
        raise UserError(
            f"{dataset}: tokens.parquet has {total} rows, the activation stores {opened[0].rows}: "
            "delete the data set's folder in examples/ and run again"
        )

    def reader(
        store: ActivationStore, path: Path
    ) -> Callable[[], tuple[NDArray[Any], sparse.csr_array]]:
        return lambda: _read(store, path, rows)

    return {
        layer: reader(store, path)
        for layer, store, path in zip(layers, opened, weights, strict=True)
    }


def _read(store: Any, weights: Path, rows: Ints) -> tuple[NDArray[Any], sparse.csr_array]:
    """Activations in float32, and SAE features; 0 for massive activations (attention sinks)."""
    import torch

    from ghosttrack import sae

    model = sae.load(weights.parent)
    values = np.asarray(store.read())[rows].astype(np.float32)
    massive = np.asarray(store.massive)[rows]
    values[massive] = 0
    parts = []
    with torch.inference_mode():
        for part in _slices(len(values)):
            code = model.encode(torch.from_numpy(values[part])).numpy()
            code[massive[part]] = 0
            parts.append(sparse.csr_array(code))
    return values, sparse.csr_array(sparse.vstack(parts))


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)
