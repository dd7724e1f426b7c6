"""Texts that begin alike, read together: in one sequence a prompt stands once, and the rest of each text sees its own prompt alone.

What all texts of a relation begin with is read before, once, and kept as keys and values. A model reads texts together only as
far as `model_check` has found it exact; other texts are read one at a time, by the plain model.
"""

import copy
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.inputs import models

log = logging.getLogger("ghosttrack")

# Tokens of a sequence for each text of `batch`. Attention to other texts is computed and thrown away, so that long sequences
# cost more: a tenth at 256 tokens on a model of 576 channels; short ones use a processor badly.
TOKENS = 8
# Positions whose logits are held at once: 256 x 50,000 x 4 bytes are 51 MB, and a few copies.
HEAD_ROWS = 256

Numbers = npt.NDArray[np.int64]


class Pack(NamedTuple):
    """Texts of one beginning, laid out in one sequence.

    before: what all of them begin with, read already.
    numbers: (texts,) which they are; places: of each text, where its tokens stand in the sequence, (tokens,).
    ids: (length,) the sequence; position: (length,) of each token in its own text, behind `before`.
    seen: (length, length) bool, whether a token (row) sees another (column); None: one text, which the plain model reads.
    """

    before: Numbers
    numbers: list[int]
    places: list[Numbers]
    ids: Numbers
    position: Numbers
    seen: npt.NDArray[np.bool_] | None


class Opinions(NamedTuple):
    """Of each predicted token, in nats: what the model's prediction one position earlier says of it."""

    logprob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]


def packs(
    encoded: Sequence[Encoded], numbers: Iterable[int], batch: int, longest: int = sys.maxsize
) -> Iterator[Pack]:
    """Lay out the texts in sequences of about `TOKENS` x batch tokens; each starts with prompts of its own.

    A prompt is what stands before a text's answer. Texts that share one keep together; a prompt whose texts do not fit is
    repeated, and a sequence that begins with a long prompt may be twice as long as it.

    Args:
        longest: tokens of a sequence and what stands before it, at most; no text alone has more.
    """
    grouped: dict[bytes, dict[bytes, list[int]]] = {}
    for number in numbers:
        one = encoded[number]
        grouped.setdefault(one.before.tobytes(), {}).setdefault(
            one.ids[: one.answer[0]].tobytes(), []
        ).append(number)
    for prompts in grouped.values():
        room = longest - len(encoded[next(iter(prompts.values()))[0]].before)
        stems: list[list[int]] = []
        size = limit = 0
        for texts in prompts.values():
            head = int(encoded[texts[0]].answer[0])
            fresh = True
            for number in texts:
                cost = len(encoded[number].ids) - head
                if stems and size + cost + head * fresh > limit:
                    yield _laid_out(encoded, stems)
                    stems, size, fresh = [], 0, True
                if not stems:
                    limit = min(max(TOKENS * batch, 2 * head), room)
                if fresh:
                    stems.append([])
                stems[-1].append(number)
                size += cost + head * fresh
                fresh = False
        if stems:
            yield _laid_out(encoded, stems)


def _laid_out(encoded: Sequence[Encoded], stems: Sequence[Sequence[int]]) -> Pack:
    """`stems`: texts of one prompt each."""
    numbers, places, ids, position, stem, branch = [], [], [], [], [], []
    at = 0
    for number, texts in enumerate(stems):
        head = int(encoded[texts[0]].answer[0])
        prompt = np.arange(at, at + head)
        ids.append(encoded[texts[0]].ids[:head])
        position.append(np.arange(head))
        stem.append(np.full(head, number))
        branch.append(np.full(head, -1))
        at += head
        for text in texts:
            own = encoded[text].ids[head:]
            numbers.append(text)
            places.append(np.concatenate([prompt, np.arange(at, at + len(own))]))
            ids.append(own)
            position.append(np.arange(head, head + len(own)))
            stem.append(np.full(len(own), number))
            branch.append(np.full(len(own), len(numbers)))
            at += len(own)
    of_stem, of_branch = np.concatenate(stem), np.concatenate(branch)
    seen = (of_stem[:, None] == of_stem) & ((of_branch == -1) | (of_branch[:, None] == of_branch))
    return Pack(
        encoded[stems[0][0]].before,
        numbers,
        places,
        np.concatenate(ids),
        np.concatenate(position),
        np.tril(seen),
    )


