"""Whether a model is read right, tried before anything is extracted from it.

Jobs read a model in ways that are faster than one text at a time: texts share a sequence, prompts share a batch and a
beginning, blocks stand in for what they returned before. Each way is compared with the plain model, which reads one text,
alone, without kept keys and values: hidden states of every block, and log-probabilities of the next token. A way that differs
is not taken (`Limits`). A model that has no residual stream of blocks, is not causal, or has a head that is not known is
refused.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations import decoding
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.hooks import captured, keeping, standing_in
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.packed_texts import Reader, logits_of
from ghosttrack.errors import UserError
from ghosttrack.inputs import models, sites
from ghosttrack.inputs.dense_layers import without_onednn
from ghosttrack.inputs.unembedding import ranks_tokens

log = logging.getLogger("ghosttrack")

# Largest difference that rounding explains: of a hidden state, as a share of its length, and of a log-probability, in nats.
HIDDEN, LOGPROB = 1e-3, 1e-3
# The same of a continuation's log-probabilities. Answers are longer than what is tried, and what a recurrence keeps may
# differ more with every token (Nemotron-H: .0009 nats in this check, .0011 elsewhere).
CONTINUED = 5e-4
# Tokens of the sequences that are tried; small windows are tried with shorter ones, of LEAST or more. Beyond the longest,
# texts are read alone, and prompts are continued with others of their length.
SHORTEST, LEAST = 32, 12
TOGETHER, PADDED = 384, 160
# A window of up to so many tokens is tried with longer texts; texts that exceed a larger one are read alone.
LARGEST_WINDOW = 1024
BEYOND = 32
# Positions at the end of each text whose log-probabilities are compared, besides the hidden states of all: a head of 262,144
# rows takes longer than the blocks.
LAST = 16
# Tokens that each prompt is continued by.
NEW = 4
# Prompts of one length that are continued, and how far apart in the text they begin. A model that chooses the tokens it
# reads (Doge) continues about half of all prompts right by luck.
PROMPTS, APART = 6, 29
# Tokens that texts begin with together, and of a prompt.
BEFORE, PROMPT = 16, 4

Ids = npt.NDArray[np.int64]


class Comparison(NamedTuple):
    """One fast way on some sequences, against the plain model.

    way: together, alone, batched, padded, cached, skipped; tokens: of the longest sequence.
    hidden: largest difference of a hidden state, as a share of its length; NaN where none is compared.
    logprob: largest difference of a log-probability, in nats.
    problem: what failed, where the model does not take such input at all; else empty.
    """

    way: str
    tokens: int
    hidden: float
    logprob: float
    problem: str = ""

    @property
    def exact(self) -> bool:
        """Whether rounding explains the differences."""
        allowed = CONTINUED if self.way in ("cached", "padded") else LOGPROB
        return not self.problem and not self.hidden > HIDDEN and self.logprob <= allowed


class ModelCheck(NamedTuple):
    """What was found of a model.

    sublayers: of each block, the modules that write to the residual stream; or why there are none.
    """

    limits: Limits
    sublayers: list[sites.Sublayers] | str
    comparisons: list[Comparison]


class Plain(NamedTuple):
    """What the plain model makes of one text.

    blocks: of each block, (tokens, d_model); final: (tokens, d) final hidden states; logprobs: (last tokens, vocabulary).
    """

    blocks: list[torch.Tensor]
    final: torch.Tensor
    logprobs: torch.Tensor


def check(model: Any, tokens: Ids, separator: int, site: sites.Site) -> ModelCheck:
    """Compare the fast ways of reading a model with the plain one.

    Args:
        model: causal language model in evaluation mode.
        tokens: (n,) ids of ordinary text without special tokens; repeated where more are needed.
        separator: the token in front of every text.
        site: what is stored of each block.
    Raises:
        UserError: a model that cannot be read at all, or has no such site.
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
            "batched", shortest, lambda tokens: _batched(model, text, tokens, first)
        )
        together = _tried(
            "together", _lengths(model, TOGETHER), lambda tokens: _together(model, text, tokens)
        )
        together.append(
            _compared("together", shortest, lambda tokens: _together(model, text, tokens, BEFORE))
        )
        padded = _tried(
            "padded",
            _lengths(model, PADDED),
            lambda tokens: _continued(model, text, tokens, "padded"),
        )
        cached = [
            _compared("cached", length, lambda tokens: _continued(model, text, tokens, "cached"))
            for length in _lengths(model, SHORTEST, NEW // 2)
        ]
        skipped = _compared(
            "skipped", shortest, lambda tokens: _skipped(model, text[:tokens], first)
        )
        _require_unchanged(model, text[:shortest], first.final)
        _require_modules(model, modules)
        named = ranks_tokens(model, first.blocks[-1][-LAST:], first.logprobs)
    reach = _reach(model, cached)
    # A padded batch keeps keys and values, too.
    limits = Limits(
        _longest(model, together),
        min(_longest(model, padded), reach),
        reach,
        batched.exact,
        skipped.exact,
        named,
    )
    return ModelCheck(limits, sublayers, [batched, *together, *padded, *cached, skipped])


def windows(model: Any) -> list[int]:
    """Lengths at which a model may begin to read otherwise, ascending: its windows, chunks, and where its positions are scaled."""
    found: set[int] = set()

    def search(values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                search(value)
            elif (
                isinstance(value, int)
                and value > 1
                and any(word in name for word in ("window", "chunk", "original_max"))
            ):
                found.add(value)

    search(model.config.get_text_config().to_dict())
    return sorted(found)


def _lengths(model: Any, longest: int, *more: int) -> list[int]:
    """Tokens of the sequences that are tried, ascending: the shortest, the longest, and beyond each window.

    Of two prompts of which one has half the tokens of the other, a window lies between both.

    Args:
        more: tokens beyond each window that are tried, too.
    """
    limit = models.max_context(model.config.to_dict())
    tried = [window for window in windows(model) if window <= LARGEST_WINDOW]
    beyond = [
        max(window + each, LEAST) for window in tried for each in (min(BEYOND, window // 2), *more)
    ]
    return sorted({min(length, limit) for length in (SHORTEST, longest, *beyond)})


def _tried(
    way: str, lengths: Sequence[int], compare: Callable[[int], tuple[float, float]]
) -> list[Comparison]:
    """From the longest sequence on down, until one is exact: its tokens had every shorter length, too.

    Of a model with windows the shortest comes first and must be exact. Such a model may read a text in another way once it
    has a token beyond a window, and then the longest says nothing of shorter ones.

    Args:
        lengths: the shortest, those beyond the windows, the longest.
    """
    if len(lengths) <= 2:
        return [_compared(way, lengths[-1], compare)]
    found = [_compared(way, lengths[0], compare)]
    for tokens in reversed(lengths[1:]) if found[0].exact else ():
        found.append(_compared(way, tokens, compare))
        if found[-1].exact:
            break
    return found


def _compared(way: str, tokens: int, compare: Callable[[int], tuple[float, float]]) -> Comparison:
    """Compare; a model may refuse what a fast way gives it in any manner, which is no error: that way is not taken."""
    try:
        return Comparison(way, tokens, *compare(tokens))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture has its own
        return Comparison(way, tokens, np.nan, np.nan, models.first_line(error))


def _longest(model: Any, comparisons: Sequence[Comparison]) -> int:
    """Tokens of the longest sequence that was exact, as all shorter ones were; 0 if no window explains why a longer one was wrong."""
    wrong = min((each.tokens for each in comparisons if not each.exact), default=sys.maxsize)
    longest = max((each.tokens for each in comparisons if each.tokens < wrong), default=0)
    explained = wrong == sys.maxsize or any(longest < window < wrong for window in windows(model))
    return longest if explained else 0


def _reach(model: Any, comparisons: Sequence[Comparison]) -> int:
    """Tokens up to which the library's own cache is exact: if every try was, up to the first window that none of them reached."""
    longest = _longest(model, comparisons)
    if not all(each.exact for each in comparisons):
        return longest
    return min(
        [
            models.max_context(model.config.to_dict()),
            *(each for each in windows(model) if each > longest),
        ]
    )


def require_readable(model: Any, ids: Ids) -> Plain:
    """Refuse a model whose blocks hold no residual stream, or that is not causal, or whose head is not known.

    Returns:
        What the plain model makes of the text.
    Raises:
        UserError: with the model's class and what was found.
    """
    name = type(model).__name__
    try:
        whole = _read(model, ids)
        head = (
            model(input_ids=_batch(model, ids), use_cache=False)
            .logits[0, -LAST:]
            .float()
            .log_softmax(-1)
        )
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"{name} cannot read a text of {len(ids)} tokens ({models.first_line(error)}); choose another model"
        ) from error
    if not all(bool(block.isfinite().all()) for block in (*whole.blocks, whole.final)):
        raise UserError(
            f"{name}: hidden states of a plain text are not finite; its weights are damaged, get them anew"
        )
    sites.require_stream(model)
    half = len(ids) // 2
    changed = _read(model, np.concatenate([ids[:half], np.roll(ids[half:], 1)]))
    difference = max(
        _distance(one[:half], other[:half])
        for one, other in zip(changed.blocks, whole.blocks, strict=True)
    )
    if not difference <= HIDDEN:
        raise UserError(
            f"{name} is not causal: what follows a token changes its hidden state (by {difference:.2g} of its length); choose "
            "a model that reads from left to right"
        )
    difference = float((head - whole.logprobs).abs().max())
    if not difference <= LOGPROB:
        raise UserError(
            f"{name} makes its predictions from its final hidden states in a way that is not known here (log-probabilities "
            f"differ by {difference:.3g}); choose another model"
        )
    return whole


def _require_longest(model: Any, ids: Ids) -> None:
    """Refuse a model that cannot read as many tokens as its configuration says; long contexts are not tried."""
    if len(ids) > LARGEST_WINDOW:
        return
    try:
        models.backbone(model)(input_ids=_batch(model, ids), use_cache=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot read a text of {len(ids)} tokens ({models.first_line(error)}), though its config.json "
            "says so; choose another model"
        ) from error


def _require_unchanged(model: Any, ids: Ids, first: torch.Tensor) -> None:
    """Refuse a model that has kept something of the texts it read: it would depend on their order."""
    difference = _distance(_read(model, ids).final, first)
    if not difference <= HIDDEN:
        raise UserError(
            f"{type(model).__name__} reads the same text otherwise after longer ones (hidden states differ by {difference:.2g} "
            "of their length); choose another model, or one whose positions do not depend on the longest text"
        )


def _modules(model: Any) -> list[tuple[str, type]]:
    """Name and class of every module."""
    return [(name, type(module)) for name, module in model.named_modules()]


def _require_modules(model: Any, before: list[tuple[str, type]]) -> None:
    """Refuse a model that replaced modules of its own while it read texts: a text's length would decide about the next one."""
    changed = [
        f"{name}: {was.__name__} became {now.__name__}"
        for (name, was), (_, now) in zip(before, _modules(model), strict=False)
        if was is not now
    ]
    if changed:
        raise UserError(
            f"{type(model).__name__} replaces its own modules while it reads ({changed[0]}), so its activations depend on "
            "the texts that it read before; choose another model, or set attention_type: original_full in its config.json"
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


def _read(model: Any, ids: Ids) -> Plain:
    """One text by the plain model."""
    with without_onednn(model), captured(models.blocks(model), stop=False) as outputs:
        final = models.backbone(model)(
            input_ids=_batch(model, ids), use_cache=False
        ).last_hidden_state[0]
        return Plain([output[0] for output in outputs], final, _logprobs(model, final))


def _logprobs(model: Any, final: torch.Tensor) -> torch.Tensor:
    """Of the token after each of the last tokens, (at most LAST, vocabulary)."""
    return logits_of(model, final[-LAST:]).log_softmax(-1)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two hidden states as a share of the second's length."""
    gap = torch.linalg.vector_norm(one - other, dim=-1) / torch.linalg.vector_norm(
        other, dim=-1
    ).clamp(min=1e-20)
    return float(gap.max())


def _compare(
    plain: Plain, blocks: Sequence[torch.Tensor], logprobs: torch.Tensor
) -> tuple[float, float]:
    """Differences of hidden states and log-probabilities of the last tokens of a text; `blocks`: as many rows as there are."""
    rows = len(blocks[0])
    hidden = max(
        _distance(fast, true[-rows:]) for fast, true in zip(blocks, plain.blocks, strict=True)
    )
    return hidden, float((logprobs - plain.logprobs[-len(logprobs) :]).abs().max())


def _worst(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    hidden, logprob = np.max(np.array(found), axis=0)  # NaN stays
    return float(hidden), float(logprob)


def _batched(model: Any, text: Ids, tokens: int, first: Plain) -> tuple[float, float]:
    """Two inputs of one length in a batch; `first`: what the plain model makes of the first."""
    other = np.concatenate([text[:1], np.roll(text[1:], -APART)[: tokens - 1]])
    with captured(models.blocks(model), stop=False) as outputs:
        rows = _batch(model, np.stack([text[:tokens], other]))
        final = models.backbone(model)(input_ids=rows, use_cache=False).last_hidden_state
        fast = [[output[row] for output in outputs] for row in range(2)]
    plain = (first, _read(model, other))
    return _worst(
        [_compare(plain[row], fast[row], _logprobs(model, final[row])) for row in range(2)]
    )


def _together(model: Any, text: Ids, tokens: int, before: int = 0) -> tuple[float, float]:
    """Texts that share a sequence of so many tokens, two short ones of one prompt and a long one, behind a beginning of all."""
    reader = Reader(model, tokens)
    beginning = text[: min(before, tokens // 4)]
    texts = _texts(text, beginning, tokens)
    found = []
    for pack in reader.packs(texts, range(len(texts)), tokens):
        with captured(models.blocks(model), stop=False) as outputs:
            final = reader.final(pack)
        for number, places in zip(pack.numbers, pack.places, strict=True):
            rows = torch.from_numpy(places).to(final.device)
            plain = _read(model, np.concatenate([beginning, texts[number].ids]))
            fast = [output[0, rows] for output in outputs]
            found.append(_compare(plain, fast, _logprobs(model, final[rows])))
    return _worst(found)


def _texts(text: Ids, before: Ids, tokens: int) -> list[Encoded]:
    """Two short texts and a long one that fill a sequence of so many tokens."""
    lead = text[:0] if len(before) else text[:1]
    rest = text[1 + len(before) :]

    def one(start: int, prompt: int, length: int) -> Encoded:
        ids = np.concatenate(
            [lead, rest[:prompt], rest[start : start + length - prompt - len(lead)]]
        )
        answer = np.arange(len(lead) + prompt, len(ids))
        return Encoded(ids, answer, answer, before, 1)

    prompt = min(PROMPT, tokens // 8)
    short = len(lead) + prompt
    return [
        one(20, prompt, short + 1),
        one(30, prompt, short + 3),
        one(prompt + 1, prompt + 1, tokens - len(before) - short - 4),
    ]


def _continued(model: Any, text: Ids, tokens: int, way: decoding.Way) -> tuple[float, float]:
    """Greedy continuations of prompts in a batch: of one length, or, of a padded batch, as different in length as may be."""
    most = tokens - NEW
    shared, lengths = (
        (most // 2, (most // 2 + 1, most)) if way == "padded" else (1, (most,) * PROMPTS)
    )
    prompts = [
        np.concatenate(
            [text[:shared], np.roll(text[1:], -APART * at)[shared : shared + length - shared]]
        )
        for at, length in enumerate(lengths)
    ]
    decoding.prepare(model, NEW, int(text[0]), [])
    steps = _Greedy()
    new = decoding.continue_together(
        model, [prompt.tolist() for prompt in prompts], steps, way, int(text[0])
    ).numpy()
    worst = []
    for prompt, ids, found in zip(prompts, new, torch.stack(steps.logprobs, dim=1), strict=True):
        plain = _predicted(model, prompt, ids)
        own = plain.gather(1, torch.from_numpy(ids).to(plain.device)[:, None])[:, 0]
        # A token that is the likeliest but for rounding is a right choice, too.
        worst += [(found - plain).abs().max(), (plain.max(dim=1).values - own).max()]
    return np.nan, float(torch.stack(worst).max())


def _predicted(model: Any, prompt: Ids, new: Ids) -> torch.Tensor:
    """Log-probabilities of each new token, (new tokens, vocabulary).

    One pass makes them all, unless the sequence grows beyond a window: some models then read its first tokens otherwise.
    """
    if not any(len(prompt) <= window < len(prompt) + len(new) for window in windows(model)):
        return _read(model, np.concatenate([prompt, new[:-1]])).logprobs[-len(new) :]
    return torch.cat(
        [_read(model, np.concatenate([prompt, new[:at]])).logprobs[-1:] for at in range(len(new))]
    )


class _Greedy:
    """The likeliest token at every step, and never an end; `logprobs`: of every step, (prompts, vocabulary)."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def choose(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logprobs.append(scores.float().log_softmax(-1))
        return scores

    def stop(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def _skipped(model: Any, ids: Ids, plain: Plain) -> tuple[float, float]:
    """A second pass in which the lower half of the blocks computes nothing."""
    blocks = models.blocks(model)
    below = blocks[: len(blocks) // 2]
    with keeping(below) as kept:
        models.backbone(model)(input_ids=_batch(model, ids), use_cache=False)
    with standing_in(below, kept), captured(blocks[len(below) :], stop=False) as outputs:
        final = models.backbone(model)(
            input_ids=_batch(model, ids), use_cache=False
        ).last_hidden_state[0]
    fast = [*plain.blocks[: len(below)], *(output[0] for output in outputs)]
    return _compare(plain, fast, _logprobs(model, final))
