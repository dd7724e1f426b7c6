"""Scores of lm-polygraph's estimators for the given texts of a finished run, for `make judge`.

Needs an environment with lm-polygraph: python benchmarks/lm_polygraph_scores.py RUN OUT DATASET ...
The estimators get what the run's model says of the answer that is in the text, not of an answer
that it would generate. docs/howto/judge.md has the commands.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lm_polygraph import estimators
from transformers import AutoModelForCausalLM, AutoTokenizer

CHOSEN = (
    estimators.MaximumSequenceProbability,
    estimators.Perplexity,
    estimators.MeanTokenEntropy,
    estimators.SelfCertainty,
    estimators.RenyiNeg,
)


def main() -> None:
    """Write a csv table with the columns dataset, id, name and score, higher = less certain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="csv file to write")
    parser.add_argument("datasets", nargs="+", help="data sets of given texts")
    parser.add_argument("--limit", type=int, help="at most so many texts of each data set")
    chosen = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(chosen.run / "model")
    model = AutoModelForCausalLM.from_pretrained(chosen.run / "model", dtype=torch.float32).eval()
    separators = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    prefix = [token for token in separators if token is not None][:1]
    made, parts = [kind() for kind in CHOSEN], []
    for dataset in chosen.datasets:
        texts = pd.read_parquet(chosen.run / "datasets" / dataset / "examples.parquet")
        texts = texts.head(chosen.limit or len(texts))
        for row in texts.itertuples():
            stated, every = answer_log_probs(
                model, tokenizer, prefix, row.text, row.answer_start, row.answer_end
            )
            stats = {
                "greedy_log_likelihoods": [stated],
                "greedy_log_probs": [every],
                "entropy": [-(np.exp(every) * every).sum(axis=1)],
            }
            parts += [
                (dataset, row.id, str(estimator), float(estimator(stats)[0])) for estimator in made
            ]
    pd.DataFrame(parts, columns=["dataset", "id", "name", "score"]).to_csv(chosen.out, index=False)


def answer_log_probs(
    model: torch.nn.Module, tokenizer: object, prefix: list[int], text: str, start: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each answer token, (tokens,), and of all tokens there, (tokens, vocabulary).

    `start`, `end`: character range of the answer; `prefix`: tokens before each text.
    """
    encoded = tokenizer(text[:end], return_offsets_mapping=True, add_special_tokens=False)  # type: ignore[operator]
    ids = torch.tensor([prefix + encoded["input_ids"]])
    first = next(
        number for number, (_, stop) in enumerate(encoded["offset_mapping"]) if stop > start
    )
    with torch.inference_mode():
        every = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1).numpy()
    every = every[len(prefix) + first - 1 :]
    stated = ids[0, len(prefix) + first :].numpy()
    return every[np.arange(len(stated)), stated], every


if __name__ == "__main__":
    main()
