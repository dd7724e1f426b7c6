"""Sequence packing: several texts in one sequence, which share the tokens of common beginnings.

The attention mask lets the tokens of a text see only that text. The prefix that all texts of a
relation share is computed once and kept as a KV cache. Texts are packed only where `model_check`
found it exact; longer texts are read one at a time.
"""

import copy
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations import layout
from ghosttrack.activations.example_tokens import Encoded, common_length
from ghosttrack.activations.hooks import forward_replaced
from ghosttrack.errors import UserError
from ghosttrack.inputs import models

log = logging.getLogger("ghosttrack")

# Tokens of a packed sequence for each text of `batch`. Masked attention between texts is computed
# in vain, a tenth of the time at 256 tokens with d_model 576; short sequences do not keep a
# processor busy.
TOKENS = 8
# Positions whose statistics are computed at once on a CPU: their log-probabilities stay in the
# cache. 256 positions at once take three times as long.
STATISTICS_ROWS = 32
# Positions whose logits are computed at once, and bytes of their logits, at most. With 50,000
# tokens, 256 positions take 51 MB; with 262,144 tokens, 64 positions take 67 MB.
HEAD_ROWS, HEAD_BYTES = 256, 2**26
# Prefixes that are kept as KV caches, in tokens: 189 MB with 30 layers of 192 keys and values.
# Texts come in the order of their prefixes, so that few are in use at once.
CACHED_TOKENS = 4096
# Largest difference of final hidden states, relative to their norm, after a cached prefix and
# without a cache, in float32 and in half precision.
CACHED_DIFFERENCE = {torch.float32: 1e-3}
CACHED_DIFFERENCE_HALF = 3e-2

Ints = npt.NDArray[np.int64]


class Pack(NamedTuple):
    """Texts of one shared prefix in one sequence.

    prefix: (tokens,) the shared prefix, which is not part of the sequence.
    numbers: (texts,) indices of the texts.
    places: for each text, the places of its tokens in the sequence, (tokens,).
    ids: (length,) the sequence.
    position: (length,) position of each token in its text, counted from the end of `prefix`.
    visible: (length, length) bool, whether a token (row) sees another (column); None: a single
        unpacked text, which sees all its earlier tokens and the prefix.
    """

    prefix: Ints
    numbers: list[int]
    places: list[Ints]
    ids: Ints
    position: Ints
    visible: npt.NDArray[np.bool_] | None


class TokenStatistics(NamedTuple):
    """Statistics of the model's prediction of each token, (tokens,); the likeliest has rank 0.

    logprob, entropy: in nats.
    margin: log-probability of the most likely token minus that of the second.
    """

    logprob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]


def packs(
    encoded: Sequence[Encoded],
    numbers: Iterable[int],
    batch: int,
    longest: int = sys.maxsize,
    *,
    share_answers: bool = True,
) -> Iterator[Pack]:
    """Pack the texts into sequences of about `TOKENS` x batch tokens.

    The texts of a pack share the tokens of their common beginnings: the sequence is a tree. A
    beginning is repeated in the next sequence if not all of its texts fit into one. A sequence that
    begins with a long prompt (the part of a text before its answer) may be twice as long as it.

    Args:
        longest: upper limit of prefix and sequence in tokens; no single text exceeds it.
        share_answers: whether texts also share tokens of their answers, and others that are read.
    """
    by_prefix: dict[bytes, list[int]] = {}
    for number in numbers:
        by_prefix.setdefault(encoded[number].prefix.tobytes(), []).append(number)
    for texts in by_prefix.values():
        room = longest - len(encoded[texts[0]].prefix)
        pack: list[int] = []
        shared: list[int] = []
        size = limit = 0
        # In this order, no earlier text has more in common with a text than the one before it.
        for number in sorted(texts, key=lambda number: encoded[number].ids.tobytes()):
            one = encoded[number]
            common = _shared(encoded[pack[-1]], one, share_answers) if pack else 0
            if pack and size + len(one.ids) - common > limit:
                yield _laid_out(encoded, pack, shared)
                pack, shared, size, common = [], [], 0, 0
            if not pack:
                limit = min(max(TOKENS * batch, 2 * int(one.answer[0])), room)
            pack.append(number)
            shared.append(common)
            size += len(one.ids) - common
        yield _laid_out(encoded, pack, shared)


