"""Scores and claims of answers and of tokens in a finished run on real texts, and its cost.

    PYTHONPATH=workflow_scripts python benchmarks/real_texts.py results/smollm2-135m ragtruth_qa

The data set has hallucinated spans: `make run ARGS="--config 'datasets=[ragtruth_qa]'
'detection={audit: report}'"`.
"""

import argparse
from pathlib import Path

import pandas as pd
from default_run import CLAIMS, cells, show_costs
from measure import show

SCORES = (
    "family",
    "score",
    "n",
    "groups",
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
)
TOKENS = (
    "family",
    "score",
    "tokens",
    "answers",
    "groups",
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
    "span_f1",
    "answer_auroc",
)
TOKEN_CLAIMS = (CLAIMS[0], "measure", *CLAIMS[1:])


def main(run: Path, dataset: str) -> None:
    """Print four tables of answers and tokens, and the cost of the run."""
    evaluation, title = run / "evaluation", f"{run}, {dataset}"
    for file, name, columns in (
        ("metrics", "scores", SCORES),
        ("ledger", "claims", CLAIMS),
        ("token_metrics", "tokens", TOKENS),
        ("token_claims", "token_claims", TOKEN_CLAIMS),
    ):
        table = pd.read_csv(evaluation / f"{file}.csv")
        found = table[table["dataset"] == dataset]
        if "auroc" in found:
            found = found[found["auroc"].notna()]
        show(title, columns, cells(found, columns), name)
    show_costs(run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    parser.add_argument("dataset", help="a data set of the run with hallucinated spans")
    main(**vars(parser.parse_args()))
