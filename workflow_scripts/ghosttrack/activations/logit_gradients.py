"""Gradients of the logit difference of two candidate answers, at the analysed layers.

For a prompt and two candidate answers, y = logit(a) - logit(b) at the last token of the prompt,
where a and b are the first tokens in which the answers differ. Tokens with which both answers begin
count as part of the prompt. One backward pass of a sequence of packed prompts gives dy/dx for the
activation x of every layer and prompt token. Exchanging the answers changes only the sign, so texts
with the same prompt and the same pair of answers share a pass. No answer token is read.

The model is not changed. Its parameters need no gradients: the graph begins at the lowest analysed
layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from ghosttrack.activations.candidates import final_norm
from ghosttrack.activations.example_tokens import SHARED_TOKENS, Encoded, encode
from ghosttrack.activations.packed_texts import Pack, PackedReader, head_rows, logits_of
from ghosttrack.errors import UserError
from ghosttrack.inputs import chat, models
from ghosttrack.inputs.sites import Site, site_modules

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Comparison(NamedTuple):
    """A prompt and the first tokens of two candidate answers, `first` < `second`.

    `prompt.ids` ends with the last prompt token, and `prompt.read` holds the positions of the
    text's own prompt tokens (in a chat template: of all tokens after the first).
    """

    prompt: Encoded
    first: int
    second: int


class Comparisons(NamedTuple):
    """The comparisons of a data set.

    distinct: the comparisons; number: (texts,) comparison of each text, -1: none; sign: (texts,) 1
    where the stated answer begins with `first`, -1 where it begins with `second`, 0: no comparison.
    """

    distinct: list[Comparison]
    number: Ints
    sign: Ints


class Gradients(NamedTuple):
    """Activations x and gradients dy/dx of some comparisons; rows are own prompt tokens.

    numbers: indices of the comparisons.
    text: (rows,) index of each row's comparison in `numbers`.
    last: (comparisons,) row of each last prompt token.
    difference: (comparisons,) y = logit(first) - logit(second).
    activation, gradient: by layer, (rows, d_model).
    direct: (comparisons, d_model) dy/dx of the last block's output at the last prompt token: the
        linearised final norm, times the difference of the two unembedding rows.
    lens: (layers, comparisons) the logit difference if the activation at the last prompt token were
        the last block's output (logit lens, nostalgebraist 2020); NaN without a final norm module.
    """

    numbers: list[int]
    text: Ints
    last: Ints
    difference: Floats
    activation: list[Tensor]
    gradient: list[Tensor]
    direct: Tensor
    lens: Floats


def comparisons(examples: pd.DataFrame, tokenizer: Any, limit: int, dataset: str) -> Comparisons:
    """Compare the stated answer of each text with its other candidate answer.

    A text has no comparison if its column `other` is empty, or if the tokens of one text are the
    beginning of the other's, so that no token differs.

    Args:
        examples: rows of examples.parquet, with the column `other`.
        tokenizer, limit, dataset: as for `example_tokens.encode`.
    Raises:
        UserError: the other candidate is the stated answer.
    """
    rows = np.flatnonzero((examples["other"] != "").to_numpy())
    number, sign = np.full(len(examples), -1, np.int64), np.zeros(len(examples), np.int64)
    if not len(rows):
        return Comparisons([], number, sign)
    stated = examples.iloc[rows].reset_index(drop=True)
    for name, answer, other in zip(stated["id"], stated["answer"], stated["other"], strict=True):
        if str(answer).strip() == str(other).strip():
            raise UserError(
                f"data set {dataset}, id {name}: the other candidate answer {other!r} is the "
                "stated answer; give a different one, or leave it empty"
            )
    exchanged = stated.assign(
        text=[
            text[:start] + other + text[end:]
            for text, start, end, other in zip(
                stated["text"],
                stated["answer_start"],
                stated["answer_end"],
                stated["other"],
                strict=True,
            )
        ],
        answer=stated["other"],
        answer_end=stated["answer_start"] + stated["other"].str.len(),
    )
    both = pd.concat([stated, exchanged], ignore_index=True)
    encoded = encode(both, tokenizer, limit, dataset, share=False)
    whole = chat.is_asked(examples)
    known: dict[tuple[bytes, int, int], int] = {}
    distinct: list[Comparison] = []
    for row, ours, theirs in zip(rows, encoded, encoded[len(rows) :], strict=False):
        shorter = min(len(ours.ids), len(theirs.ids))
        differing = np.flatnonzero(ours.ids[:shorter] != theirs.ids[:shorter])
        if not len(differing):
            continue
        at = int(differing[0])
        a, b = int(ours.ids[at]), int(theirs.ids[at])
        key = (ours.ids[:at].tobytes(), min(a, b), max(a, b))
        if key not in known:
            known[key] = len(distinct)
            lead = 1 if whole else ours.lead
            distinct.append(Comparison(_prompt(ours.ids[:at], lead), *key[1:]))
        number[row], sign[row] = known[key], 1 if a < b else -1
    return Comparisons(distinct, number, sign)


def _prompt(ids: Ints, lead: int) -> Encoded:
    """A prompt as a text of its own; `lead`: tokens that are not its own.

    All of it counts as the answer, and answers are not shared: at the tokens that two prompts share
    in a pack, the gradients of both comparisons would add up.
    """
    lead = min(lead, len(ids) - 1)
    shared = lead if lead >= SHARED_TOKENS else 0
    rest = ids[shared:]
    own = np.arange(lead - shared, len(rest))
    return Encoded(rest, np.arange(len(rest)), own, ids[:shared], lead)


def read(
    model: Any,
    compared: Sequence[Comparison],
    layers: Sequence[int],
    site: Site,
    *,
    batch: int,
    packed: int,
) -> Iterator[Gradients]:
    """Gradients of all comparisons, a packed sequence at a time. The cost is linear in them.

    Args:
        model: causal language model in evaluation mode, without gradients.
        layers: ascending, 0-based.
        batch: prompts per pass, approximately; changes only memory and rounding noise.
        packed: longest packed sequence, from `Limits`.
    """
    reader = PackedReader(model, packed, share_answers=False)
    prompts = [one.prompt for one in compared]
    modules = [*site_modules(model, layers, site), models.blocks(model)[-1]]
    norm = final_norm(model, prompts[0]) if site == "resid_post" and prompts else None
    for pack in reader.packs(prompts, range(len(prompts)), batch):
        with torch.no_grad():
            reader.cache_prefix(pack)
        yield _pass(model, reader, pack, compared, modules, norm)


def _pass(
    model: Any,
    reader: PackedReader,
    pack: Pack,
    compared: Sequence[Comparison],
    modules: Sequence[nn.Module],
    norm: nn.Module | None,
) -> Gradients:
    chosen = [compared[number] for number in pack.numbers]
    sizes = [len(one.prompt.read) for one in chosen]
    places = np.concatenate(
        [place[one.prompt.read] for place, one in zip(pack.places, chosen, strict=True)]
    )
    ends = torch.tensor([int(place[-1]) for place in pack.places])
    with torch.enable_grad(), _leaves(modules) as taken:
        final = reader.final(pack)
        logits = _logits(model, final[ends.to(final.device)], chosen)
        gradients = torch.autograd.grad(logits.sum(), taken)
    rows = torch.from_numpy(places)
    activation = [tensor.detach()[0, rows].float().cpu() for tensor in taken[:-1]]
    text, last = np.repeat(np.arange(len(chosen)), sizes), np.cumsum(sizes) - 1
    lens = np.full((len(activation), len(chosen)), np.nan)
    if norm is not None:
        with torch.no_grad():
            for index, tensor in enumerate(taken[:-1]):
                states = norm(tensor.detach()[0, ends.to(tensor.device)])
                lens[index] = _logits(model, states, chosen).double().cpu().numpy()
    return Gradients(
        list(pack.numbers),
        text,
        last,
        logits.detach().double().cpu().numpy(),
        activation,
        [gradient[0, rows].float().cpu() for gradient in gradients[:-1]],
        gradients[-1][0, ends].float().cpu(),
        lens,
    )


def _logits(model: Any, hidden: Tensor, chosen: Sequence[Comparison]) -> Tensor:
    """Logit differences (comparisons,) of final hidden states (comparisons, d)."""
    pairs = torch.tensor([[one.first, one.second] for one in chosen], device=hidden.device)
    parts, block = [], head_rows(model)
    for rows, tokens in zip(torch.split(hidden, block), torch.split(pairs, block), strict=True):
        both = logits_of(model, rows).gather(1, tokens)
        parts.append(both[:, 0] - both[:, 1])
    return torch.cat(parts)


@contextmanager
def _leaves(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Outputs of the modules, (1, position, d_model), as nodes of one graph.

    The first is a leaf, so nothing below it is differentiated. The model goes on with copies,
    because some blocks add to a module's output in place.
    """
    taken: list[Tensor] = [torch.empty(0)] * len(modules)

    def hook(index: int) -> Any:
        def give(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            tensor = models.first_tensor(output)
            taken[index] = tensor.detach().clone().requires_grad_(True) if index == 0 else tensor
            return models.with_first_tensor(output, taken[index].clone())

        return give

    # The last block may be an analysed layer too: its first hook replaces what the second one takes.
    handles = [module.register_forward_hook(hook(index)) for index, module in enumerate(modules)]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
