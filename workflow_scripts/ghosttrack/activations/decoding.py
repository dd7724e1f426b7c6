"""Continuations of prompts, greedy or drawn, token by token for a whole batch.

Prompts of different lengths share a batch by padding, and what they begin with is read once, as far as `model_check` has
found that exact for the model. Others share a batch with prompts of their own length.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghosttrack.activations.limits import Limits
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")

# padded: prompts of any length, padded behind what all begin with, which is read once. cached: prompts of one length, keys and
# values kept between steps. plain: of one length, every step reads the whole sequence.
Way = Literal["padded", "cached", "plain"]
# Prompts of one batch share at least this part of their tokens: the solved examples of one relation.
SHARED = 0.5


class Written(NamedTuple):
    """What followed a prompt, up to the end of its first line that is not blank."""

    text: str
    ends: tuple[int, ...]  # characters of `text` that are there after each new token
    logprobs: tuple[float, ...]  # of each new token under the model itself (temperature 1), in nats


class _Decoder(NamedTuple):
    """What every batch needs: `breaks` and `blank` say of each token id whether its text has a line end, or nothing else."""

    tokenizer: Any
    temperature: float
    breaks: Tensor
    blank: Tensor
    stops: list[int]  # tokens that end an answer and are no part of it


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    limits: Limits,
    max_new_tokens: int,
    batch: int,
    dataset: str,
    draws: NDArray[np.float64] | None = None,
    temperature: float = 1.0,
    stops: Sequence[int] | None = None,
) -> list[Written]:
    """Continue each prompt: with the likeliest token at every step, or with drawn ones.

    A draw takes the first token at which the summed probability exceeds its number, so a continuation follows
    from its own numbers, whatever else is in the batch. Other batches give the same text but for ties in rounding.

    Args:
        model: causal language model in evaluation mode.
        prompts: texts, which are read behind the separator, or all token ids that the model reads.
        limits: how far the model was checked to continue prompts of a batch as it continues each alone.
        draws: (prompts, max_new_tokens) numbers in [0, 1); None: greedy.
        temperature: divides the logits before a draw.
        batch: prompts at a time; changes nothing but memory and rounding noise.
        dataset: named in errors.
        stops: tokens that end an answer and are no part of it; None: the end-of-sequence token.
    Raises:
        UserError: a prompt and its answer do not fit the model's context.
    """
    prefix = models.separator(tokenizer)
    limit = models.max_context(model.config.to_dict())
    coded = _coded(tokenizer, prompts, prefix)
    if stops is None:
        stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    longest = max(map(len, coded), default=0)
    if longest + max_new_tokens > limit:
        raise UserError(
            f"data set {dataset}: a prompt of {longest} tokens and generation.max_new_tokens {max_new_tokens} exceed "
            f"the {limit} tokens that the model takes; lower generation.max_new_tokens or shorten the questions"
        )
    prepare(model, max_new_tokens, prefix, stops)
    vocabulary = int(model.config.get_text_config().vocab_size)
    texts = tokenizer.batch_decode([[token] for token in range(min(vocabulary, len(tokenizer)))])
    texts += [""] * (vocabulary - len(texts))  # rows of the embedding that no token has
    breaks, blank = (
        torch.tensor([test(text) for text in texts])
        for test in (lambda text: "\n" in text, _is_blank)
    )
    decoder = _Decoder(tokenizer, temperature, breaks, blank, list(stops))
    results: dict[int, Written] = {}
    progress = Progress("generating", len(coded), "answers")
    for chosen, way in _batches(coded, batch, limits, max_new_tokens):
        steps = _Steps(
            decoder, None if draws is None else torch.from_numpy(draws[chosen]), len(chosen)
        )
        prompt_ids = [coded[number] for number in chosen]
        new = continue_together(model, prompt_ids, steps, way, prefix)
        logprobs = torch.stack(steps.logprobs, dim=1).cpu()  # (prompts, steps)
        for number, ids, row, logprob, length in zip(
            chosen, prompt_ids, new, logprobs, steps.lengths.tolist(), strict=True
        ):
            results[number] = _written(
                decoder, ids[1:], row[:length].tolist(), logprob[:length].tolist()
            )
        progress.advance(len(chosen))
    return [results[number] for number in range(len(coded))]


def _is_blank(text: str) -> bool:
    return not text.strip()


def prepare(model: Any, max_new_tokens: int, pad: int, stops: Sequence[int]) -> None:
    """Let a model decode plainly: its own sampling defaults (penalties, temperature) are switched off."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
    )


