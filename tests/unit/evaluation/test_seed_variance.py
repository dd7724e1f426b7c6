"""Variation over seeds: the mean over data sets is that of metrics.csv."""

from pathlib import Path

import pandas as pd
import pytest

from ghosttrack import scores as registry
from ghosttrack.detection import seed_runs
from ghosttrack.evaluation import seed_variance
from seeds import measure_seed_variance

TEXT = {"strict": (0.45, 0.55), "leaky": (0.6, 0.8), "control": (0.9, 0.99)}
COLUMNS = ["dataset", *seed_runs.SeedResult._fields]


def variance_of(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """seed_variance.csv of three data sets, of which the last is a positive control."""
    head = dict.fromkeys(registry.METRICS, 0.5) | {"mode": "given", "family": "x"}
    metrics = [
        head | {"dataset": name, "score": score, "auroc_low": low, "auroc_high": high}
        for name, (low, high) in TEXT.items()
        for score in (registry.DETECTOR, registry.TEXT_ONLY)
    ]
    pd.DataFrame(metrics).to_csv(folder / "metrics.csv", index=False)
    table.to_csv(folder / "seeds.csv", index=False)
    measure_seed_variance.main(
        metrics=folder / "metrics.csv",
        seeds=[folder / "seeds.csv"],
        all_seeds=folder / "all.csv",
        variance=folder / "variance.csv",
        datasets=list(TEXT),
        controls=["control"],
    )
    return pd.read_csv(folder / "variance.csv")


def test_the_mean_is_over_all_given_data_sets_that_are_no_positive_control(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            (name, seed_runs.FOLDS, seed, score, auroc + seed / 100)
            for name, auroc in (("strict", 0.9), ("leaky", 0.7), ("control", 0.99))
            for seed in (0, 1)
            for score in seed_runs.SCORE_NAMES
        ],
        columns=COLUMNS,
    )
    found = variance_of(tmp_path, table).set_index(["dataset", "score"])
    assert found.loc[(registry.ALL_GIVEN, registry.DETECTOR), "least"] == pytest.approx(0.8)
    assert found.loc[(registry.ALL_GIVEN, registry.DETECTOR), "most"] == pytest.approx(0.81)


def test_without_folds_the_table_is_empty(tmp_path: Path) -> None:
    found = variance_of(tmp_path, pd.DataFrame(columns=COLUMNS))
    assert found.empty
    assert list(found) == list(seed_variance.COLUMNS)
