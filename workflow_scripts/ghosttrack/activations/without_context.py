"""The model's output on texts without their contexts, in one more pass.

The difference of a token's log-probability with and without the context is how much the context
supports the token.
"""

from typing import Any

import pandas as pd

from ghosttrack.activations import example_extraction, example_tokens
from ghosttrack.activations.extraction import ModelIdentity


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
    """Statistics of the answer tokens of texts that the model reads without their contexts.

    Args:
        model: causal language model in evaluation mode.
        identity: of the model.
        tokenizer: fast tokenizer with character offsets.
        examples: columns of `Example`.
        limit: longest input of the model in tokens.
        batch: texts per forward pass, approximately.
        packed: longest packed sequence in tokens, from `Limits`.
        dataset: named in errors.
    Returns:
        One row per answer token, in the order of the examples: example, position, token, logprob,
        entropy, margin and rank, as in tokens.parquet.
    Raises:
        UserError: a text is too long.
    """
    encoded = example_tokens.encode(
        examples, tokenizer, limit, dataset, contexts=[""] * len(examples)
    )
    return example_extraction.extract_examples(
        model, identity, encoded, [], [], None, site="resid_post", batch=batch, packed=packed
    ).tokens
