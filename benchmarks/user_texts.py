"""The saved detector on relations outside its training, with and without few-shot demonstrations.

PYTHONPATH=workflow_scripts python benchmarks/user_texts.py results/smollm2-135m
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import show

from ghosttrack import Detector, Text, statistics
from ghosttrack.detection import probes
from ghosttrack.facts import statements
from ghosttrack.facts.contexts import context_of

TABLES = ("currencies", "translation", "element_number")
ALONE = "alone"
# Draws of labels from the predicted probabilities: they give the calibration error of a perfectly
# calibrated detector.
DRAWS = 200


def split(table: str, texts: int, shown: int) -> tuple[list[str], pd.DataFrame]:
    """True statements of the table's largest relation, and whole groups of others to score."""
    table_statements = statements.build_statements(table, 0)
    relation = table_statements[
        table_statements["relation"] == table_statements["relation"].value_counts().index[0]
    ]
    shuffled = np.random.default_rng(0).permutation(list(dict.fromkeys(table_statements["group"])))
    groups = [group for group in shuffled if group in set(relation["group"])]
    first = [
        relation[(relation["group"] == group) & (relation["label"] == 0)]["text"].iloc[0]
        for group in groups[:shown]
    ]
    sizes = relation["group"].value_counts()[groups[shown:]]
    chosen = sizes.index[sizes.cumsum() <= texts]
    return first, relation[relation["group"].isin(chosen)]


def main(run: Path, texts: int) -> None:
    """Score the same texts after each context, and print the comparison."""
    torch.set_num_threads(1)
    detector = Detector.load(run)
    rows: list[list[object]] = []
    gains: dict[str, list[np.ndarray]] = {}
    for table in TABLES:
        first, judged = split(table, texts, 5)
        contexts = {
            ALONE: "",
            "5 capitals": context_of("capital"),
            "2 of the relation": "\n".join(first[:2]),
            "5 of the relation": "\n".join(first),
        }
        labels, groups = judged["label"].to_numpy(dtype=np.int64), judged["group"].to_numpy()
        odds = np.array(
            [
                [
                    score.log_odds
                    for score in detector.score(
                        [
                            Text(each.text, each.answer, context=context)
                            for each in judged.itertuples()
                        ],
                        reasons=0,
                    )
                ]
                for context in contexts.values()
            ]
        )
        draws = statistics.bootstrap_auroc(labels, odds, groups, 1000, 0)
        generator = np.random.default_rng(0)
        for name, own, drawn in zip(contexts, odds, draws, strict=True):
            chance = probes.probability(own)
            floor = np.mean(
                [
                    statistics.calibration_error(
                        (generator.random(len(chance)) < chance).astype(np.int64), chance
                    )
                    for _ in range(DRAWS)
                ]
            )
            gains.setdefault(name, []).append(drawn - draws[0])
            rows.append(
                [
                    table,
                    name,
                    len(labels),
                    statistics.auroc(labels, own),
                    _interval(drawn - draws[0]),
                    statistics.calibration_error(labels, chance),
                    float(floor),
                ]
            )
    rows += [
        ["mean", name, "", "", _interval(np.mean(found, axis=0)), "", ""]
        for name, found in gains.items()
    ]
    show(
        "User texts of unseen relations",
        ["table", "context", "texts", "AUROC", "gain over alone", "ECE", "ECE if calibrated"],
        rows,
    )


def _interval(draws: np.ndarray) -> str:
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{draws.mean():+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--texts",
        type=int,
        default=160,
        help="maximum number of texts per table; default %(default)s",
    )
    chosen = parser.parse_args()
    main(chosen.run, chosen.texts)
