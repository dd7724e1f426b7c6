"""Loss recovered: the model's loss in a forward pass with the SAE spliced in.

Small errors in directions that the model reads cost more than large errors in others, so explained
variance alone does not say whether an autoencoder is faithful. Held-out contexts run through the
whole model, once unchanged and once with each replacement of the site's output: the reconstruction,
zeros, and the mean. The blocks below the layer give the same output in all passes and are computed
once. Names and formulas are those of SAEBench's core evaluation (arXiv 2503.09532) where it has
one.

Excluded rows (position 0 and massive activations) keep their activations in every pass, and the
predictions at them are not counted: the autoencoder was neither trained nor measured on them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ghosttrack.activations.hooks import forward_replaced, last_output
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.packed_texts import head_rows, logits_of
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import mean_of

# With 2,048 tokens delta_ce_error is about .015 nats. The error of the KL divergence, which does
# not depend on the actual next token, is a few percent.
TOKENS = 2048
# Ablations cost ten nats and more: 512 tokens give their mean to a few percent, and a score of .98
# to less than .001.
ABLATED_TOKENS = 512
# Rows of log-probabilities per chunk: 3 MB for 50,000 tokens stay in the cache. 256 rows are four
# times slower.
ROWS = 16

Replacement = Callable[[Tensor], Tensor]


class Spliced(NamedTuple):
    """Next-token loss, and divergence from the model's own predictions.

    Means over the counted predictions, in nats.
    """

    ce_loss_without_sae: float
    ce_loss_with_sae: float
    ce_loss_with_ablation: float  # zeros instead of the activations
    ce_loss_with_mean_ablation: float  # the mean of the included held-out rows instead
    ce_loss_score: float  # fraction of the cost of zeros that the SAE recovers
    ce_loss_score_mean_ablation: float  # the same for the cost of the mean
    delta_ce: float  # with minus without SAE
    delta_ce_error: float  # standard error of delta_ce, predictions taken as independent
    kl_div_with_sae: float  # KL(model || spliced model)
    kl_div_with_ablation: float
    kl_div_score: float
    spliced_rows: int  # predictions counted
    ablated_rows: int  # predictions with ablations, among them


@torch.inference_mode()
def splice(
    model: Any,
    sae: Sae,
    store: ActivationStore,
    tokens: npt.NDArray[np.int32],
    batch: int,
    limits: Limits,
) -> Spliced:
    """Losses with and without the autoencoder on about `TOKENS` tokens in evenly spread contexts.

    Args:
        model: causal language model in evaluation mode; the store holds its activations.
        sae: autoencoder of the store's layer and site.
        store: held-out activations; gives layer, site, excluded rows and the mean.
        tokens: (contexts, context) int32, the tokens of the store's rows.
        batch: contexts per forward pass; changes memory and rounding only.
        limits: which optimisations of the forward pass are exact for the model.
    Raises:
        UserError: no prediction can be counted.
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
    chosen = evenly_spread(*tokens.shape)
    included = ~store.excluded.reshape(tokens.shape)
    counted = included.copy()
    counted[:, -1] = False  # the token after the last one is unknown
    if not counted[chosen].any():
        raise UserError(
            f"no row of the {len(chosen)} held-out contexts can be spliced: all rows are excluded "
            "or the last of their context; raise corpus.context or corpus.heldout_tokens"
        )
    usable = chosen[counted[chosen].any(axis=1)]
    ablated = usable[evenly_spread(len(usable), tokens.shape[1], ABLATED_TOKENS)]
    parts = ((ablated, list(replacements)), (np.setdiff1d(chosen, ablated), ["sae"]))
    results: dict[str, list[Tensor]] = {name: [] for name in ("none", *replacements)}
    size = batch if limits.batched else 1
    progress = Progress("splicing", len(chosen) * tokens.shape[1], "tokens")
    for numbers, names in (
        (part[at : at + size], names) for part, names in parts for at in range(0, len(part), size)
    ):
        ids = torch.from_numpy(tokens[numbers].astype(np.int64)).to(model.device)
        inside = torch.from_numpy(included[numbers]).flatten().to(model.device)
        rows = torch.from_numpy(counted[numbers]).flatten().to(model.device)
        targets = ids.roll(-1, dims=1).flatten()[rows]  # the last of a context is not counted
        with last_output(below) as last:
            finals = [_final(model, ids, rows)]
        for name in names:
            with (
                forward_replaced(below, lambda: last[0]),
                replaced(module, inside, replacements[name]),
            ):
                finals.append(_final(model, ids, rows))
        for name, values in zip(("none", *names), losses(model, finals, targets), strict=True):
            results[name].append(values)
        progress.advance(ids.numel())
    return scores(*(torch.cat(results[name], dim=1) for name in ("none", *replacements)))


