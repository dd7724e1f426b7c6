"""Checks that a model is read correctly, before anything is extracted from it.

Jobs read a model in fast ways: packed sequences, batches, padded batches with a shared prefix, KV
caches, skipped blocks. Each way is compared with the reference, a forward pass over a single text
without a cache: hidden states of every block, and log-probabilities of the next token. Jobs do not
use a way that differs (`Limits`). A model is refused if its blocks do not add to a residual stream,
if it is not causal, or if its logits are not a function of its final hidden states.

The check also measures the median norm of every layer, from which follows the scale of its stores
(see `store`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations import decoding
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.hooks import captured, forward_replaced, last_output
from ghosttrack.activations.layout import MASSIVE_FACTOR, why_not_finite
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.packed_texts import PackedReader, logits_of
from ghosttrack.activations.store import describe_layer, scale_for
from ghosttrack.errors import UserError
from ghosttrack.inputs import models, sites
from ghosttrack.inputs.dense_layers import without_onednn
from ghosttrack.inputs.unembedding import ranks_tokens

log = logging.getLogger("ghosttrack")


class Tolerance(NamedTuple):
    """Largest differences that rounding explains.

    hidden: of a hidden state, relative to its norm.
    logprob: of a log-probability, in nats.
    continued: the same for continuations. Answers are longer than the continuations of the check,
        and the difference of a recurrent state can grow with every token (Nemotron-H in float32:
        .0009 nats in this check, .0011 elsewhere).
    """

    hidden: float
    logprob: float
    continued: float


FLOAT32 = Tolerance(1e-3, 1e-3, 5e-4)
# bfloat16 rounds to 8 bits; float16 rounds to 11 bits, and so do TF32 products. In bfloat16,
# SmolLM2-135M differs by .04 of a norm and .67 nats (the largest of 49,152 tokens at 16 positions),
# small random models of 30 architectures by .03 of a norm and .3 nats. A wrong mask can differ as
# little (gpt_neo, mpt: .04 of a norm), so the check of a model in half precision is repeated in
# float32 where that fits into memory (`Limits.both`).
BFLOAT16 = Tolerance(0.15, 1.0, 0.8)
FLOAT16 = Tolerance(*(limit / 8 for limit in BFLOAT16))
# Lengths of the test sequences in tokens. Beyond small windows shorter ones are tested, down to
# MIN_TOKENS. Beyond PACKED, texts are read alone; beyond PADDED, prompts are batched by length.
SHORTEST, MIN_TOKENS = 32, 12
PACKED, PADDED = 384, 160
# Windows of up to this many tokens are tested, with texts of BEYOND tokens more; texts that exceed
# a larger window are read alone.
LARGEST_WINDOW = 1024
BEYOND = 32
# Number of last positions whose log-probabilities are compared; hidden states are compared at all.
# An unembedding with 262,144 rows takes longer than the blocks.
LAST = 16
# Tokens generated after each prompt.
NEW = 4
# Number of prompts of one length, and their distance in the text. A model that selects the tokens
# it attends to (Doge) continues about half of all prompts correctly by chance.
PROMPTS, APART = 6, 29
# Tokens of a shared prefix, and of a prompt.
PREFIX, PROMPT = 16, 4
# The scale of a store leaves room for texts whose median norm is this multiple of the one of the
# check's text, which is read in pieces of up to PIECE tokens.
HEAD_ROOM = 2
PIECE = 256

Ids = npt.NDArray[np.int64]


class Comparison(NamedTuple):
    """A fast way of reading compared with the reference.

    way: packed, batched, padded, cached or skipped.
    tokens: of the longest sequence.
    hidden: largest difference of a hidden state, relative to its norm; NaN where none is compared.
    logprob: largest difference of a log-probability, in nats.
    problem: the error, if the model refuses such input; else empty.
    allowed: differences that rounding explains in the precision of the model.
    """

    way: str
    tokens: int
    hidden: float
    logprob: float
    problem: str = ""
    allowed: Tolerance = FLOAT32

    @property
    def exact(self) -> bool:
        """Whether rounding explains the differences."""
        continued = self.way in ("cached", "padded")
        logprob = self.allowed.continued if continued else self.allowed.logprob
        return (
            not self.problem and not self.hidden > self.allowed.hidden and self.logprob <= logprob
        )


class ModelCheck(NamedTuple):
    """Result of the check.

    sublayers: for each block, the modules that write to the residual stream; or why they are
        unknown.
    median_norms: of the token embedding (key None) and of the site in each block, without the
        first position of a text.
    """

    limits: Limits
    sublayers: list[sites.Sublayers] | str
    comparisons: list[Comparison]
    median_norms: dict[int | None, float]


class Reference(NamedTuple):
    """Results of a forward pass over a single text.

    blocks: output of each block, (tokens, d_model).
    final: (tokens, d) final hidden states.
    logprobs: (last tokens, vocabulary).
    """

    blocks: list[torch.Tensor]
    final: torch.Tensor
    logprobs: torch.Tensor


def check(model: Any, tokens: Ids, separator: int, site: sites.Site) -> ModelCheck:
    """Compare the fast ways of reading a model with the reference.

    Args:
        model: causal language model in evaluation mode.
        tokens: (n,) ids of ordinary text without special tokens; repeated where more are needed.
        separator: the first token of every text.
        site: the activations to be stored.
    Raises:
        UserError: the model cannot be read at all, or has no such site.
    """
    limit = models.max_context(model.config.to_dict())
    text = np.concatenate([[separator], np.resize(tokens, LARGEST_WINDOW + BEYOND)])
    shortest = min(SHORTEST, limit)
    with torch.inference_mode():
        modules = _modules(model)
        first = require_readable(model, text[:shortest])
        _require_longest(model, text[:limit])
        sublayers = _sublayers(model, site)
        batched = _compared(
            model, "batched", shortest, lambda tokens: _batched(model, text, tokens, first)
        )
        packed = _descending(
            model, "packed", _lengths(model, PACKED), lambda tokens: _packed(model, text, tokens)
        )
        packed.append(
            _compared(
                model, "packed", shortest, lambda tokens: _packed(model, text, tokens, PREFIX)
            )
        )
        padded = _descending(
            model,
            "padded",
            _lengths(model, PADDED),
            lambda tokens: _continued(model, text, tokens, "padded"),
        )
        cached = [
            _compared(
                model, "cached", length, lambda tokens: _continued(model, text, tokens, "cached")
            )
            for length in _lengths(model, SHORTEST, NEW // 2)
        ]
        skipped = _compared(
            model, "skipped", shortest, lambda tokens: _skipped(model, text[:tokens], first)
        )
        _require_unchanged(model, text[:shortest], first.final)
        _require_modules(model, modules)
        named = ranks_tokens(model, first.blocks[-1][-LAST:], first.logprobs)
        norms = _median_norms(model, text, site)
    reach = _reach(model, cached)
    # A padded batch uses the KV cache, too.
    limits = Limits(
        _longest(model, packed),
        min(_longest(model, padded), reach),
        reach,
        batched.exact,
        skipped.exact,
        named,
    )
    return ModelCheck(limits, sublayers, [batched, *packed, *padded, *cached, skipped], norms)


def scales(median_norms: Mapping[int | None, float], least: int) -> dict[int | None, int]:
    """The scale of each layer's stores, a power of two.

    No value of an included row exceeds MASSIVE_FACTOR times the median norm, since a store excludes
    rows of a larger norm. The smallest scale that holds HEAD_ROOM times this value is chosen.

    Args:
        median_norms: as in `ModelCheck`.
        least: minimum of the scales, a power of two.
    """
    return {
        layer: max(least, scale_for(HEAD_ROOM * MASSIVE_FACTOR * norm))
        for layer, norm in median_norms.items()
    }


def _median_norms(model: Any, text: Ids, site: sites.Site) -> dict[int | None, float]:
    """`ModelCheck.median_norms`, from `text`, whose first token is the separator.

    Raises:
        UserError: a norm is not finite.
    """
    layers = range(len(models.blocks(model)))
    modules = [model.get_input_embeddings(), *sites.site_modules(model, layers, site)]
    piece = min(PIECE, models.max_context(model.config.to_dict())) - 1
    norms: list[list[torch.Tensor]] = [[] for _ in modules]
    with captured(modules, stop=False) as outputs:
        for start in range(1, len(text), piece):
            ids = np.concatenate([text[:1], text[start : start + piece]])
            models.backbone(model)(input_ids=_batch(model, ids), use_cache=False)
            for of_layer, output in zip(norms, outputs, strict=True):
                # The first position is usually massive, and a store excludes it.
                of_layer.append(torch.linalg.vector_norm(output[0, 1:].float(), dim=1))
    joined = dict(zip((None, *layers), map(torch.cat, norms), strict=True))
    for layer, values in joined.items():
        if not bool(values.isfinite().all()):
            raise UserError(
                f"{type(model).__name__}: {describe_layer(layer, site)} is not finite on ordinary "
                "text; the weights are damaged: download them again, or choose another revision"
            )
    return {layer: float(values.median()) for layer, values in joined.items()}


def tolerance(model: Any) -> Tolerance:
    """Differences that rounding explains in the precision of a loaded model."""
    if model.dtype == torch.bfloat16:
        return BFLOAT16
    tf32 = model.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return FLOAT16 if model.dtype == torch.float16 or tf32 else FLOAT32


def windows(model: Any) -> list[int]:
    """Lengths in tokens beyond which a model may compute otherwise, ascending.

    These are attention windows and chunks, and the length beyond which positions are rescaled.
    """
    lengths: set[int] = set()

    def search(values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                search(value)
            elif (
                isinstance(value, int)
                and value > 1
                and any(word in name for word in ("window", "chunk", "original_max"))
            ):
                lengths.add(value)

    search(model.config.get_text_config().to_dict())
    return sorted(lengths)


def _lengths(model: Any, longest: int, *more: int) -> list[int]:
    """Lengths of the test sequences in tokens, ascending: shortest, longest, beyond each window.

    They exceed a window by half of it at most, so that it lies between the lengths of two prompts of
    which one is half as long as the other.

    Args:
        more: further numbers of tokens beyond each window.
    """
    limit = models.max_context(model.config.to_dict())
    beyond = [
        max(window + excess, MIN_TOKENS)
        for window in windows(model)
        if window <= LARGEST_WINDOW
        for excess in (min(BEYOND, window // 2), *more)
    ]
    return sorted({min(length, limit) for length in (SHORTEST, longest, *beyond)})


def _descending(
    model: Any, way: str, lengths: Sequence[int], compare: Callable[[int], tuple[float, float]]
) -> list[Comparison]:
    """Compare sequences from the longest down, until one is exact: it covers all shorter lengths.

    If the model has windows, the shortest is compared first and must be exact. Such a model may
    compute otherwise once a text exceeds a window, so the longest does not cover the shorter ones.

    Args:
        lengths: the shortest, those beyond the windows, the longest.
    """
    if len(lengths) <= 2:
        return [_compared(model, way, lengths[-1], compare)]
    comparisons = [_compared(model, way, lengths[0], compare)]
    for tokens in reversed(lengths[1:]) if comparisons[0].exact else ():
        comparisons.append(_compared(model, way, tokens, compare))
        if comparisons[-1].exact:
            break
    return comparisons


def _compared(
    model: Any, way: str, tokens: int, compare: Callable[[int], tuple[float, float]]
) -> Comparison:
    """Run a comparison; an error of the model becomes its problem."""
    try:
        return Comparison(way, tokens, *compare(tokens), allowed=tolerance(model))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # architectures raise errors of any type
        return Comparison(way, tokens, np.nan, np.nan, models.first_line(error))


def _longest(model: Any, comparisons: Sequence[Comparison]) -> int:
    """Length up to which all comparisons are exact; 0 if a failure is not caused by a window."""
    wrong = min((one.tokens for one in comparisons if not one.exact), default=sys.maxsize)
    longest = max((one.tokens for one in comparisons if one.tokens < wrong), default=0)
    explained = wrong == sys.maxsize or any(longest < window < wrong for window in windows(model))
    return longest if explained else 0


def _reach(model: Any, comparisons: Sequence[Comparison]) -> int:
    """Length up to which the KV cache is exact.

    If all comparisons are exact, this is the first untested window, or the context of the model.
    """
    longest = _longest(model, comparisons)
    if not all(one.exact for one in comparisons):
        return longest
    untested = [window for window in windows(model) if window > longest]
    return min([models.max_context(model.config.to_dict()), *untested])


def require_readable(model: Any, ids: Ids) -> Reference:
    """Refuse a model without a residual stream, or that is not causal, or whose head is unknown.

    Returns:
        The reference results of the text.
    Raises:
        UserError: with the class of the model and the difference.
    """
    name = type(model).__name__
    with _refusing(model, ids, ""):
        whole = _read(model, ids)
        logits = model(input_ids=_batch(model, ids), use_cache=False).logits[0, -LAST:]
        logprobs = logits.float().log_softmax(-1).to(whole.logprobs.device)
    if not all(bool(block.isfinite().all()) for block in (*whole.blocks, whole.final)):
        raise UserError(
            f"{name}: hidden states of ordinary text are NaN or infinite, expected finite values: "
            + why_not_finite(model.dtype == torch.float16, name)
        )
    sites.require_stream(model)
    half = len(ids) // 2
    changed = _read(model, np.concatenate([ids[:half], np.roll(ids[half:], 1)]))
    allowed = tolerance(model)
    difference = max(
        _distance(one[:half], other[:half])
        for one, other in zip(changed.blocks, whole.blocks, strict=True)
    )
    if not difference <= allowed.hidden:
        raise UserError(
            f"{name} is not causal: later tokens change the hidden state of a token (by "
            f"{difference:.2g} of its norm); choose a causal language model"
        )
    difference = float((logprobs - whole.logprobs).abs().max())
    if not difference <= allowed.logprob:
        raise UserError(
            f"{name} does not compute its logits from its final hidden states alone "
            f"(log-probabilities differ by {difference:.3g}); choose another model"
        )
    return whole


def _require_longest(model: Any, ids: Ids) -> None:
    """Refuse a model that cannot read the context of its config.json; long ones are not tested."""
    if len(ids) <= LARGEST_WINDOW:
        with _refusing(model, ids, ", though its config.json states that it can"):
            models.backbone(model)(input_ids=_batch(model, ids), use_cache=False)


@contextmanager
def _refusing(model: Any, ids: Ids, note: str) -> Iterator[None]:
    """Refuse a model that raises an error within, except for a lack of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot read a text of {len(ids)} tokens "
            f"({models.first_line(error)}){note}; choose another model"
        ) from error


