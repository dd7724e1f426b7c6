"""Agreement of sampled answers: self-consistency and semantic entropy."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ghosttrack.errors import UserError

# Columns of `measure`.
NAMES = ("self_consistency", "semantic_entropy")


def measure(samples: pd.DataFrame, ids: Sequence[str], where: str) -> pd.DataFrame:
    """Agreement of the sampled answers to each question, one row per example, columns `NAMES`.

    self_consistency: fraction of the sampled answers that equal the greedy answer (the plainest
    form of Manakul et al. 2023). semantic_entropy: discrete entropy in nats of the sampled answers
    (Farquhar et al. 2024). Two answers are equal if their normalised words are: they share a
    `cluster`, which does not depend on the gold answers.

    Args:
        samples: columns id, sample (0 = the greedy answer), cluster.
        ids: the examples, in the order of the result.
        where: the file that errors name.
    Returns:
        A table without columns if nothing was sampled.
    Raises:
        UserError: an example has no greedy answer, or fewer sampled answers than another.
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
            f"{where}: {missing[0]} has {total.get(missing[0], 0)} sampled answers beside its "
            f"greedy one, expected {total.max()} for every example: delete it and run again"
        )
    share = (counts["times"] / counts["id"].map(total)).to_numpy()
    same = (counts["cluster"] == counts["id"].map(greedy)).to_numpy()
    terms = counts.assign(self_consistency=share * same, semantic_entropy=-share * np.log(share))
    return terms.groupby("id")[list(NAMES)].sum().loc[list(ids)].reset_index(drop=True)