def _coded(
    tokenizer: Any, prompts: Sequence[str] | Sequence[Sequence[int]], prefix: int
) -> list[list[int]]:
    """Token ids that the model reads: a text's own behind the separator, or the ids as they are given."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [[int(token) for token in prompt] for prompt in prompts]
    coded = tokenizer(texts, add_special_tokens=False, verbose=False, split_special_tokens=True)[
        "input_ids"
    ]
    return [[prefix, *ids] for ids in coded]


def _batches(
    coded: Sequence[list[int]], size: int, limits: Limits, new: int
) -> Iterator[tuple[list[int], Way]]:
    """Up to `size` prompts at a time: those that begin alike, and, where padding is not exact, those of one length."""
    short = [number for number, ids in enumerate(coded) if len(ids) + new <= limits.padded]
    for chosen in _runs(coded, sorted(short, key=lambda number: coded[number]), size, _begin_alike):
        yield chosen, "padded"
    rest = sorted(
        set(range(len(coded))) - set(short), key=lambda number: (len(coded[number]), coded[number])
    )
    if rest:
        log.warning(
            "%d of %d prompts share a batch with prompts of their own length alone, which is slower: the model does not continue "
            "prompts of different lengths together exactly%s, or was not checked to (model_check.csv)",
            len(rest),
            len(coded),
            f" beyond {limits.padded - new} tokens" if limits.padded > new else "",
        )
    for chosen in _runs(
        coded, rest, size if limits.batched else 1, lambda one, other: len(one) == len(other)
    ):
        yield chosen, "cached" if len(coded[chosen[0]]) + new <= limits.cached else "plain"


def _runs(
    coded: Sequence[list[int]],
    order: Sequence[int],
    size: int,
    together: Callable[[list[int], list[int]], bool],
) -> Iterator[list[int]]:
    """Consecutive prompts, up to `size`, each of which goes together with the first."""
    waiting: list[int] = []
    for number in order:
        if waiting and (len(waiting) == size or not together(coded[waiting[0]], coded[number])):
            yield waiting
            waiting = []
        waiting.append(number)
    if waiting:
        yield waiting


def _begin_alike(one: list[int], other: list[int]) -> bool:
    return _shared([one, other]) >= SHARED * len(other)


def _shared(coded: Sequence[list[int]]) -> int:
    """Tokens at the head that all have, less than the whole of any."""
    # Between the first and the last in dictionary order all others lie: what those two share, all share.
    pairs = enumerate(zip(min(coded), max(coded), strict=False))
    shortest = min(map(len, coded)) - 1
    return min(shortest, next((place for place, (one, other) in pairs if one != other), shortest))


def continue_together(
    model: Any, coded: Sequence[list[int]], steps: "Steps", way: Way, pad: int
) -> Tensor:
    """Continue the prompts of one batch.

    Args:
        model: after `prepare`.
        coded: token ids of each prompt; of one length unless `way` is padded.
        steps: chooses each token and knows when to stop.
        pad: a token; what it is does not matter.
    Returns:
        (prompts, steps) token ids on the CPU.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    width = max(map(len, coded))
    shared = _shared(coded) if way == "padded" else 0
    ids = torch.full((len(coded), width), pad)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(coded):
        own = width - (len(each) - shared)
        ids[row, :shared], mask[row, :shared] = torch.tensor(each[:shared]), 1
        ids[row, own:], mask[row, own:] = torch.tensor(each[shared:]), 1
    if way == "plain":
        return _read_anew(model, ids.to(model.device), steps)
    with torch.inference_mode():
        past = None
        if shared:
            past = model(
                input_ids=ids[:1, :shared].to(model.device), use_cache=True
            ).past_key_values
            past.batch_repeat_interleave(len(coded))
        found: Tensor = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            past_key_values=past,
            use_cache=True,
            logits_processor=LogitsProcessorList([steps.choose]),
            stopping_criteria=StoppingCriteriaList([steps.stop]),
        ).cpu()
    return found[:, width:]


