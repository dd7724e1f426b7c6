"""Other seeds: the detectors' fits in other folds and with other SAEs, and their variation."""

import numpy as np
import pandas as pd
import pytest
import test_detectors

from ghosttrack.detection import detectors, probes, seed_runs, splits
from ghosttrack.evaluation import seed_variance

SETTINGS = test_detectors.SETTINGS


def test_under_the_run_s_own_seed_the_scores_are_the_run_s_own() -> None:
    inputs, labels, outer_folds = test_detectors.made(1.0)
    expected = detectors.train(inputs, labels, outer_folds, SETTINGS, 0, "planted").scores
    found = seed_runs.scores(inputs, labels, outer_folds)
    assert tuple(found) == seed_runs.SCORE_NAMES
    for score_name, score in found.items():
        np.testing.assert_array_equal(probes.probability(score), expected[score_name])


def test_other_folds_give_other_scores_and_other_autoencoders_move_what_reads_them_alone() -> None:
    inputs, labels, outer_folds = test_detectors.made(1.0)
    cv_groups = np.repeat([f"g{n:02d}" for n in range(test_detectors.GROUPS)], 4).astype(object)
    folds = pd.DataFrame(seed_runs.vary_folds(inputs, labels, cv_groups, SETTINGS, [0, 1, 2]))
    wide = folds.pivot_table(index="seed", columns="score", values="auroc")
    assert (wide.nunique() == 3).all()
    other = {
        layer: blocks._replace(residual=blocks.residual[::-1])
        for layer, blocks in inputs.layers.items()
    }
    saes = pd.DataFrame(
        seed_runs.vary_saes(inputs, {0: inputs.layers, 1: other}, labels, outer_folds)
    )
    moved = saes.pivot_table(index="seed", columns="score", values="auroc").nunique() > 1
    assert set(moved[moved].index) == {"ghosttrack", "residual_probe"}
    assert set(saes["source"]) == {seed_runs.SAE}
    fold = splits.assign_folds(labels, cv_groups, SETTINGS.folds, 0)
    assert outer_folds[0].test.tolist() == np.flatnonzero(fold == 0).tolist()


def test_a_gain_is_taken_seed_by_seed() -> None:
    rows = [
        (name, "folds", seed, score_name, value + lift + 0.1 * seed)
        for name, lift in (("one", 0.0), ("two", 0.2), ("leaky", 0.5))
        for seed in (0, 1)
        for score_name, value in (
            ("ghosttrack", 0.3),
            ("ghosttrack.without_sae", 0.3),
            ("output_regression", 0.25),
        )
    ]
    table = pd.DataFrame(rows, columns=["dataset", "source", "seed", "score", "auroc"])
    found = seed_variance.summarise(table, ["one", "two"]).set_index(["dataset", "score"])
    assert list(found.reset_index().columns) == [
        "dataset",
        "score",
        "source",
        "seeds",
        "mean",
        "deviation",
        "least",
        "most",
    ]
    own = found.loc["all_given", "ghosttrack"]
    assert own["mean"] == pytest.approx(0.45)
    assert own["deviation"] == pytest.approx(0.1 / 2**0.5)
    gain = found.loc["all_given", "ghosttrack - output_regression"]
    assert (gain["mean"], gain["deviation"]) == (pytest.approx(0.05), pytest.approx(0, abs=1e-12))
    assert gain["seeds"] == 2
