"""How far drawn answers agree with each other: self-consistency and semantic entropy of generated answers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ghosttrack.errors import UserError

# Columns that `measure` gives, for outputs.parquet's readers.
NAMES = ("self_consistency", "semantic_entropy")


def measure(samples: pd.DataFrame, ids: Sequence[str], where: str) -> pd.DataFrame:
    """Agreement of the answers drawn to each question, one row per example, columns `NAMES`; none if nothing was drawn.

    self_consistency: share of drawn answers that say what the greedy one says (Manakul et al. 2023 in its plainest form).
    semantic_entropy: entropy in nats of the shares of different answers among the drawn ones (Farquhar et al. 2024,
    discrete). Answers are the same when their normalised words are: `cluster`, which knows no gold answer.

    Args:
        samples: columns id, sample (0 = the greedy answer), cluster; where: file named in errors.
    Raises:
        UserError: an example without a greedy answer, or with fewer drawn ones than another.
    """
    greedy = samples[samples["sample"] == 0].set_index("id")["cluster"]
    drawn = samples[samples["sample"] > 0]
    if drawn.empty:
        return pd.DataFrame(index=range(len(ids)))
    counts = drawn.groupby("id")["cluster"].value_counts().rename("times").reset_index()
    total = counts.groupby("id")["times"].sum()
    missing = [
        name for name in ids if name not in greedy.index or total.get(name, 0) != total.max()
    ]
    if missing:
        raise UserError(
            f"{where}: {missing[0]} has {total.get(missing[0], 0)} drawn answers beside its greedy one, expected "
            f"{total.max()} for every example: delete it and run again"
        )
    share = (counts["times"] / counts["id"].map(total)).to_numpy()
    same = (counts["cluster"] == counts["id"].map(greedy)).to_numpy()
    found = counts.assign(self_consistency=share * same, semantic_entropy=-share * np.log(share))
    return found.groupby("id")[list(NAMES)].sum().loc[list(ids)].reset_index(drop=True)
