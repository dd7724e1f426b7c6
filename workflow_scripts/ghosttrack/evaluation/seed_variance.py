"""Variation of a detector's AUROC over seeds of the folds and of the SAEs."""

import pandas as pd

from ghosttrack import scores as registry

# One row per data set, source of variation, and score or difference.
COLUMNS = ("dataset", "source", "score", "seeds", "mean", "deviation", "least", "most")
# Controls whose AUROC is subtracted from the detector's with the same seed.
CONTROLS = (registry.OUTPUT_REGRESSION, registry.WITHOUT_SAE)


def summarise(table: pd.DataFrame, averaged: list[str]) -> pd.DataFrame:
    """Mean, deviation and range over seeds of each score, and of the gain over each control.

    Args:
        table: columns dataset, source, seed, score, auroc.
        averaged: data sets whose mean, for each seed, is the data set `all_given`.
    Returns:
        A table with the columns COLUMNS.
    """
    pooled = table[table["dataset"].isin(averaged)].groupby(
        ["source", "seed", "score"], sort=False
    )["auroc"]
    # A seed that one of the data sets lacks has no mean.
    whole = (
        pooled.mean()[pooled.count() == len(averaged)]
        .reset_index()
        .assign(dataset=registry.ALL_GIVEN)
    )
    wide = pd.concat([table, whole]).pivot_table(
        index=["dataset", "source", "seed"], columns="score", values="auroc", sort=False
    )
    if wide.empty:  # no data set has folds
        return pd.DataFrame(columns=list(COLUMNS))
    for control in CONTROLS:
        wide[f"{registry.DETECTOR} - {control}"] = wide[registry.DETECTOR] - wide[control]
    rows = [
        {
            "dataset": dataset,
            "source": source,
            "score": score_name,
            "seeds": int(values.count()),
            "mean": values.mean(),
            "deviation": values.std(ddof=1),
            "least": values.min(),
            "most": values.max(),
        }
        for (dataset, source), part in wide.groupby(["dataset", "source"], sort=False)
        for score_name, values in part.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