def _shared(one: Encoded, other: Encoded, share_answers: bool) -> int:
    """Number of tokens that two texts share: their common beginning, or what is not read of it."""
    common = common_length([one.ids, other.ids])
    if share_answers:
        return common
    return min(common, *(int(min(text.answer[0], text.read[0])) for text in (one, other)))


def _laid_out(encoded: Sequence[Encoded], numbers: list[int], shared: Sequence[int]) -> Pack:
    """One pack. `shared`: number of tokens that each text shares with the text before it."""
    places: list[Ints] = []
    size = 0
    for number, common in zip(numbers, shared, strict=True):
        fresh = np.arange(size, size + len(encoded[number].ids) - common)
        places.append(np.concatenate([places[-1][:common], fresh]) if places else fresh)
        size += len(fresh)
    ids, position = np.empty((2, size), dtype=np.int64)
    visible = np.zeros((size, size), dtype=bool)
    for number, path, common in zip(numbers, places, shared, strict=True):
        ids[path] = encoded[number].ids
        position[path] = np.arange(len(path))
        # Its fresh tokens see the tokens of the text up to themselves.
        visible[np.ix_(path[common:], path)] = np.tri(len(path) - common, len(path), common)
    return Pack(encoded[numbers[0]].prefix, numbers, places, ids, position, visible)


