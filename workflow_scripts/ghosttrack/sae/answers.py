"""What autoencoders are worth on answer tokens, where the detectors read them, and not only on the text they were trained on."""

from collections.abc import Mapping
from typing import Any

import torch

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.quality import Tally
from ghosttrack.sae.rows import blocks, mean_of

# The answer tokens of all data sets together, each token counted once.
ALL = "all_answers"


@torch.no_grad()
def measure_answers(
    sae: Sae, layer: int, stores: Mapping[str, ActivationStore]
) -> list[dict[str, Any]]:
    """One row per data set, and one over all of them: see docs/reference/outputs.md for the columns.

    Massive rows are left out and counted. FVU is about the mean of the rows at hand: answers of one kind lie closer
    together than running text, so it comes out higher than about the mean of all answers.

    Args:
        sae: of the layer.
        layer: 0-based.
        stores: answer-token activations of the layer, by data set.
    Raises:
        UserError: a store of another width, or of which no row is kept.
    """
    for name, store in stores.items():
        if store.d_model != sae.d_model or bool(store.excluded.all()):
            raise UserError(
                f"{name}: {int((~store.excluded).sum())} of {store.rows} answer tokens of layer {layer} can be measured, of width "
                f"{store.d_model}, expected some of width {sae.d_model}: delete the data set's folder in examples/ and run again"
            )
    means = {name: mean_of(store) for name, store in stores.items()}  # (d_model,) each
    kept = {name: int((~store.excluded).sum()) for name, store in stores.items()}
    middle = torch.stack([kept[name] * mean for name, mean in means.items()]).sum(0) / sum(
        kept.values()
    )
    together, rows = Tally(middle, sae.d_sae), []
    for name, store in stores.items():
        alone = Tally(means[name], sae.d_sae)
        for x in blocks(store):
            code = sae.encode(x)  # (rows, d_sae)
            xhat = sae.decode(code)
            alone.add(x, code, xhat)
            together.add(x, code, xhat)
        rows.append(_row(name, layer, alone, int(store.excluded.sum())))
    return [
        *rows,
        _row(ALL, layer, together, sum(int(store.excluded.sum()) for store in stores.values())),
    ]


def _row(dataset: str, layer: int, found: Tally, massive: int) -> dict[str, Any]:
    reconstruction, sparsity = found.result()
    return {
        "dataset": dataset,
        "layer": layer,
        "tokens": found.rows,
        "massive_tokens": massive,
        **{key: getattr(sparsity, key) for key in ("l0", "l0_p5", "l0_p50", "l0_p95")},
        **{
            key: getattr(reconstruction, key)
            for key in ("fvu", "fvu_token_median", "explained_variance", "cossim", "l2_ratio")
        },
    }