class Reader:
    """Runs texts through a model.

    Args:
        model: causal language model in evaluation mode.
        together: tokens of a sequence, and of what stands before it, up to which texts share one; 0: none does. From
            `model_check.Limits`.
    """

    def __init__(self, model: Any, together: int) -> None:
        self._model = model
        self._together = together
        self._begun: dict[bytes, Any] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._told = False

    def packs(
        self, encoded: Sequence[Encoded], numbers: Iterable[int], batch: int
    ) -> Iterator[Pack]:
        """As `packs`, with a pack of its own for each text that is too long to share a sequence."""
        chosen = list(numbers)
        short = [number for number in chosen if self._shares(encoded[number])]
        if len(short) < len(chosen) and not self._told:
            self._told = True
            log.warning(
                "%s are read one at a time, which is slower: the model does not read %s together exactly, or was not checked to "
                "(model_check.csv)",
                f"texts of more than {self._together} tokens" if self._together else "texts",
                "longer ones" if self._together else "several",
            )
        yield from packs(encoded, short, batch, self._together)
        for number in chosen:
            if not self._shares(encoded[number]):
                yield alone(encoded[number], number)

    def _shares(self, one: Encoded) -> bool:
        return len(one.before) + len(one.ids) <= self._together

    def final(self, pack: Pack) -> torch.Tensor:
        """Final hidden states of a pack's tokens, (length, d_model)."""
        device = self._model.device
        ids = torch.from_numpy(pack.ids[None]).to(device)
        if pack.seen is None:
            result = models.backbone(self._model)(input_ids=ids, use_cache=False)
        else:
            cache = self._begin(pack.before)
            result = models.backbone(self._model)(
                input_ids=ids,
                attention_mask=self._mask(pack),
                past_key_values=cache,
                use_cache=cache is not None,
                position_ids=torch.from_numpy(pack.position[None] + len(pack.before)).to(device),
            )
        final: torch.Tensor = result.last_hidden_state[0]
        return final

    def _mask(self, pack: Pack) -> Any:
        """What each token of a pack sees, as the model takes it: one mask, or one for each type of layer.

        Of its own text a token sees what the library lets a token at its position see (windows, chunks), of others nothing.
        """
        kind, device = self._model.dtype, self._model.device
        before = len(pack.before)
        row = pack.position + before
        column = np.concatenate([np.arange(before), row])
        own = np.concatenate([np.ones((len(row), before), dtype=bool), pack.seen], axis=1)

        def additive(visible: torch.Tensor) -> torch.Tensor:
            seen = visible[
                torch.from_numpy(row)[:, None], torch.from_numpy(column)
            ] & torch.from_numpy(own)
            mask = torch.zeros(1, 1, *seen.shape, dtype=kind)
            return mask.masked_fill_(~seen, torch.finfo(kind).min).to(device)

        found = {
            name: additive(visible)
            for name, visible in self._visible(int(column.max()) + 1).items()
        }
        return found.get("", found)

    def _visible(self, length: int) -> dict[str, torch.Tensor]:
        """Which positions each position of a text sees, (length, length) bool or larger, by type of layer; "": of all layers."""
        if not self._masks or len(next(iter(self._masks.values()))) < length:
            self._masks = visible_positions(
                self._model, max(length, 2 * len(next(iter(self._masks.values()), ())))
            )
        return self._masks

    def begin(self, encoded: Sequence[Encoded]) -> None:
        """Read what some texts begin with, before anything changes the model's activations."""
        for one in encoded:
            if self._shares(one):
                self._begin(one.before)

    def _begin(self, before: Numbers) -> Any:
        """Keys and values of what texts begin with, read when first needed; a cache of its own for each pass. None of nothing."""
        from transformers import DynamicCache

        if not len(before):
            return None
        key = before.tobytes()
        if key not in self._begun:
            ids = torch.from_numpy(before[None]).to(self._model.device)
            # Without the configuration a cache keeps every position: one that forgets what lies behind a window would not
            # fit the masks.
            cache = DynamicCache()
            models.backbone(self._model)(input_ids=ids, past_key_values=cache, use_cache=True)
            self._begun[key] = cache
        cache = copy.copy(self._begun[key])
        cache.layers = [
            copy.copy(layer) for layer in cache.layers
        ]  # a pass appends by making new tensors
        return cache

    def opinions(
        self, final: torch.Tensor, place: Numbers, target: Numbers, closely: npt.NDArray[np.bool_]
    ) -> Opinions:
        """What the predictions at some places of a pack say of the tokens that came next.

        Args:
            final: (length, d_model); place, target: (predictions,) where each was made, and the token that came.
            closely: (predictions,) of which entropy, margin and rank are wanted too; of the others they are 0.
        """
        found = Opinions(*(np.zeros(len(place), dtype=kind) for kind in ("f4", "f4", "f4", "i4")))
        where, of = np.unique(place, return_inverse=True)
        order = np.argsort(of, kind="stable")
        edges = np.searchsorted(of[order], np.arange(0, len(where) + HEAD_ROWS, HEAD_ROWS))
        for at, (low, high) in enumerate(itertools.pairwise(edges)):
            start = at * HEAD_ROWS
            rows = torch.from_numpy(where[start : start + HEAD_ROWS]).to(final.device)
            logs = torch.log_softmax(
                logits_of(self._model, final[rows]), dim=-1
            )  # (places, vocabulary)
            chosen = order[low:high]
            row = torch.from_numpy(of[chosen] - start).to(logs.device)
            own = logs[row, torch.from_numpy(target[chosen]).to(logs.device)]
            found.logprob[chosen] = own.cpu().numpy()
            near = torch.from_numpy(closely[chosen]).to(logs.device)
            if near.any():
                kept, row, own = chosen[closely[chosen]], row[near], own[near]
                once, again = torch.unique(row, return_inverse=True)
                logs, own = logs[once], own
                top = logs.topk(2, dim=-1).values
                found.entropy[kept] = (
                    -(logs.exp() * logs).nan_to_num(0.0).sum(dim=-1)[again].cpu().numpy()
                )
                found.margin[kept] = (top[:, 0] - top[:, 1])[again].cpu().numpy()
                for part in torch.split(torch.arange(len(own)), HEAD_ROWS):
                    found.rank[kept[part.numpy()]] = (
                        (logs[again[part]] > own[part][:, None]).sum(dim=-1).cpu().numpy()
                    )
        return found