def _require_unchanged(model: Any, ids: Ids, first: torch.Tensor) -> None:
    """Refuse a model that keeps state between texts: results would depend on their order."""
    difference = _distance(_read(model, ids).final, first)
    if not difference <= tolerance(model).hidden:
        raise UserError(
            f"{type(model).__name__} gives other hidden states for the same text after longer "
            f"texts (they differ by {difference:.2g} of their norm); choose another model, or one "
            "whose position encoding does not depend on the longest text so far"
        )


def _modules(model: Any) -> list[tuple[str, type]]:
    """Name and class of every module."""
    return [(name, type(module)) for name, module in model.named_modules()]


def _require_modules(model: Any, before: list[tuple[str, type]]) -> None:
    """Refuse a model that replaced its own modules: results would depend on earlier texts."""
    changed = [
        f"{name}: {was.__name__} became {now.__name__}"
        for (name, was), (_, now) in zip(before, _modules(model), strict=False)
        if was is not now
    ]
    if changed:
        raise UserError(
            f"{type(model).__name__} replaces its own modules while it reads ({changed[0]}), so "
            "its activations depend on the texts read before; choose another model, or set "
            "attention_type: original_full in its config.json"
        )


def _sublayers(model: Any, site: sites.Site) -> list[sites.Sublayers] | str:
    try:
        return sites.find_sublayers(model)
    except UserError as error:
        if site != "resid_post":
            raise
        return str(error)


