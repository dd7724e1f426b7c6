"""Scores and claims of a data set of real texts in a finished run, of its tokens, and the run's cost.

    PYTHONPATH=workflow_scripts python benchmarks/real_texts.py results/smollm2-135m ragtruth_qa --cost

The run: `make run ARGS="--config 'datasets=[ragtruth_qa]' 'detection={audit: report}'"`, or
`make run ARGS="--config 'datasets=[counterfact]'"`. Only data sets with hallucinated spans have
tables of tokens.
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


def main(run: Path, dataset: str, *, cost: bool) -> None:
    """Print the tables of answers and tokens, and the cost of the whole run."""
    evaluation, title = run / "evaluation", f"{run}, {dataset}"
    for file, name, columns in (
        ("metrics", "scores", SCORES),
        ("ledger", "claims", CLAIMS),
        ("token_metrics", "tokens", TOKENS),
        ("token_claims", "token_claims", TOKEN_CLAIMS),
    ):
        if not (evaluation / f"{file}.csv").exists():
            continue
        table = pd.read_csv(evaluation / f"{file}.csv")
        found = table[table["dataset"] == dataset]
        if "auroc" in found:
            found = found[found["auroc"].notna()]
        if len(found):
            show(title, columns, cells(found, columns), f"{dataset}.{name}")
    if cost:
        show_costs(run, f"{dataset}.cost")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    parser.add_argument("dataset", help="a data set of the run")
    parser.add_argument("--cost", action="store_true", help="also print the cost of the run")
    main(**vars(parser.parse_args()))