class PackedReader:
    """Runs packed texts through a model.

    Args:
        model: causal language model in evaluation mode.
        packed: longest packed sequence with its prefix, in tokens; 0: texts are read alone. From
            `Limits`.
        cached: longest text, in tokens, that is read after the KV cache of its prefix although it
            is too long to be packed; 0: such texts are read with their prefix. From `Limits`. The
            first of them is also read without a cache; if the results differ, none is cached.
        share_answers: whether texts share what their answers have in common, and other tokens that
            are read. False where a hook changes activations of a single text, or gradients are
            taken at its tokens.
    """

    def __init__(
        self, model: Any, packed: int, cached: int = 0, *, share_answers: bool = True
    ) -> None:
        self._model = model
        self._share_answers = share_answers
        self._packed = packed
        self._cached = cached if packed else 0
        self._checked = False
        self._keeps_all = False
        self._caches: dict[bytes, Any] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._warned = False

    def packs(
        self, encoded: Sequence[Encoded], numbers: Iterable[int], batch: int
    ) -> Iterator[Pack]:
        """As `packs`, with a single-text pack for each text that is too long to be packed."""
        chosen = list(numbers)
        short = [number for number in chosen if self._fits(encoded[number])]
        if len(short) < len(chosen) and not self._warned:
            self._warned = True
            log.warning(
                "%s are read one at a time, which is slower: for this model, packed sequences%s "
                "are not exact, or were not checked (model_check.csv)",
                f"texts of more than {self._packed} tokens" if self._packed else "texts",
                " of that length" if self._packed else "",
            )
        yield from packs(encoded, short, batch, self._packed, share_answers=self._share_answers)
        for number in chosen:
            if not self._fits(encoded[number]):
                yield self._single(encoded[number], number)

    def _single(self, one: Encoded, number: int) -> Pack:
        """A pack of one text, after the cache of its prefix where that is exact."""
        if not len(one.prefix) or len(one.prefix) + len(one.ids) > self._cached:
            return _alone(one, number)
        places = np.arange(len(one.ids))
        pack = Pack(one.prefix, [number], [places], one.ids, places, None)
        if not self._checked:
            self._checked = True
            reference = self.final(_alone(one, number))[len(one.prefix) :]
            change = torch.linalg.vector_norm(self.final(pack) - reference, dim=1)
            largest = float((change / torch.linalg.vector_norm(reference, dim=1)).max())
            allowed = CACHED_DIFFERENCE.get(self._model.dtype, CACHED_DIFFERENCE_HALF)
            if not largest <= allowed:
                self._cached = 0
                log.warning(
                    "a text after the KV cache of its context differs by %.1g of the norm from the "
                    "text read with its context, more than %.1g: contexts are read once per text",
                    largest,
                    allowed,
                )
                return _alone(one, number)
        return pack

    def _fits(self, one: Encoded) -> bool:
        return len(one.prefix) + len(one.ids) <= self._packed

    def final(self, pack: Pack) -> torch.Tensor:
        """Final hidden states of a pack's tokens, (length, d_model)."""
        device = self._model.device
        ids = torch.from_numpy(pack.ids[None]).to(device)
        if pack.visible is None and not len(pack.prefix):
            result = models.backbone(self._model)(input_ids=ids, use_cache=False)
        elif pack.visible is None:
            result = models.backbone(self._model)(
                input_ids=ids,
                past_key_values=self._prefix_cache(pack.prefix),
                use_cache=True,
                position_ids=torch.from_numpy(pack.position[None] + len(pack.prefix)).to(device),
            )
        else:
            cache = self._prefix_cache(pack.prefix)
            result = models.backbone(self._model)(
                input_ids=ids,
                attention_mask=self._mask(pack),
                past_key_values=cache,
                use_cache=cache is not None,
                position_ids=torch.from_numpy(pack.position[None] + len(pack.prefix)).to(device),
            )
        final: torch.Tensor = result.last_hidden_state[0]
        return final

    def _mask(self, pack: Pack) -> Any:
        """Additive attention mask of a pack: one, or one per layer type.

        Within its text, a token sees the positions that the library's own masks allow (windows,
        chunks).
        """
        dtype, device = self._model.dtype, self._model.device
        prefix = len(pack.prefix)
        row = pack.position + prefix
        column = np.concatenate([np.arange(prefix), row])
        same_text = np.concatenate([np.ones((len(row), prefix), dtype=bool), pack.visible], axis=1)

        def additive(allowed: torch.Tensor) -> torch.Tensor:
            visible = allowed[
                torch.from_numpy(row)[:, None], torch.from_numpy(column)
            ] & torch.from_numpy(same_text)
            mask = torch.zeros(1, 1, *visible.shape, dtype=dtype)
            return mask.masked_fill_(~visible, torch.finfo(dtype).min).to(device)

        masks = {
            name: additive(allowed)
            for name, allowed in self._allowed(int(column.max()) + 1).items()
        }
        return masks.get("", masks)

    def _allowed(self, length: int) -> dict[str, torch.Tensor]:
        """`visible_positions` for texts of `length` tokens or longer."""
        if not self._masks or len(next(iter(self._masks.values()))) < length:
            self._masks = visible_positions(
                self._model, max(length, 2 * len(next(iter(self._masks.values()), ())))
            )
        return self._masks

    def cache_prefixes(self, encoded: Sequence[Encoded]) -> None:
        """Compute the shared prefixes of some texts, before hooks change the activations."""
        self._keeps_all = True
        for one in encoded:
            if self._fits(one):
                self._prefix_cache(one.prefix)

    def cache_prefix(self, pack: Pack) -> None:
        """Compute the prefix of the next pack, before hooks change the activations."""
        self._prefix_cache(pack.prefix)

    def _prefix_cache(self, prefix: Ints) -> Any:
        """A KV cache of a prefix, for one pass; computed at first use. None for an empty prefix."""
        from transformers import DynamicCache

        if not len(prefix):
            return None
        key = prefix.tobytes()
        if key not in self._caches:
            ids = torch.from_numpy(prefix[None]).to(self._model.device)
            # Without the configuration a cache keeps every position; a sliding-window cache would
            # not fit the masks.
            cache = DynamicCache()
            models.backbone(self._model)(input_ids=ids, past_key_values=cache, use_cache=True)
            self._caches[key] = cache
            if not self._keeps_all:
                self._forget(len(prefix))
        cache = copy.copy(self._caches[key])
        # Shallow copies suffice: a pass appends by making new tensors.
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return cache

    def _forget(self, newest: int) -> None:
        """Drop the oldest caches beyond CACHED_TOKENS; the newest, of `newest` tokens, stays."""
        size = newest + sum(len(key) for key in list(self._caches)[:-1]) // 8  # int64 ids
        for key in list(self._caches)[:-1]:
            if size <= CACHED_TOKENS:
                break
            size -= len(key) // 8
            del self._caches[key]

    def token_statistics(
        self, final: torch.Tensor, place: Ints, target: Ints, in_full: npt.NDArray[np.bool_]
    ) -> TokenStatistics:
        """Statistics of some predicted tokens of a pack.

        Args:
            final: (length, d_model) final hidden states.
            place: (predictions,) position in `final` of each prediction.
            target: (predictions,) the token that followed.
            in_full: (predictions,) whether to compute entropy, margin and rank; else they are 0.
        Raises:
            UserError: the probability of a token is NaN.
        """
        result = TokenStatistics(
            *(np.zeros(len(place), dtype=kind) for kind in ("f4", "f4", "f4", "i4"))
        )
        places, index = np.unique(place, return_inverse=True)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        block = head_rows(self._model)
        step = STATISTICS_ROWS if final.device.type == "cpu" else block
        for head in range(0, len(places), block):
            rows = torch.from_numpy(places[head : head + block]).to(final.device)
            logits = logits_of(self._model, final[rows])  # (places, vocabulary)
            for start, part in enumerate(torch.split(logits, step)):
                first = head + start * step
                low, high = np.searchsorted(ordered, [first, first + len(part)])
                chosen = order[low:high]
                _fill_in(result, chosen, part, index[chosen] - first, target, in_full)
        if np.isnan(result.logprob).any():
            raise UserError(
                f"{int(np.isnan(result.logprob).sum())} of {len(place)} tokens have the probability "
                "NaN, expected numbers: "
                + layout.why_not_finite(
                    self._model.dtype == torch.float16, type(self._model).__name__
                )
            )
        return result


