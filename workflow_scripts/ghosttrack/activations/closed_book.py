"""The closed book: the model's output on the statements of a conflict set without their remarks.

The model reads the same statements after the few-shot demonstrations alone, in one more pass.
"""

from typing import Any

import pandas as pd

from ghosttrack.activations import example_extraction, example_tokens, pmi_baseline
from ghosttrack.activations.candidates import Candidates
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.facts import remarks


def read(
    model: Any,
    identity: ModelIdentity,
    tokenizer: Any,
    examples: pd.DataFrame,
    *,
    prompts: int,
    limit: int,
    batch: int,
    packed: int,
    dataset: str,
    seed: int,
) -> pd.DataFrame:
    """Statistics of the answers of `examples` in the closed book.

    A statement that follows several remarks is read once.

    Args:
        model: causal language model in evaluation mode.
        examples: columns of `Example`, each text with a remark.
        prompts: other prompts after which each answer is scored, for PMI.
        limit: longest input of the model in tokens.
        batch: examples per forward pass, approximately.
        packed: longest packed sequence in tokens, from `Limits`.
        dataset: named in errors.
        seed: selects the other prompts.
    Returns:
        The columns of outputs.parquet except `row_start` and `row_count`, one row per example.
    """
    plain = remarks.without_remarks(examples).assign(wording="")
    number, _ = pd.factorize(
        pd.MultiIndex.from_frame(plain[["text", "answer_start", "answer_end"]])
    )
    distinct = plain[~pd.Series(number).duplicated().to_numpy()].reset_index(drop=True)
    pairs = pmi_baseline.choose_pairs(distinct, prompts, seed)
    texts = pd.concat([distinct, pairs], ignore_index=True)
    encoded = example_tokens.encode(texts, tokenizer, limit, dataset)
    own = encoded[: len(distinct)]
    baseline = pmi_baseline.PmiBaseline(
        pairs, encoded[len(distinct) :], 0, model.config.get_text_config().hidden_size
    )
    compared = Candidates(model, own, remarks.strata(distinct))
    outputs = example_extraction.extract_examples(
        model,
        identity,
        own,
        [],
        [],
        None,
        site="resid_post",
        batch=batch,
        packed=packed,
        pmi_baseline=baseline,
        candidates=compared,
    ).outputs
    table = example_extraction.compared_outputs(
        outputs.drop(columns=["row_start", "row_count"]),
        distinct,
        baseline.means(distinct),
        compared,
    )
    return table.iloc[number].reset_index(drop=True).assign(id=examples["id"].to_numpy())
