"""Activations, SAE codes and SAE residuals, pooled over the answer tokens of each example."""

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

# Minimum examples of a relation for a separate copy of the output features: see `by_relation`.
RELATION_ROWS = 100
# Columns of outputs.parquet that are no features of the answer's output distribution.
NOT_FEATURES = ("pmi_prompts", "p_true", "dropped_tokens")
# Prefix of logit-lens columns, which come from an earlier block: see `activations.candidates`.
LENS = "lens_"
# Prefix of output columns that compare an answer with the other candidate answers.
CANDIDATES = "final_"
# Prefix of columns on the answer that a remark before the text asserts, which only conflict sets
# have. Only together with the agreement do they say something about the text.
REMARK = "remark_"
# Column that `remark_support` gives to conflict sets.
REMARK_SUPPORT = f"{REMARK}support"
# Rows encoded at once: 4,096 x d_sae 5,120 x 4 bytes = 84 MB.
_ROWS = 4096


class Spans(NamedTuple):
    """First row and number of rows of each example in the activation stores, (examples,)."""

    start: NDArray[np.int64]
    sizes: NDArray[np.int64]


def spans(outputs: pd.DataFrame, rows: int, name: str) -> Spans:
    """The spans in outputs.parquet, after a check that they cover the `rows` of the store in order.

    Raises:
        UserError: an example has no token, or the spans do not cover the rows; `name` is the data
            set.
    """
    start, count = (
        outputs[column].to_numpy(dtype=np.int64) for column in ("row_start", "row_count")
    )
    if (count < 1).any():
        raise UserError(
            f"{name}: example {outputs['id'].iloc[int(np.argmax(count < 1))]} has no answer "
            "token, expected at least one: delete the data set's folder in examples/ and run "
            "again"
        )
    if int(count.sum()) != rows or (start != np.cumsum(count) - count).any():
        raise UserError(
            f"{name}: outputs.parquet describes {int(count.sum())} answer tokens, the activation "
            f"store holds {rows}: delete the data set's folder in examples/ and run again"
        )
    return Spans(start, count)


def span_mean(
    values: NDArray[Any], where: Spans, included: NDArray[np.bool_] | None = None
) -> Singles:
    """Mean over each example's rows, (rows, columns) -> (examples, columns) float32.

    Args:
        included: (rows,) rows of the mean; an example without an included row uses all its rows.
    """
    weight = np.ones(len(values), dtype=np.float32)
    if included is not None and not included.all():
        count = np.add.reduceat(included.astype(np.int64), where.start)
        weight = np.where(included | np.repeat(count == 0, where.sizes), 1, 0).astype(np.float32)
    total = np.add.reduceat(values.astype(np.float32) * weight[:, None], where.start, axis=0)
    return np.asarray(total / np.add.reduceat(weight, where.start)[:, None], dtype=np.float32)


def span_max(values: NDArray[Any], where: Spans) -> Singles:
    """Maximum over each example's rows, (rows, columns) -> (examples, columns) float32."""
    return np.asarray(
        np.maximum.reduceat(values.astype(np.float32), where.start, axis=0), dtype=np.float32
    )