def _fill_in(
    result: TokenStatistics,
    chosen: Ints,
    logits: torch.Tensor,
    row: Ints,
    target: Ints,
    in_full: npt.NDArray[np.bool_],
) -> None:
    """Fill in some predictions of a result.

    Args:
        chosen: (predictions,) indices in the result, in `target` and in `in_full`.
        logits: (places, vocabulary).
        row: (predictions,) row of each prediction in `logits`.
    """
    logs = torch.log_softmax(logits, dim=-1)
    at = torch.from_numpy(row).to(logs.device)
    logprob = logs[at, torch.from_numpy(target[chosen]).to(logs.device)]
    result.logprob[chosen] = logprob.cpu().numpy()
    full = torch.from_numpy(in_full[chosen]).to(logs.device)
    if not full.any():
        return
    chosen, at, logprob = chosen[in_full[chosen]], at[full], logprob[full]
    distinct, back = torch.unique(at, return_inverse=True)
    logs = logs[distinct]
    top = logs.topk(2, dim=-1).values
    result.entropy[chosen] = -(logs.exp() * logs).nan_to_num(0.0).sum(dim=-1)[back].cpu().numpy()
    result.margin[chosen] = (top[:, 0] - top[:, 1])[back].cpu().numpy()
    for some in torch.split(torch.arange(len(logprob)), max(len(logits), STATISTICS_ROWS)):
        above = logs[back[some]] > logprob[some][:, None]
        result.rank[chosen[some.numpy()]] = above.sum(dim=-1).cpu().numpy()


def _alone(one: Encoded, number: int) -> Pack:
    """A single-text pack, whose sequence includes the prefix."""
    ids = np.concatenate([one.prefix, one.ids])
    places = np.arange(len(one.prefix), len(ids))
    return Pack(ids[:0], [number], [places], ids, np.arange(len(ids)), None)


def visible_positions(model: Any, length: int) -> dict[str, torch.Tensor]:
    """Whether a position (row) of a text sees another (column), by the library's mask functions.

    Returns:
        (length, length) bool on the CPU for each layer type of the model's configuration; under ""
        alone if all layers have the same mask.
    Raises:
        ValueError: the mask of a layer type has another shape.
    """
    from transformers.masking_utils import create_masks_for_generate

    like = torch.empty(1, length, 1, dtype=model.dtype)
    made = create_masks_for_generate(model.config, like, attention_mask=None, past_key_values=None)
    masks = made if isinstance(made, dict) else {"": made}
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


def head_rows(model: Any) -> int:
    """Positions whose logits are computed at once: fewer with a large vocabulary.

    Every block of logits then has about the same size, so a job's memory does not grow with the
    vocabulary.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)
    return min(HEAD_ROWS, max(STATISTICS_ROWS, HEAD_BYTES // (4 * vocabulary)))


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """float32 logits of final hidden states (n, d_model), by the model's own forward pass."""
    # Some architectures call the decoder inside the backbone; in others, it is another module.
    backbones = {models.backbone(model), model.get_decoder()} - {
        model,
        model.get_output_embeddings(),
    }
    with forward_replaced(backbones, lambda: _BackboneOutput(hidden[None])):
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0].float()


class _BackboneOutput:
    """Output of a backbone, with final hidden states alone, (1, n, d_model)."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, _: str) -> None:
        return None  # fields of some architectures, such as router logits
