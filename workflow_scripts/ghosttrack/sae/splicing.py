"""What the model loses when a reconstruction takes the place of a layer's activations.

Small errors along directions that the model reads cost more than large ones elsewhere, so explained variance
alone does not say whether an autoencoder kept what matters. Here held-out contexts run through the whole model,
once as it is and once with the site's output replaced: by the reconstruction, by zeros, by the mean. What lies below
the layer is the same in all of them, and computed once. Names and formulas are those of SAEBench's core evaluation (arXiv 2503.09532) where it has one.

Excluded rows (position 0 and massive rows, see the store) keep their true activations in every pass, and what is
predicted at them is not counted: the autoencoder was neither trained nor measured on them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ghosttrack.activations.hooks import keeping, standing_in
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import mean_of

# With 2,048 tokens delta_ce_error is about .015 nats, and the KL divergence, which does not depend on what happened to come
# next, exact to a few percent.
TOKENS = 2048
# Ablations cost ten nats and more: so many tokens tell their mean to some percent, and a score of .98 to less than .001.
ABLATED = 512
# Rows of log-probabilities at once: what is made of them, 3 MB for 50,000 tokens, stays in the cache (256: four times slower).
ROWS = 16

Replacement = Callable[[Tensor], Tensor]


class Spliced(NamedTuple):
    """Next-token loss of the model, and divergence from its own predictions, in nats: means over the counted predictions."""

    ce_loss_without_sae: float
    ce_loss_with_sae: float
    ce_loss_with_ablation: float  # zeros instead of the activations
    ce_loss_with_mean_ablation: float  # the mean of the kept held-out rows instead
    ce_loss_score: float  # share of what zeros cost that the reconstruction saves
    ce_loss_score_mean_ablation: float  # share of what the mean costs
    delta_ce: float  # with minus without
    delta_ce_error: float  # its standard error over predictions, taken as independent
    kl_div_with_sae: float  # KL(model as it is || spliced model)
    kl_div_with_ablation: float
    kl_div_score: float
    spliced_rows: int  # predictions counted
    ablated_rows: int  # of these, those that ablations were measured on


@torch.inference_mode()
def splice(
    model: Any,
    sae: Sae,
    store: ActivationStore,
    tokens: npt.NDArray[np.int32],
    batch: int,
    limits: Limits,
) -> Spliced:
    """Losses with and without the autoencoder on about `TOKENS` tokens, in contexts spread evenly over all.

    Args:
        model: causal language model in evaluation mode, the one whose activations the store holds.
        sae: the autoencoder of the store's layer and site.
        store: held-out activations; gives layer, site, excluded rows and the mean.
        tokens: (contexts, context) int32, what the store's rows were computed from.
        batch: contexts per forward pass; changes nothing but memory and rounding noise.
        limits: which fast ways of reading are exact for the model.
    Raises:
        UserError: when no prediction can be counted.
    """
    assert store.layer is not None
    (module,) = site_modules(model, [store.layer], cast("Site", store.site))
    below = models.blocks(model)[: store.layer] if limits.skipped else []
    mean = mean_of(store).to(torch.float32)
    replacements: dict[str, Replacement] = {
        "sae": lambda x: sae.decode(sae.encode(x)),
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
    }
    chosen = spread(*tokens.shape)
    kept = ~store.excluded.reshape(tokens.shape)
    counted = kept.copy()
    counted[:, -1] = False  # what follows the last token is not known
    if not counted[chosen].any():
        raise UserError(
            f"no row of the {len(chosen)} held-out contexts can be spliced: all are excluded or last; "
            "raise corpus.context or corpus.heldout_tokens"
        )
    usable = chosen[counted[chosen].any(axis=1)]
    ablated = usable[spread(len(usable), tokens.shape[1], ABLATED)]
    parts = ((ablated, list(replacements)), (np.setdiff1d(chosen, ablated), ["sae"]))
    found: dict[str, list[Tensor]] = {name: [] for name in ("none", *replacements)}
    size = batch if limits.batched else 1
    progress = Progress("splicing", len(chosen) * tokens.shape[1], "tokens")
    for numbers, names in (
        (part[at : at + size], names) for part, names in parts for at in range(0, len(part), size)
    ):
        ids = torch.from_numpy(tokens[numbers].astype(np.int64)).to(model.device)
        inside = torch.from_numpy(kept[numbers]).flatten().to(model.device)
        wanted = torch.from_numpy(counted[numbers]).flatten()
        targets = ids.roll(-1, dims=1).flatten()  # the last of each context is not counted
        with keeping(below) as kept_outputs:
            reference = _logits(model, ids)
        found["none"].append(losses(reference, reference, targets)[:, wanted])
        for name in names:
            with standing_in(below, kept_outputs), replaced(module, inside, replacements[name]):
                logits = _logits(model, ids)
            found[name].append(losses(reference, logits, targets)[:, wanted])
        progress.advance(ids.numel())
    return scores(*(torch.cat(found[name], dim=1) for name in ("none", *replacements)))


def spread(contexts: int, context: int, at_most: int = TOKENS) -> npt.NDArray[np.int64]:
    """Numbers of evenly spread contexts that hold about `at_most` tokens: at least one, ascending."""
    count = min(contexts, max(1, round(at_most / context)))
    return np.linspace(0, contexts - 1, count).round().astype(np.int64)


@contextmanager
def replaced(module: nn.Module, kept: Tensor, replacement: Replacement) -> Iterator[None]:
    """Within, the module's main output is replaced in the rows that `kept` marks.

    Args:
        module: its output, or the first of its outputs, is (batch, position, d_model).
        kept: (batch x position,) bool on the module's device; other rows stay as they are.
        replacement: (rows, d_model) on the CPU -> the same shape.
    """

    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        true = models.first_tensor(output)
        rows = true.flatten(0, -2).clone()
        rows[kept] = replacement(rows[kept].cpu()).to(rows.device)
        return models.with_first_tensor(output, rows.reshape(true.shape))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def losses(reference: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, and KL divergence of the prediction from the reference's, of every row: (2, rows) float64, in nats.

    Args:
        reference: (rows, vocabulary), logits of the model as it is.
        logits: (rows, vocabulary).
        targets: (rows,), the token that came next.
    """
    found = []
    for known, part, target in zip(
        *(torch.split(each, ROWS) for each in (reference, logits, targets)), strict=True
    ):
        true, predicted = known.log_softmax(1), part.log_softmax(1)
        entropy = -predicted.gather(1, target.unsqueeze(1)).squeeze(1)
        found.append(
            torch.stack([entropy, (true.exp() * (true - predicted)).sum(1)]).cpu().to(torch.float64)
        )
    return torch.cat(found, dim=1)