class LayerBlocks(NamedTuple):
    """Features of one layer, pooled over the answer tokens.

    raw: mean activation, (examples, d_model); centred: raw minus the counterfactual-prompt mean;
    code: mean SAE code minus the code of the counterfactual-prompt mean, concatenated with the
    maximum of the code, (examples, 2 d_sae); residual: mean SAE reconstruction error minus that of
    the counterfactual-prompt mean, (examples, d_model).

    The counterfactual-prompt mean is the mean activation of the same answer after other prompts. It
    identifies the answer and does not depend on its truth. Where it is missing, nothing is
    subtracted.
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
    counterfactual_mean: NDArray[Any],
) -> LayerBlocks:
    """Encode the answer tokens of one layer and pool them per example.

    Args:
        values: (rows, d_model) activations.
        massive: (rows,) massive activations (attention sinks), excluded from means.
        counterfactual_mean: (examples, d_model), NaN where it is missing.
    """
    import torch

    parts: list[LayerBlocks] = []
    for examples, rows in _batches(where):
        part, here = values[rows].astype(np.float32), _shift(where, examples)
        x = torch.from_numpy(part)
        expected = counterfactual_mean[examples].astype(np.float32)
        unknown: NDArray[np.bool_] = np.asarray(np.isnan(expected).any(axis=1), dtype=np.bool_)
        expected[unknown] = 0
        with torch.inference_mode():
            code = sae.encode(x)
            residual = (x - sae.decode(code)).numpy()
            expected_code = sae.encode(torch.from_numpy(expected))
            missed = expected - sae.decode(expected_code).numpy()
        included = ~massive[rows]
        active = (
            code.numpy() * included[:, None]
        )  # an attention sink activates every feature and would be the maximum
        expected_mean = np.where(unknown[:, None], 0, expected_code.numpy())
        pooled = np.concatenate(
            [span_mean(active, here, included) - expected_mean, span_max(active, here)], axis=1
        )
        raw = span_mean(part, here, included)
        error = span_mean(residual, here, included) - np.where(unknown[:, None], 0, missed)
        parts.append(LayerBlocks(raw, raw - expected, pooled, error))
    return LayerBlocks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _batches(where: Spans) -> Iterator[tuple[slice, slice]]:
    """Slices of examples and of their rows, about _ROWS rows each; examples stay whole."""
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
    """Features of the model's output distribution on an answer, one row per example.

    Log-probabilities, entropies and margins are in nats; `surprise_first` is the first token's
    surprisal minus the entropy of its distribution; ranks are log(1 + rank). A column that one
    example lacks (such as PMI without other prompts) is dropped for all. Comparisons with candidate
    answers are 0 where an answer has no other candidates.
    """
    table = outputs.drop(
        columns=["id", "row_start", "row_count", "input_tokens", *NOT_FEATURES], errors="ignore"
    )
    table = _without_gaps(
        table.drop(columns=[name for name in table if str(name).startswith((LENS, REMARK))])
    )
    table["rank_first"] = np.log1p(table["rank_first"])
    table["surprise_first"] = -table["logprob_first"] - table["entropy_first"]
    table["surprise_mean"] = -table["logprob_mean"] - table["entropy_mean"]
    # the log-probability saturates at 0: its logarithm separates sure from nearly sure
    table["doubt_mean"] = np.log(-table["logprob_mean"] + 1e-4)
    return table


def remark_features(outputs: pd.DataFrame) -> pd.DataFrame:
    """Log-probabilities and entropy of the answers that remarks assert, one row per example.

    Raises:
        UserError: `outputs` has no such columns.
    """
    names = [name for name in outputs if str(name).startswith(REMARK) and name != REMARK_SUPPORT]
    if not names:
        raise UserError(
            f"outputs.parquet of a conflict set has no columns {REMARK}*: delete the data set's "
            "folder in examples/ and run again"
        )
    return outputs[names].astype(np.float64)


def remark_support(
    outputs: pd.DataFrame, agrees: NDArray[np.bool_], strata: Sequence[str]
) -> NDArray[np.float64]:
    """How much the model's log-probability of the remark's answer speaks for the text, (examples,).

    The summed log-probability is standardised within each stratum, which reads no label. The sign
    is turned where the text contradicts its remark.
    """
    values = remark_features(outputs)["remark_logprob_sum"].to_numpy()
    by_stratum = pd.Series(values).groupby(np.array(strata, dtype=object))
    mean, scale = (
        by_stratum.transform(statistic).to_numpy() for statistic in (np.mean, _deviation)
    )
    return np.asarray(np.where(agrees, 1.0, -1.0) * (values - mean) / scale, dtype=np.float64)


def _deviation(values: "pd.Series[float]") -> float:
    return float(values.std(ddof=0)) or 1.0


def context_support(
    outputs: pd.DataFrame, without_context: pd.DataFrame, name: str
) -> dict[str, NDArray[np.float64]]:
    """How much its context raises the log-probability of each answer, in nats, (examples,).

    Args:
        outputs: outputs.parquet.
        without_context: without_context.parquet, one row per answer token.
        name: the data set, for errors.
    Returns:
        support_sum and support_mean over the answer's tokens, and entropy_mean without the context.
    Raises:
        UserError: the tables are from different texts.
    """
    by_example = without_context.groupby("example")
    if list(by_example.groups) != list(range(len(outputs))):
        raise UserError(
            f"{name}: without_context.parquet has {by_example.ngroups} answers, outputs.parquet "
            f"{len(outputs)}: delete the data set's folder in examples/ and run again"
        )
    plain, tokens = by_example["logprob"].sum().to_numpy(), by_example.size().to_numpy()
    gain = outputs["logprob_sum"].to_numpy() - plain
    return {
        "support_sum": np.asarray(gain, dtype=np.float64),
        "support_mean": np.asarray(gain / tokens, dtype=np.float64),
        "plain_entropy_mean": by_example["entropy"].mean().to_numpy(dtype=np.float64),
    }


def lens_features(outputs: pd.DataFrame) -> pd.DataFrame:
    """Logit-lens comparison of an answer with the other candidate answers, one row per example.

    0 where an answer has no other candidates; no column if no answer has any.
    """
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
    """Features of prompt and answer for bilinear probes.

    prompt: residual stream at the last prompt token, by block, each (examples, d_model); words:
    mean token embedding of the prompt, (examples, d_model); answer: unembedding row of the answer's
    first token, (examples, d_model); relation: relation number, (examples,).
    """

    prompt: Sequence[NDArray[Any]]
    words: NDArray[Any]
    answer: NDArray[Any]
    relation: NDArray[np.int64]


def pairs_of(
    states: "States", relations: Sequence[str], rows: NDArray[np.int64]
) -> PromptAnswerPairs:
    """Prompt-answer pairs of the examples `rows`; `relations`: (rows,) their relations."""
    prompt, answer = states.prompt[rows], states.answer[rows]
    return PromptAnswerPairs(
        [block[prompt] for block in states.blocks.values()],
        states.words[prompt],
        states.unembedding[answer],
        pd.factorize(np.array(relations, dtype=object))[0].astype(np.int64),
    )


def by_relation(features: pd.DataFrame, relations: Sequence[str]) -> pd.DataFrame:
    """Features, and for each large relation a copy standardised within it, 0 for other relations.

    Log-probabilities differ between relations, such as capitals given a country and countries given
    a capital, so each relation gets separate weights. Mean and deviation are over all examples of
    the relation; labels are not read. With one relation there is no copy.
    """
    names, code, counts = codes_of(relations)
    large = np.flatnonzero(counts >= RELATION_ROWS)
    values, parts = features.to_numpy(dtype=np.float64), [features]
    for number in large if len(names) > 1 else []:
        members = np.flatnonzero(code == number)
        scale = values[members].std(axis=0)
        copy = np.zeros_like(values)
        copy[members] = (values[members] - values[members].mean(axis=0)) / np.where(
            scale > 0, scale, 1
        )
        parts.append(
            pd.DataFrame(
                copy,
                columns=[f"{column}.{names[number]}" for column in features],
                index=features.index,
            )
        )
    return pd.concat(parts, axis=1)