def _batch(model: Any, ids: Ids) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(ids)).to(model.device)


def _read(model: Any, ids: Ids) -> Reference:
    """Reference results of one text."""
    with without_onednn(model), captured(models.blocks(model), stop=False) as outputs:
        final = models.backbone(model)(
            input_ids=_batch(model, ids), use_cache=False
        ).last_hidden_state[0]
        return Reference([output[0] for output in outputs], final, _logprobs(model, final))


def _logprobs(model: Any, final: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token at the last positions, (at most LAST, vocabulary)."""
    return logits_of(model, final[-LAST:]).log_softmax(-1)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of hidden states (tokens, d), relative to the norms of `other`."""
    one, other = one.to(other.device).float(), other.float()
    gap = torch.linalg.vector_norm(one - other, dim=-1) / torch.linalg.vector_norm(
        other, dim=-1
    ).clamp(min=1e-20)
    return float(gap.max())


def _compare(
    reference: Reference, blocks: Sequence[torch.Tensor], logprobs: torch.Tensor
) -> tuple[float, float]:
    """Largest differences of hidden states and log-probabilities, at the last positions of a text.

    Args:
        blocks: output of each block, (last tokens, d_model).
        logprobs: (last tokens, vocabulary).
    """
    rows = len(blocks[0])
    hidden = max(
        _distance(fast, true[-rows:]) for fast, true in zip(blocks, reference.blocks, strict=True)
    )
    return hidden, float((logprobs - reference.logprobs[-len(logprobs) :]).abs().max())


def _largest(differences: Sequence[tuple[float, float]]) -> tuple[float, float]:
    hidden, logprob = np.max(np.array(differences), axis=0)  # NaN stays
    return float(hidden), float(logprob)


def _batched(model: Any, text: Ids, tokens: int, first: Reference) -> tuple[float, float]:
    """Two texts of one length in a batch. `first`: reference of the first."""
    other = np.concatenate([text[:1], np.roll(text[1:], -APART)[: tokens - 1]])
    with captured(models.blocks(model), stop=False) as outputs:
        rows = _batch(model, np.stack([text[:tokens], other]))
        final = models.backbone(model)(input_ids=rows, use_cache=False).last_hidden_state
        fast = [[output[row] for output in outputs] for row in range(2)]
    references = (first, _read(model, other))
    return _largest(
        [_compare(references[row], fast[row], _logprobs(model, final[row])) for row in range(2)]
    )


def _packed(model: Any, text: Ids, tokens: int, prefix_tokens: int = 0) -> tuple[float, float]:
    """A packed sequence of `tokens` tokens, and a short one of texts that share no token."""
    prefix = text[: min(prefix_tokens, tokens // 4)]
    texts = _texts(text, prefix, tokens)
    apart = [one._replace(answer=np.arange(len(one.ids))) for one in texts[:2]]
    differences = []
    for chosen, share in ((texts, True), (apart, False)):
        reader = PackedReader(model, tokens, share_answers=share)
        for pack in reader.packs(chosen, range(len(chosen)), tokens):
            with captured(models.blocks(model), stop=False) as outputs:
                final = reader.final(pack)
            for number, places in zip(pack.numbers, pack.places, strict=True):
                rows = torch.from_numpy(places)  # on the CPU: outputs may be on several GPUs
                reference = _read(model, np.concatenate([prefix, chosen[number].ids]))
                fast = [output[0, rows] for output in outputs]
                differences.append(_compare(reference, fast, _logprobs(model, final[rows])))
    return _largest(differences)


def _texts(text: Ids, prefix: Ids, tokens: int) -> list[Encoded]:
    """Two short texts with one prompt, and a long one, that fill a sequence of `tokens` tokens.

    The second half of the long one repeats the first, as words repeat. It shares nothing with the
    short ones but the separator, which the prefix has if there is one.
    """
    lead = text[:0] if len(prefix) else text[:1]
    rest = text[1 + len(prefix) :]
    prompt = min(PROMPT, tokens // 8)
    length = max(tokens - len(prefix) - len(lead) - prompt - 4, 1)

    def one(*parts: Ids) -> Encoded:
        ids = np.concatenate([lead, *parts])
        answer = np.arange(len(lead) + len(parts[0]), len(ids))
        return Encoded(ids, answer, answer, prefix, 1)

    return [
        one(rest[:prompt], rest[20:21]),
        one(rest[:prompt], rest[30:33]),
        one(rest[:0], np.resize(rest[1 : 1 + -(-length // 2)], length)),
    ]


def _continued(model: Any, text: Ids, tokens: int, mode: decoding.Mode) -> tuple[float, float]:
    """Greedy continuations of a batch: of one length or, if padded, of very different lengths.

    A padded batch holds one prompt twice, because it reads equal prompts once.
    """
    longest = tokens - NEW
    shared, lengths = (
        (longest // 2, (longest // 2 + 1, longest))
        if mode == "padded"
        else (1, (longest,) * PROMPTS)
    )
    prompts = [
        np.concatenate(
            [text[:shared], np.roll(text[1:], -APART * at)[shared : shared + length - shared]]
        )
        for at, length in enumerate(lengths)
    ]
    prompts += prompts[-1:] if mode == "padded" else []
    decoding.prepare(model, NEW, int(text[0]), [])
    steps = _Greedy()
    new = decoding.continue_batch(
        model, [prompt.tolist() for prompt in prompts], steps, mode, int(text[0])
    ).numpy()
    differences = []
    for prompt, ids, fast in zip(prompts, new, torch.stack(steps.logprobs, dim=1), strict=True):
        logprobs = _predicted(model, prompt, ids)
        chosen = logprobs.gather(1, torch.from_numpy(ids).to(logprobs.device)[:, None])[:, 0]
        # A token that is the most likely up to rounding is a correct choice, too.
        fast = fast.to(logprobs.device)
        differences += [(fast - logprobs).abs().max(), (logprobs.max(dim=1).values - chosen).max()]
    return np.nan, float(torch.stack(differences).max())


def _predicted(model: Any, prompt: Ids, new: Ids) -> torch.Tensor:
    """Reference log-probabilities at each new token, (new tokens, vocabulary).

    One pass computes them all, unless the sequence grows beyond a window: then some models compute
    its first tokens otherwise.
    """
    if not any(len(prompt) <= window < len(prompt) + len(new) for window in windows(model)):
        return _read(model, np.concatenate([prompt, new[:-1]])).logprobs[-len(new) :]
    return torch.cat(
        [_read(model, np.concatenate([prompt, new[:at]])).logprobs[-1:] for at in range(len(new))]
    )


class _Greedy:
    """Chooses the most likely tokens; `logprobs`: of every step, (prompts, vocabulary)."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def choose(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logprobs.append(scores.float().log_softmax(-1))
        return scores

    def stop(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def _skipped(model: Any, ids: Ids, reference: Reference) -> tuple[float, float]:
    """A second pass in which the lower half of the blocks is skipped."""
    blocks = models.blocks(model)
    below = blocks[: len(blocks) // 2]
    with last_output(below) as last:
        models.backbone(model)(input_ids=_batch(model, ids), use_cache=False)
    with (
        forward_replaced(below, lambda: last[0]),
        captured(blocks[len(below) :], stop=False) as outputs,
    ):
        final = models.backbone(model)(
            input_ids=_batch(model, ids), use_cache=False
        ).last_hidden_state[0]
    fast = [*reference.blocks[: len(below)], *(output[0] for output in outputs)]
    return _compare(reference, fast, _logprobs(model, final))