def evenly_spread(contexts: int, context: int, at_most: int = TOKENS) -> npt.NDArray[np.int64]:
    """Ascending indices of evenly spread contexts with about `at_most` tokens; at least one."""
    count = min(contexts, max(1, round(at_most / context)))
    return np.linspace(0, contexts - 1, count).round().astype(np.int64)


@contextmanager
def replaced(module: nn.Module, included: Tensor, replacement: Replacement) -> Iterator[None]:
    """Inside the block, replace the module's main output in the rows that `included` marks.

    Args:
        module: its output, or the first of its outputs, is (batch, position, d_model).
        included: (batch x position,) bool; other rows do not change.
        replacement: (rows, d_model) float32 on the CPU -> the same shape.
    """

    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        original = models.first_tensor(output)
        rows = original.flatten(0, -2).clone()
        chosen = included.to(rows.device)
        rows[chosen] = replacement(rows[chosen].float().cpu()).to(rows)
        return models.with_first_tensor(output, rows.reshape(original.shape))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def losses(model: Any, finals: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
    """Cross-entropy, and KL(unchanged model || prediction), of every row, in nats.

    Logits are computed in blocks, so that memory does not grow with rows times vocabulary.

    Args:
        finals: of the unchanged model and of other passes, each (rows, d_model) final hidden states.
        targets: (rows,), the next tokens.
    Returns:
        For each of `finals`, (2, rows) float64.
    """
    parts: list[list[Tensor]] = [[] for _ in finals]
    step = head_rows(model)
    for at in range(0, len(targets), step):
        blocks = [logits_of(model, final[at : at + step]) for final in finals]
        target = targets[at : at + step].to(blocks[0].device)
        for row in range(0, len(target), ROWS):
            expected = blocks[0][row : row + ROWS].log_softmax(1)
            probability = expected.exp()
            for index, (block, found) in enumerate(zip(blocks, parts, strict=True)):
                predicted = block[row : row + ROWS].log_softmax(1) if index else expected
                ce = -predicted.gather(1, target[row : row + ROWS].unsqueeze(1)).squeeze(1)
                kl = (
                    (probability * (expected - predicted)).sum(1) if index else torch.zeros_like(ce)
                )
                found.append(torch.stack([ce, kl]).cpu().to(torch.float64))
    return [torch.cat(found, dim=1) for found in parts]


def scores(none: Tensor, sae: Tensor, zero: Tensor, mean: Tensor) -> Spliced:
    """Metrics from the losses of the passes, each (2, predictions) with cross-entropy and KL.

    Ablations have the first predictions only. The loss with an ablation is the model's loss on all
    predictions, plus the increase on the ablation's predictions.
    """
    (ce, _), (ce_sae, kl_sae) = (part.mean(1).tolist() for part in (none, sae))
    ablated = zero.shape[1]
    (ce_zero, kl_zero), (ce_mean, _) = (part.mean(1).tolist() for part in (zero, mean))
    offset = ce - float(none[0, :ablated].mean())
    ce_zero, ce_mean = ce_zero + offset, ce_mean + offset
    cost, predictions = sae[0] - none[0], none.shape[1]
    return Spliced(
        ce_loss_without_sae=ce,
        ce_loss_with_sae=ce_sae,
        ce_loss_with_ablation=ce_zero,
        ce_loss_with_mean_ablation=ce_mean,
        ce_loss_score=_recovered(ce, ce_sae, ce_zero),
        ce_loss_score_mean_ablation=_recovered(ce, ce_sae, ce_mean),
        delta_ce=ce_sae - ce,
        delta_ce_error=float(cost.std(correction=0)) / predictions**0.5,
        kl_div_with_sae=kl_sae,
        kl_div_with_ablation=kl_zero,
        kl_div_score=_recovered(0.0, kl_sae, kl_zero),
        spliced_rows=predictions,
        ablated_rows=ablated,
    )


def _recovered(without: float, with_sae: float, ablated: float) -> float:
    """Fraction of the ablation's cost that the SAE recovers; 0 if the ablation has no cost."""
    return (ablated - with_sae) / (ablated - without) if ablated != without else 0.0


def _final(model: Any, ids: Tensor, rows: Tensor) -> Tensor:
    """Final hidden states of the positions that `rows` marks, (rows, d_model)."""
    final: Tensor = models.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return final.flatten(0, 1)[rows.to(final.device)]
