"""One vector per example from the activations of its answer tokens: raw, SAE code, SAE residual."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.statistics import codes_of

if TYPE_CHECKING:
    from ghosttrack.activations.candidates import States
    from ghosttrack.sae import Sae

Singles = NDArray[np.float32]

# A relation with this many examples gets output features of its own: enough for weights of its own in every fold.
RELATION_ROWS = 100
# Columns of outputs.parquet that say how a number came about, or come from another text than the answer's own.
NOT_FEATURES = ("other_prompts", "p_true")
# Columns that an earlier block has made, not the output: see `activations.rivals`.
LENS = "lens_"
# Columns of the output that set an answer beside its rivals: from the same.
CANDIDATES = "final_"
# Rows encoded at once: 4,096 x d_sae 5,120 x 4 bytes = 84 MB.
_ROWS = 4096


class Spans(NamedTuple):
    """Rows of each example in the stores: first row and number of rows, each (examples,)."""

    start: NDArray[np.int64]
    sizes: NDArray[np.int64]


def spans(outputs: pd.DataFrame, rows: int, name: str) -> Spans:
    """Read the spans of an examples' outputs table and see that they tile the store's rows in order.

    Raises:
        UserError: naming the data set and the example without tokens, or the numbers that do not fit.
    """
    start, count = (
        outputs[column].to_numpy(dtype=np.int64) for column in ("row_start", "row_count")
    )
    if (count < 1).any():
        raise UserError(
            f"{name}: example {outputs['id'].iloc[int(np.argmax(count < 1))]} has no answer token; expected one at least"
        )
    if int(count.sum()) != rows or (start != np.cumsum(count) - count).any():
        raise UserError(
            f"{name}: outputs.parquet describes {int(count.sum())} answer tokens, the activation store holds {rows}: "
            "they are not from the same run; delete the data set's folder in examples/ and run again"
        )
    return Spans(start, count)


def span_mean(values: NDArray[Any], where: Spans, kept: NDArray[np.bool_] | None = None) -> Singles:
    """Mean over each example's rows, values (rows, columns) -> (examples, columns) float32.

    Rows not `kept` (massive ones) are left out, unless an example has no other.
    """
    weight = np.ones(len(values), dtype=np.float32)
    if kept is not None and not kept.all():
        left = np.add.reduceat(kept.astype(np.int64), where.start)
        weight = np.where(kept | np.repeat(left == 0, where.sizes), 1, 0).astype(np.float32)
    total = np.add.reduceat(values.astype(np.float32) * weight[:, None], where.start, axis=0)
    return np.asarray(total / np.add.reduceat(weight, where.start)[:, None], dtype=np.float32)


def span_max(values: NDArray[Any], where: Spans) -> Singles:
    """Maximum over each example's rows, values (rows, columns) -> (examples, columns) float32."""
    return np.asarray(
        np.maximum.reduceat(values.astype(np.float32), where.start, axis=0), dtype=np.float32
    )


