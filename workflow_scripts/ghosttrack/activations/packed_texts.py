"""Texts that begin alike, read together: in one sequence a prompt stands once, and the rest of each text sees its own prompt alone.

What all texts of a relation begin with is read before, once, and kept as keys and values.
"""

import copy
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.errors import UserError

# Tokens of a sequence for each text of `batch`. Attention to other texts is computed and thrown away, so that long sequences
# cost more: a tenth at 256 tokens on a model of 576 channels; short ones use a processor badly.
TOKENS = 8
# Positions whose logits are held at once: 256 x 50,000 x 4 bytes are 51 MB, and a few copies.
HEAD_ROWS = 256
# The head applied by hand, and texts read together, must give the model's own log-probabilities up to rounding.
TOLERANCE = 1e-3

Numbers = npt.NDArray[np.int64]


class Pack(NamedTuple):
    """Texts of one beginning, laid out in one sequence.

    before: what all of them begin with, read already.
    numbers: (texts,) which they are; places: of each text, where its tokens stand in the sequence, (tokens,).
    ids: (length,) the sequence; position: (length,) of each token in its own text, behind `before`.
    seen: (length, length) bool, whether a token (row) sees another (column).
    """

    before: Numbers
    numbers: list[int]
    places: list[Numbers]
    ids: Numbers
    position: Numbers
    seen: npt.NDArray[np.bool_]


class Opinions(NamedTuple):
    """Of each predicted token, in nats: what the model's prediction one position earlier says of it."""

    logprob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]


def packs(encoded: Sequence[Encoded], numbers: Iterable[int], batch: int) -> Iterator[Pack]:
    """Lay out the texts in sequences of about `TOKENS` x batch tokens; each starts with prompts of its own.

    A prompt is what stands before a text's answer. Texts that share one keep together; a prompt whose texts do not fit is
    repeated, and a sequence that begins with a long prompt may be twice as long as it.
    """
    grouped: dict[bytes, dict[bytes, list[int]]] = {}
    for number in numbers:
        one = encoded[number]
        grouped.setdefault(one.before.tobytes(), {}).setdefault(one.ids[: one.answer[0]].tobytes(), []).append(number)
    for prompts in grouped.values():
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
                    limit = max(TOKENS * batch, 2 * head)
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
        encoded[stems[0][0]].before, numbers, places, np.concatenate(ids), np.concatenate(position), np.tril(seen)
    )


class Reader:
    """Runs packs through a model.

    Args:
        model: causal language model in evaluation mode.
        like: a few texts to try it on.
    Raises:
        UserError: a model that does not take such sequences, or changes its logits behind its head.
    """

    def __init__(self, model: Any, like: Sequence[Encoded]) -> None:
        self._model = model
        self._begun: dict[bytes, Any] = {}
        if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
            raise _unsupported(model, "takes no positions, so texts cannot be read together")
        _try(self, model, like)

    def final(self, pack: Pack) -> torch.Tensor:
        """Final hidden states of a pack's tokens, (length, d_model)."""
        cache = self.begin(pack.before)
        kind, device = self._model.dtype, self._model.device
        length, before = len(pack.ids), len(pack.before)
        mask = torch.zeros(1, 1, length, before + length, dtype=kind)
        mask[0, 0, :, before:].masked_fill_(torch.from_numpy(~pack.seen), torch.finfo(kind).min)
        result = self._model.base_model(
            input_ids=torch.from_numpy(pack.ids[None]).to(device), attention_mask=mask.to(device),
            position_ids=torch.from_numpy(pack.position[None] + before).to(device), past_key_values=cache,
            use_cache=cache is not None,
        )  # fmt: skip
        final: torch.Tensor = result.last_hidden_state[0]
        return final

    def begin(self, before: Numbers) -> Any:
        """Keys and values of what texts begin with, read when first needed; a cache of its own for each pass. None of nothing."""
        if not len(before):
            return None
        key = before.tobytes()
        if key not in self._begun:
            ids = torch.from_numpy(before[None]).to(self._model.device)
            found = getattr(self._model.base_model(input_ids=ids, use_cache=True), "past_key_values", None)
            if not hasattr(found, "layers"):
                raise _unsupported(
                    self._model, "keeps no keys and values of what it has read, so texts cannot share a beginning"
                )
            self._begun[key] = found
        cache = copy.copy(self._begun[key])
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # a pass appends by making new tensors
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
            logs = torch.log_softmax(logits_of(self._model, final[rows]), dim=-1)  # (places, vocabulary)
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
                found.entropy[kept] = -(logs.exp() * logs).nan_to_num(0.0).sum(dim=-1)[again].cpu().numpy()
                found.margin[kept] = (top[:, 0] - top[:, 1])[again].cpu().numpy()
                for part in torch.split(torch.arange(len(own)), HEAD_ROWS):
                    found.rank[kept[part.numpy()]] = (logs[again[part]] > own[part][:, None]).sum(dim=-1).cpu().numpy()
        return found


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """float32 logits of final hidden states, with the few things architectures do after the head."""
    config = model.config.get_text_config()
    logits: torch.Tensor = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@torch.inference_mode()
def _try(reader: Reader, model: Any, like: Sequence[Encoded]) -> None:
    """Read some texts together, and each alone through the whole model: the same up to rounding, or a UserError."""
    for pack in packs(like, range(len(like)), batch=sum(len(one.ids) for one in like)):
        final = reader.final(pack)
        for number, places in zip(pack.numbers, pack.places, strict=True):
            ids = np.concatenate([pack.before, like[number].ids])[None]
            own = _alone(
                model.base_model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False).last_hidden_state,
                pack,
            )
            whole = _alone(
                model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False).logits, pack
            ).float()
            alone, together = logits_of(model, own), logits_of(model, final[torch.from_numpy(places).to(final.device)])
            for worst, what in (
                (_distance(whole, alone), "changes its logits after the head"),
                (_distance(alone, together), "reads texts otherwise if they stand together in one sequence"),
            ):
                if not worst < TOLERANCE:
                    raise _unsupported(
                        model, f"{what} (log-probabilities differ by {worst:.3g}), in a way that is not known here"
                    )


def _alone(found: torch.Tensor, pack: Pack) -> torch.Tensor:
    return found[0, len(pack.before) :]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((torch.log_softmax(one, -1) - torch.log_softmax(other, -1)).abs().max())


def _unsupported(model: Any, what: str) -> UserError:
    return UserError(f"{type(model).__name__} {what}: this architecture is not supported; choose another model")
