"""Attribution of a logit difference to SAE features, and metrics of it that name no feature.

With x = sum_f z_f d_f + b + e (features, bias and error of the SAE) and g = dy/dx, the linearised
logit difference x.g is the sum of a_f = z_f (d_f . g) over the features, b.g and e.g. A feature with
a_f > 0 is in favour of the first candidate answer, one with a_f < 0 in favour of the second. The
direct attribution z_f (d_f . g') uses the gradient g' of the last block's output, so it leaves out
the blocks between (logit lens of a direction through the linearised final norm).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack.activations.logit_gradients import Gradients
from ghosttrack.sae import Sae

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Metrics of a layer, and what happens to each if the two candidates are exchanged: the value changes
# its sign (ODD), stays (EVEN), or is exchanged with its partner.
ODD, EVEN = "-", "="
LAYER_METRICS = {
    "sum": ODD,  # sum over features and prompt tokens
    "error": ODD,  # part of the SAE's error
    "for": "against",  # sum of the attributions in favour, all prompt tokens
    "against": "for",  # sum against, as a positive number
    "for_last": "against_last",  # the same at the last prompt token
    "against_last": "for_last",
    "share": ODD,  # (for - against) / (for + against)
    "share_last": ODD,
    "balance": ODD,  # (features in favour - features against) / active features
    "entropy": EVEN,  # of |a| over active features and tokens, in nats
    "top_ten": EVEN,  # share of the ten largest |a| in the sum of |a|
    "direct": ODD,  # direct attribution at the last prompt token, sum
    "direct_share": ODD,
}
# An activation with a norm above this many medians of its prompt is massive, as in the stores.
MASSIVE = 10.0


class Entries(NamedTuple):
    """Attributions of the active features of one layer, row by row.

    row, feature: (entries,); value: (entries,) a_f; direct: (entries,) direct attribution, 0 but at
    the last prompt tokens.
    """

    row: Ints
    feature: Ints
    value: Floats
    direct: Floats


class Parts(NamedTuple):
    """Parts of the linearised logit difference of each comparison in one layer, (comparisons,).

    The first three add up to `total`, the sum of x.g over the included rows.
    """

    features: Floats
    error: Floats
    bias: Floats
    total: Floats


def included_rows(gradients: Gradients) -> NDArray[np.bool_]:
    """Rows without a massive activation in any layer, (rows,)."""
    included = np.ones(len(gradients.text), dtype=bool)
    for x in gradients.activation:
        norm = torch.linalg.vector_norm(x, dim=1).numpy()
        median = np.array(
            [np.median(norm[gradients.text == index]) for index in range(len(gradients.numbers))]
        )
        included &= norm <= MASSIVE * median[gradients.text]
    return included


@torch.no_grad()
def attribute(
    sae: Sae, gradients: Gradients, position: int, included: NDArray[np.bool_]
) -> tuple[Entries, Parts]:
    """Attributions of one layer, `position` in the order of the layers, on the included rows."""
    x, g = gradients.activation[position], gradients.gradient[position]
    kept = torch.from_numpy(included.astype(np.float32))
    z = sae.encode(x) * kept[:, None]  # (rows, d_sae)
    row, feature = (axis.numpy() for axis in torch.nonzero(z, as_tuple=True))
    slopes = g @ sae.W_dec.T  # (rows, d_sae)
    code = z[row, feature].double().numpy()
    value = code * slopes[row, feature].double().numpy()
    direct = np.zeros(len(row))
    at_end = np.flatnonzero(np.isin(row, gradients.last))
    towards = (gradients.direct @ sae.W_dec.T).double().numpy()  # (comparisons, d_sae)
    direct[at_end] = code[at_end] * towards[gradients.text[row[at_end]], feature[at_end]]
    error = x.double() - sae.decode(z).double()
    count, weight = len(gradients.numbers), kept.double()

    def summed(vectors: torch.Tensor) -> Floats:
        products = ((vectors.double() * g.double()).sum(1) * weight).numpy()
        return total_of(products, gradients.text, count)

    parts = Parts(
        total_of(value, gradients.text[row], count),
        summed(error),
        summed(sae.b_dec.expand_as(x)),
        summed(x),
    )
    return Entries(row, feature, value, direct), parts


def permute_candidates(entries: Entries, gradients: Gradients, seed: Sequence[int]) -> Entries:
    """The null of permuted candidates: signs are permuted over the active features of a prompt.

    The size of each attribution stays, and so does the number of features in favour of each
    candidate. The draw of a prompt depends on its number and the seed alone.
    """
    value, direct = entries.value.copy(), entries.direct.copy()
    text = gradients.text[entries.row]
    for index, number in enumerate(gradients.numbers):
        members = np.flatnonzero(text == index)
        generator = np.random.default_rng([*seed, number])
        for column in (value, direct):
            chosen = members[column[members] != 0]
            column[chosen] = np.abs(column[chosen]) * generator.permutation(np.sign(column[chosen]))
    return entries._replace(value=value, direct=direct)


def layer_metrics(entries: Entries, parts: Parts, gradients: Gradients) -> dict[str, Floats]:
    """LAYER_METRICS of one layer, each (comparisons,), for the order first minus second."""
    text, count = gradients.text[entries.row], len(gradients.numbers)
    at_end = np.isin(entries.row, gradients.last)

    def summed(values: Floats) -> Floats:
        return total_of(values, text, count)

    positive, negative = np.maximum(entries.value, 0), np.maximum(-entries.value, 0)
    all_for, all_against = summed(positive), summed(negative)
    last_for, last_against = summed(positive * at_end), summed(negative * at_end)
    direct_size = summed(np.abs(entries.direct))
    size = np.abs(entries.value)
    order = np.lexsort((-size, text))
    starts = np.searchsorted(text[order], np.arange(count))
    rank = np.arange(len(order)) - starts[text[order]]
    share = size / np.maximum((all_for + all_against)[text], np.finfo(float).tiny)
    logs = np.log(np.where(share > 0, share, 1.0))
    return {
        "sum": summed(entries.value),
        "error": parts.error,
        "for": all_for,
        "against": all_against,
        "for_last": last_for,
        "against_last": last_against,
        "share": _ratio(all_for - all_against, all_for + all_against),
        "share_last": _ratio(last_for - last_against, last_for + last_against),
        "balance": _ratio(summed(np.sign(entries.value)), summed(np.ones(len(text)))),
        "entropy": -summed(share * logs),
        "top_ten": total_of(share[order] * (rank < 10), text[order], count),
        "direct": summed(entries.direct),
        "direct_share": _ratio(summed(entries.direct), direct_size),
    }


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(above / np.where(below > 0, below, 1.0), dtype=np.float64)


def total_of(values: NDArray[Any], index: Ints, count: int) -> Floats:
    """Sum of the values of each index, (count,)."""
    return np.asarray(np.bincount(index, values, count), dtype=np.float64)