def alone(one: Encoded, number: int) -> Pack:
    """A pack of one text, which the plain model reads from its first token on."""
    before = len(one.before)
    ids = np.concatenate([one.before, one.ids])
    return Pack(ids[:0], [number], [np.arange(before, len(ids))], ids, np.arange(len(ids)), None)


def visible_positions(model: Any, length: int) -> dict[str, torch.Tensor]:
    """Which positions of a text each position sees, from the library's own mask functions.

    Returns:
        (length, length) bool on the CPU by the type of layer, as the model's configuration names it; under "" alone where all
        layers see the same.
    Raises:
        ValueError: for a type of layer that has no such mask.
    """
    from transformers.masking_utils import create_masks_for_generate

    like = torch.empty(1, length, 1, dtype=model.dtype)
    found = create_masks_for_generate(model.config, like, attention_mask=None, past_key_values=None)
    masks = found if isinstance(found, dict) else {"": found}
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {
        name: causal if mask is None else _as_bool(mask, length) for name, mask in masks.items()
    }


def _as_bool(mask: torch.Tensor, length: int) -> torch.Tensor:
    if mask.shape != (1, 1, length, length):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)}, expected (1, 1, {length}, {length})"
        )
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """float32 logits of final hidden states (n, d_model): the model's own forward pass, entered behind its last layer."""
    # Some architectures call the decoder inside the model without its head; some call something else by that name.
    behind = {models.backbone(model), model.get_decoder()} - {model, model.get_output_embeddings()}
    with _standing_for(behind, hidden):
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0].float()


class _Hidden:
    """What a model without its head returns, with final hidden states alone, (1, n, d_model)."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, _: str) -> None:
        return None  # what only some architectures return, such as router logits


@contextmanager
def _standing_for(modules: Iterable[Any], hidden: torch.Tensor) -> Iterator[None]:
    """Within, modules (a model without its head, its decoder) compute nothing and return `hidden`, (n, d_model), as a batch of one."""
    for module in (chosen := list(modules)):
        module.forward = lambda *_, **__: _Hidden(hidden[None])
    try:
        yield
    finally:
        for module in chosen:
            del module.forward  # the class's own again
