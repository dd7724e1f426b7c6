"""How far a detector's AUROC moves with the seed of the folds, and of the autoencoders."""

import pandas as pd

from ghosttrack import scores as registry

# One row per data set, source of variation and signal or difference.
COLUMNS = ("dataset", "source", "score", "seeds", "mean", "deviation", "least", "most")
# The default detector less this signal, seed by seed: the gain moves less than its two parts.
CONTROLS = ("output_regression", registry.WITHOUT_SAE)


def summarise(table: pd.DataFrame, strict: list[str]) -> pd.DataFrame:
    """Mean, standard deviation and range over seeds, of every signal and of the detector's gain over each control.

    Args:
        table: `dataset`, `source`, `seed`, `signal`, `auroc`; strict: data sets of the mean, which is taken seed by seed.
    """
    pooled = table[table["dataset"].isin(strict)].groupby(["source", "seed", "score"], sort=False)[
        "auroc"
    ]
    # A seed that one of the sets lacks has no mean.
    whole = (
        pooled.mean()[pooled.count() == len(strict)]
        .reset_index()
        .assign(dataset=registry.ALL_GIVEN)
    )
    wide = pd.concat([table, whole]).pivot_table(
        index=["dataset", "source", "seed"], columns="score", values="auroc", sort=False
    )
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