def scores(none: Tensor, sae: Tensor, zero: Tensor, mean: Tensor) -> Spliced:
    """From the losses of the passes, each (2, predictions): cross-entropy and KL; ablations of the first predictions only.

    An ablation's loss is what it adds on its own predictions, on top of the model's loss on all.
    """
    (ce, _), (ce_sae, kl_sae) = (each.mean(1).tolist() for each in (none, sae))
    ablated = zero.shape[1]
    (ce_zero, kl_zero), (ce_mean, _) = (each.mean(1).tolist() for each in (zero, mean))
    harder = ce - float(none[0, :ablated].mean())
    ce_zero, ce_mean = ce_zero + harder, ce_mean + harder
    cost, predictions = sae[0] - none[0], none.shape[1]
    return Spliced(
        ce_loss_without_sae=ce,
        ce_loss_with_sae=ce_sae,
        ce_loss_with_ablation=ce_zero,
        ce_loss_with_mean_ablation=ce_mean,
        ce_loss_score=_saved(ce, ce_sae, ce_zero),
        ce_loss_score_mean_ablation=_saved(ce, ce_sae, ce_mean),
        delta_ce=ce_sae - ce,
        delta_ce_error=float(cost.std(correction=0)) / predictions**0.5,
        kl_div_with_sae=kl_sae,
        kl_div_with_ablation=kl_zero,
        kl_div_score=_saved(0.0, kl_sae, kl_zero),
        spliced_rows=predictions,
        ablated_rows=ablated,
    )


def _saved(without: float, with_sae: float, ablated: float) -> float:
    """Share of the ablation's cost that the reconstruction saves; 0 where the ablation costs nothing at all."""
    return (ablated - with_sae) / (ablated - without) if ablated != without else 0.0


def _logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of every position, (batch x position, vocabulary) float32."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, 1).float()
