"""Quality of autoencoders on answer tokens, where the detectors read them."""

from collections.abc import Mapping
from typing import Any

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.quality import Tally
from ghosttrack.sae.rows import blocks, mean_of

# Name of the row over the answer tokens of all data sets, with the same weight for each token.
ALL = "all_answers"


@torch.no_grad()
def measure_answers(
    sae: Sae, layer: int, stores: Mapping[str, ActivationStore]
) -> list[dict[str, Any]]:
    """One row per data set, and one over all of them; docs/reference/outputs.md describes the columns.

    Massive activations are excluded and counted. The FVU is relative to the mean of the rows of the
    data set. Answers of one kind are more alike than running text, so it is higher than relative to
    the mean of all answers.

    Args:
        sae: autoencoder of the layer.
        layer: 0-based.
        stores: activations of the layer on answer tokens, by data set.
    Raises:
        UserError: a store has another width, or all of its rows are excluded.
    """
    included = {name: int((~store.excluded).sum()) for name, store in stores.items()}
    massive = {name: int(store.excluded.sum()) for name, store in stores.items()}
    for name, store in stores.items():
        if store.d_model != sae.d_model or not included[name]:
            raise UserError(
                f"{name}: layer {layer} has {included[name]} included of {store.rows} answer "
                f"tokens, with {store.d_model} dimensions; expected at least one, with "
                f"{sae.d_model} dimensions: delete the data set's folder in examples/ and run again"
            )
    means = {name: mean_of(store) for name, store in stores.items()}  # (d_model,) each
    weighted = torch.stack([included[name] * mean for name, mean in means.items()])
    overall, rows = Tally(weighted.sum(0) / sum(included.values()), sae.d_sae), []
    for name, store in stores.items():
        tally = Tally(means[name], sae.d_sae)
        for x in blocks(store):
            code = sae.encode(x)  # (rows, d_sae)
            xhat = sae.decode(code)
            tally.add(x, code, xhat)
            overall.add(x, code, xhat)
        rows.append(_row(name, layer, tally, massive[name]))
    return [*rows, _row(ALL, layer, overall, sum(massive.values()))]


def _row(dataset: str, layer: int, tally: Tally, massive: int) -> dict[str, Any]:
    reconstruction, sparsity = tally.result()
    return {
        "dataset": dataset,
        "layer": layer,
        "tokens": tally.rows,
        "massive_tokens": massive,
        **{key: getattr(sparsity, key) for key in ("l0", "l0_p5", "l0_p50", "l0_p95")},
        **{
            key: getattr(reconstruction, key)
            for key in ("fvu", "fvu_token_median", "explained_variance", "cossim", "l2_ratio")
        },
    }
