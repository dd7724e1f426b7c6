"""From inputs to verdicts: a planted signal is established, and noise is not."""

import numpy as np
import pandas as pd
import test_detectors

from ghosttrack import scores as registry
from ghosttrack.detection import detectors, probes, seed_runs
from ghosttrack.evaluation import ledger, scoreboard
from ghosttrack.settings import EvaluationSettings

SETTINGS = EvaluationSettings(bootstrap=200)


def judged(signal: float, seed: int) -> pd.DataFrame:
    """The ledger of one synthetic data set, from detectors trained on it."""
    inputs, labels, outer_folds = test_detectors.made(signal, seed)
    fold = np.empty(len(labels), dtype=np.int64)
    for outer in outer_folds:
        fold[outer.test] = outer.number
    examples = pd.DataFrame(
        {
            "dataset": "made",
            "mode": "given",
            "id": [f"e{row}" for row in range(len(labels))],
            "group": np.repeat([f"g{n:02d}" for n in range(test_detectors.GROUPS)], 4),
            "label": labels,
        }
    )
    scores = {
        name: probes.probability(score)
        for name, score in seed_runs.scores(inputs, labels, outer_folds).items()
    }
    table = detectors.frame(examples, fold, scores, {})
    return ledger.judge([scoreboard.of_dataset(table, False, SETTINGS, seed)], [], SETTINGS)


def test_a_planted_signal_is_established_through_every_fit() -> None:
    found = judged(3.0, 0).set_index("claim")
    assert (
        found.loc["the detector beats a regression on all output features", "verdict"]
        == registry.ESTABLISHED
    )


def test_pure_noise_through_every_fit_is_established_in_at_most_5_of_100_seeds() -> None:
    wrong = sum(
        bool((judged(0.0, seed)["verdict"] == registry.ESTABLISHED).any()) for seed in range(100)
    )
    assert wrong <= 5
