"""Tokens per CPU second of `score`, and of the bare forward pass on the same texts.

Texts are scored as whole statements, and with a marked answer, for which they are read twice: alone,
and behind true statements. Some of the texts are also scored alone: the batch in which a text is
read changes rounding.

PYTHONPATH=workflow_scripts python benchmarks/scoring.py results/smollm2-135m
"""

import argparse
import statistics
from pathlib import Path

import pandas as pd
import torch
from measure import Cost, cost, least, show

from ghosttrack import Detector, Text
from ghosttrack.detection.scoring import BATCH


def main(run: Path, texts: int, repeats: int, alone: int) -> None:
    """Score texts of the run's data sets; run the same token batches through the bare model."""
    torch.set_num_threads(1)
    tables = [pd.read_parquet(path) for path in sorted(run.glob("datasets/*/examples.parquet"))]
    given = pd.concat(tables).query("mode == 'given'").sample(texts, random_state=0)
    detector = Detector.load(run)
    scorer = detector._scorer
    answers = [Text(row.text, row.answer) for row in given.itertuples()]
    statements = [Text(row.text) for row in given.itertuples()]
    # The bare pass gets all texts sorted by length, which minimises padding.
    ids = sorted(
        scorer.tokenizer([each.text for each in statements], add_special_tokens=False)["input_ids"],
        key=len,
    )
    tokens = sum(map(len, ids))
    batches = [_padded(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]

    def bare() -> None:
        with torch.inference_mode():
            for batch, mask in batches:
                scorer._model(input_ids=batch, attention_mask=mask, use_cache=False)

    cases = {
        "bare forward pass": bare,
        "score, whole statements": lambda: detector.score(statements),
        "score, marked answers": lambda: detector.score(answers),
    }
    costs_of: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            costs_of[name].append(cost(case))
    best = {name: least(costs) for name, costs in costs_of.items()}
    changes = [
        abs(detector.score([text])[0].log_odds - score.log_odds)
        for given_texts in (statements, answers)
        for text, score in zip(given_texts, detector.score(given_texts)[:alone], strict=False)
    ]
    rows = [
        [name, tokens / each.cpu, tokens / each.wall, best["bare forward pass"].cpu / each.cpu]
        for name, each in best.items()
    ]
    show(
        f"{texts} texts, {tokens:,} tokens, {len(detector.about['layers'])} layers",
        ["", "tokens/CPU-s", "tokens/s", "of bare"],
        rows,
    )
    if changes:
        show(
            f"log-odds of {len(changes)} texts, read alone against among {texts} texts",
            ["median change", "largest change"],
            [[statistics.median(changes), max(changes)]],
            "alone",
        )


def _padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, ids))
    batch = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return batch, mask


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--alone", type=int, default=100, help="texts that are also scored alone")
    chosen = parser.parse_args()
    main(chosen.run, chosen.texts, chosen.repeats, chosen.alone)