@torch.inference_mode()
def _read_anew(model: Any, ids: Tensor, steps: "Steps") -> Tensor:
    """Continue prompts (prompts, length) by a pass over the whole sequence at every step.

    The model is given nothing but the tokens. `generate` also gives it a mask and positions, which some architectures
    (RoBERTa) do not read as they read the tokens alone.
    """
    length = ids.shape[1]
    for _ in range(model.generation_config.max_new_tokens):
        scores = model(input_ids=ids, use_cache=False).logits[:, -1].float()
        ids = torch.cat([ids, steps.choose(ids, scores).argmax(dim=-1, keepdim=True)], dim=1)
        if bool(steps.stop(ids).all()):
            break
    return ids[:, length:].cpu()


class Steps(Protocol):
    """Chooses the tokens of a batch."""

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (prompts, vocabulary) whose largest is the chosen token's."""

    def stop(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """(prompts,) bool, whether each continuation is complete."""


class _Steps:
    """Chooses the tokens of one batch, step by step, and knows which continuations are complete."""

    def __init__(self, decoder: _Decoder, draws: Tensor | None, count: int) -> None:
        self.logprobs: list[Tensor] = []  # (prompts,) at every step
        self.lengths = torch.zeros(count, dtype=torch.long)  # tokens of each continuation
        self._decoder, self._draws = decoder, draws
        self._begun = torch.zeros(count, dtype=torch.bool)
        self._done = torch.zeros(count, dtype=torch.bool)

    def choose(self, _: Tensor, scores: Tensor) -> Tensor:
        """Scores (prompts, vocabulary) whose largest is the chosen token's; its log-probability is noted."""
        if self._draws is None:
            chosen = scores.argmax(dim=-1, keepdim=True)
            kept = scores
        else:
            # float64: the sum over a vocabulary in float32 would not tell rare tokens apart.
            summed = torch.softmax(scores.double() / self._decoder.temperature, dim=-1).cumsum(
                dim=-1
            )
            number = self._draws[:, len(self.logprobs), None].to(summed.device) * summed[:, -1:]
            chosen = torch.searchsorted(summed, number, right=True).clamp_(max=scores.shape[-1] - 1)
            kept = torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)
        logs = torch.log_softmax(scores.float(), dim=-1)
        self.logprobs.append(logs.gather(1, chosen)[:, 0])
        return kept

    def stop(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """(prompts,) whether the first line that is not blank has ended."""
        token = ids[:, -1].cpu()
        self.lengths += ~self._done
        self._begun |= ~self._decoder.blank[token]
        self._done |= (self._begun & self._decoder.breaks[token]) | torch.isin(
            token, torch.tensor(self._decoder.stops, dtype=token.dtype)
        )
        return self._done.to(ids.device)


def _written(
    decoder: _Decoder, prompt: list[int], new: list[int], logprobs: list[float]
) -> Written:
    """Text as it stands after the prompt: some tokenizers drop a leading space when decoded alone."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    shown = [
        [token for token in new[:count] if token not in decoder.stops]
        for count in range(len(new) + 1)
    ]
    whole = [decoder.tokenizer.decode(prompt + tokens, **options) for tokens in shown]
    ends = [len(text) - len(whole[0]) for text in whole[1:]]
    return Written(whole[-1][len(whole[0]) :], tuple(ends), tuple(logprobs))
