"""Tables of a sweep: the arms' quality on held-out text, and the features that arms share."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import pandas as pd

from ghosttrack.sae.model import Sae
from ghosttrack.sae.quality import pca_fvu, tally
from ghosttrack.sae.rows import Rows, mean_of
from ghosttrack.sae.stability import Stability, compare
from ghosttrack.sae.sweep import SweepArm


class SweepTables(NamedTuple):
    """Columns are described in docs/reference/outputs.md."""

    arms: pd.DataFrame  # one row per arm
    stability: pd.DataFrame  # one row per pair of seeds with the same k


def tabulate(trained: Mapping[SweepArm, Sae], text: Rows, layer: int, seed: int) -> SweepTables:
    """Measure every arm on the included rows of `text`, and match the features that fire there.

    Args:
        trained: the arms' autoencoders.
        text: held-out activations of the layer.
        layer: 0-based, for the tables.
        seed: of the permutation behind `chance_median`.
    """
    mean = mean_of(text)
    baselines = {k: pca_fvu(text, mean, k) for k in dict.fromkeys(arm.k for arm in trained)}
    rows, firing = [], {}
    for arm, sae in trained.items():
        counts = tally(sae, text, mean)
        reconstruction, sparsity = counts.result()
        rows.append(
            {
                "layer": layer,
                **arm._asdict(),
                **reconstruction._asdict(),
                **sparsity._asdict(),
                "pca_fvu": baselines[arm.k],
                "rows": counts.rows,
                "training_tokens": sae.metadata["training_tokens"],
            }
        )
        firing[arm] = sae.W_dec[counts.fired > 0]  # (features that fire, d_model)
    pairs = [
        {
            "layer": layer,
            "k": one.k,
            "seed": one.seed,
            "other_seed": other.seed,
            **compare(firing[one], firing[other], seed)._asdict(),
        }
        for one, other in combinations(trained, 2)
        if one.k == other.k
    ]
    names = ["layer", "k", "seed", "other_seed", *Stability._fields]
    return SweepTables(pd.DataFrame(rows), pd.DataFrame(pairs, columns=names))
