"""What the model's output says about the answer that a remark asserts.

A remark stands before the text that is judged, so the forward pass over remark and text also
predicts the remark's own answer. In a causal model these predictions depend on nothing after the
answer: a text up to the remark's answer, read once, gives them for all texts that begin with it.
"""

from typing import Any

import numpy as np
import pandas as pd

from ghosttrack.activations import example_extraction, example_tokens
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.facts import remarks

# Columns of outputs.parquet, by the same statistic of the text's own answer.
COLUMNS = {
    "logprob_sum": "remark_logprob_sum",
    "logprob_mean": "remark_logprob_mean",
    "logprob_first": "remark_logprob_first",
    "entropy_first": "remark_entropy_first",
}


def read(
    model: Any,
    identity: ModelIdentity,
    tokenizer: Any,
    examples: pd.DataFrame,
    *,
    limit: int,
    batch: int,
    packed: int,
    dataset: str,
) -> pd.DataFrame:
    """Statistics of the answers that remarks assert, in nats, one row per example.

    Args:
        model: causal language model in evaluation mode.
        identity: of the model.
        tokenizer: fast tokenizer with character offsets.
        examples: columns of `Example`, each text with a remark.
        limit: longest input of the model in tokens.
        batch: texts per forward pass, approximately.
        packed: longest packed sequence in tokens, from `Limits`.
        dataset: named in errors.
    Returns:
        The columns `COLUMNS.values()`.
    Raises:
        UserError: a remark does not contain its answer, or a text is too long.
    """
    # With the remark's answer as the answer, no shared prefix covers its tokens.
    encoded = [
        one._replace(ids=one.ids[: one.answer[-1] + 1])
        for one in example_tokens.encode(
            remarks.asserted_spans(examples, dataset), tokenizer, limit, dataset
        )
    ]
    keys = [(one.prefix.tobytes(), one.ids.tobytes(), one.answer.tobytes()) for one in encoded]
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    distinct = dict(zip(keys, encoded, strict=True))
    table = example_extraction.extract_examples(
        model,
        identity,
        list(distinct.values()),
        [],
        [],
        None,
        site="resid_post",
        batch=batch,
        packed=packed,
    ).outputs
    rows = np.array([places[key] for key in keys], dtype=np.int64)
    return table[list(COLUMNS)].rename(columns=COLUMNS).iloc[rows].reset_index(drop=True)