class LayerBlocks(NamedTuple):
    """What the detectors read of one layer, pooled over the answer's tokens.

    raw: mean activation, (examples, d_model); centred: the same minus the answer's background; code: mean of the SAE
    code minus the code of the background, and its maximum, side by side, (examples, 2 d_sae); residual: mean of what
    the SAE misses minus what it misses of the background, (examples, d_model).

    The background is what the answer's activation is after other prompts: the part that says which answer it is, and
    nothing of whether it is true. Where there is none, nothing is taken off.
    """

    raw: Singles
    centred: Singles
    code: Singles
    residual: Singles

    @property
    def code_max(self) -> Singles:
        """Maximum of the SAE code, (examples, d_sae)."""
        return self.code[:, self.code.shape[1] // 2 :]


def layer_blocks(
    values: NDArray[Any],
    massive: NDArray[np.bool_],
    where: Spans,
    sae: "Sae",
    background: NDArray[Any],
) -> LayerBlocks:
    """Encode the answer tokens of one layer and pool them per example.

    Args:
        values: (rows, d_model) activations; massive: (rows,) attention sinks, left out of means;
        background: (examples, d_model), NaN where it is not known.
    """
    import torch

    parts: list[LayerBlocks] = []
    for examples, rows in _batches(where):
        part, here = values[rows].astype(np.float32), _shift(where, examples)
        x = torch.from_numpy(part)
        expected = background[examples].astype(np.float32)
        unknown: NDArray[np.bool_] = np.asarray(np.isnan(expected).any(axis=1), dtype=np.bool_)
        expected[unknown] = 0
        with torch.inference_mode():
            code = sae.encode(x)
            residual = (x - sae.decode(code)).numpy()
            expected_code = sae.encode(torch.from_numpy(expected))
            missed = expected - sae.decode(expected_code).numpy()
        kept = ~massive[rows]
        active = code.numpy() * kept[:, None]  # a sink fires everything: it would be the maximum
        taken = np.where(unknown[:, None], 0, expected_code.numpy())
        pooled = np.concatenate(
            [span_mean(active, here, kept) - taken, span_max(active, here)], axis=1
        )
        raw = span_mean(part, here, kept)
        own = span_mean(residual, here, kept) - np.where(unknown[:, None], 0, missed)
        parts.append(LayerBlocks(raw, raw - expected, pooled, own))
    return LayerBlocks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _batches(where: Spans) -> Iterator[tuple[slice, slice]]:
    """Whole examples, about _ROWS rows at a time: slices of examples and of rows."""
    first = 0
    while first < len(where.start):
        last = max(first + 1, int(np.searchsorted(where.start, where.start[first] + _ROWS)))
        yield (
            slice(first, last),
            slice(int(where.start[first]), int(where.start[last - 1] + where.sizes[last - 1])),
        )
        first = last


def _shift(where: Spans, examples: slice) -> Spans:
    return Spans(where.start[examples] - where.start[examples.start], where.sizes[examples])


def output_features(outputs: pd.DataFrame) -> pd.DataFrame:
    """Everything the model's output distribution says about an answer, one row per example.

    Log-probabilities, entropies and margins in nats; `surprise_first` is the excess of the first token's
    surprise over the entropy it was drawn from; ranks are logarithmic. Columns that some example lacks (PMI, where an
    answer meets no other prompt) are left out for all; an answer without rivals stands at 0 among them.
    """
    table = outputs.drop(
        columns=["id", "row_start", "row_count", "input_tokens", *NOT_FEATURES], errors="ignore"
    )
    table = _without_gaps(
        table.drop(columns=[name for name in table if str(name).startswith(LENS)])
    )
    table["rank_first"] = np.log1p(table["rank_first"])
    table["surprise_first"] = -table["logprob_first"] - table["entropy_first"]
    table["surprise_mean"] = -table["logprob_mean"] - table["entropy_mean"]
    # the logarithm of the answer's probability saturates at 0: tell sure from nearly sure
    table["doubt_mean"] = np.log(-table["logprob_mean"] + 1e-4)
    return table


def lens_features(outputs: pd.DataFrame) -> pd.DataFrame:
    """How answers stand among their rivals for the logit lens, one row per example; 0 without rivals, no column if none has any."""
    return _without_gaps(outputs[[name for name in outputs if str(name).startswith(LENS)]])


def _without_gaps(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype(np.float64)
    columns = [
        name
        for name in table
        if str(name).startswith((CANDIDATES, LENS)) and table[name].notna().any()
    ]
    table[columns] = table[columns].fillna(0.0)
    return table.dropna(axis=1)


class PromptAnswerPairs(NamedTuple):
    """What a bilinear probe reads of each example: where the model stands before the answer, and the answer itself.

    prompt: by block, (examples, d_model), residual stream at the prompt's last token; words: (examples, d_model), mean
    token embedding of the prompt; answer: (examples, d_model), row of the output embedding of the answer's first token;
    relation: (examples,) number of its relation.
    """

    prompt: Sequence[NDArray[Any]]
    words: NDArray[Any]
    answer: NDArray[Any]
    relation: NDArray[np.int64]


def pairs_of(
    states: "States", relations: Sequence[str], rows: NDArray[np.int64]
) -> PromptAnswerPairs:
    """The pairs of the examples `rows`, whose relations are given, (rows,)."""
    prompt, answer = states.prompt[rows], states.answer[rows]
    return PromptAnswerPairs(
        [each[prompt] for each in states.blocks.values()],
        states.words[prompt],
        states.unembedding[answer],
        pd.factorize(np.array(relations, dtype=object))[0].astype(np.int64),
    )


def by_relation(features: pd.DataFrame, relations: Sequence[str]) -> pd.DataFrame:
    """The features, and for each larger relation of several a copy in its own standard units, 0 for all others.

    Capitals given a country and countries given a capital have other log-probabilities: one weight for both loses what
    each says. No label is read; means and deviations are those of all examples of the relation.
    """
    names, code, counts = codes_of(relations)
    large = np.flatnonzero(counts >= RELATION_ROWS)
    values, parts = features.to_numpy(dtype=np.float64), [features]
    for number in large if len(names) > 1 else []:
        own = np.flatnonzero(code == number)
        spread = values[own].std(axis=0)
        copy = np.zeros_like(values)
        copy[own] = (values[own] - values[own].mean(axis=0)) / np.where(spread > 0, spread, 1)
        parts.append(
            pd.DataFrame(
                copy,
                columns=[f"{column}.{names[number]}" for column in features],
                index=features.index,
            )
        )
    return pd.concat(parts, axis=1)
